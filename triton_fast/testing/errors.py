"""What can go wrong with a test server; part of the package's exception tree.

They are here, and not in `triton_fast.errors`, because they are about this machine: what is
installed, what starts. No client raises them.
"""

from __future__ import annotations

from triton_fast.errors import TritonFastError

__all__ = [
    "BackendBuildFailed",
    "PythonBackendUnavailable",
    "TritonServerError",
    "TritonServerFailed",
    "TritonServerNotFound",
]


class TritonServerError(TritonFastError):
    """Base of everything that starting and stopping a test server raises."""


class TritonServerNotFound(TritonServerError):
    """There is no tritonserver on this machine; the message has the command that installs one."""


class PythonBackendUnavailable(TritonServerError):
    """A model needs the Python backend, and something that it needs is missing; says what."""


class BackendBuildFailed(TritonServerError):
    """A C++ backend of the test models could not be compiled; has the compiler's words."""


class TritonServerFailed(TritonServerError):
    """The server did not become ready, or did not stop.

    Parameters
    ----------
    message : str
        What happened, with the lines of the log that say why.
    log : str, default ""
        The whole log.
    timed_out : bool, default False
        Whether it was running still when it had taken too long to become ready.

    Attributes
    ----------
    log, timed_out
        As above.
    """

    def __init__(self, message: str, log: str = "", *, timed_out: bool = False) -> None:
        self.log = log
        self.timed_out = timed_out
        super().__init__(message)
