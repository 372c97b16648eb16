"""The exception tree: every error that triton_fast raises is defined here, and nowhere else.

Imports nothing from the package, so that every layer may raise from it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import ClassVar

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Cancelled",
    "ClosedError",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "InvalidOption",
    "InvalidTensor",
    "LoopError",
    "MissingDependency",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "ServerError",
    "SharedMemoryError",
    "StatusCode",
    "TritonFastError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "WireError",
    "printable",
    "server_error",
]

# How much of a server's text an error shows as a str: some are whole tracebacks, or worse.
_MOST_SHOWN = 2000


class StatusCode(enum.IntEnum):
    """The gRPC status codes, with their numbers on the wire.

    Source
    ------
    gRPC core documentation, "Status codes and their use in gRPC".
    """

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class TritonFastError(Exception):
    """Base of everything that triton_fast raises on purpose."""


class InvalidTensor(TritonFastError, ValueError):
    """A tensor cannot be sent or received as it is: its name, datatype, shape or size is wrong.

    Raised before anything is sent, except for an ``out=`` array that does not fit the answer, and
    for what the server has refused and the model's signature, asked for only then, explains.

    Parameters
    ----------
    message : str
        What is wrong.
    output, answer : str, optional
        Where an output does not fit the array that was to take it: its name, and the datatype and
        shape that came, as in ``"FP32 [4, 3]"``.

    Attributes
    ----------
    output, answer
        As above.
    """

    def __init__(
        self, message: str = "", *, output: str | None = None, answer: str | None = None
    ) -> None:
        super().__init__(message)
        self.output = output
        self.answer = answer

    def __str__(self) -> str:
        return printable(super().__str__())  # it may have a server's names in it


class InvalidOption(TritonFastError, ValueError):
    """An argument other than a tensor is wrong: a timeout, a header, a parameter, a target."""


class ClosedError(TritonFastError):
    """The client was closed, before the call or while it ran."""


class LoopError(TritonFastError, RuntimeError):
    """An `AsyncClient` was used without a running event loop, or from a second one.

    It belongs to the loop of its first call until that loop is closed.
    """


class MissingDependency(TritonFastError, ImportError):
    """An optional package that the call needs is not installed; the message says how to get it."""


class WireError(TritonFastError):
    """Bytes from the server are not the message that they should be; the message names the field.

    The call is over and its tensors must not be used; the client stays usable.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class SharedMemoryError(TritonFastError, OSError):
    """Shared memory cannot be had, or not be let go of; ``errno`` and the message say why.

    ``errno.ENOSPC`` is a full ``/dev/shm``. Nothing is left behind, and the client stays usable.
    """


def printable(text: str, most: int = _MOST_SHOWN) -> str:
    """Return a server's text as it may go into an error or a log: escaped, and not too long."""
    if len(text) <= most and text.isprintable():
        return text
    shown = "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text[:most]
    )
    if len(text) > most or len(shown) > most:
        return f"{shown[:most]}… ({len(text):,} characters in all)"
    return shown


class ServerError(TritonFastError):
    """The call failed with a gRPC status, sent by the server or made by the channel.

    Parameters
    ----------
    message : str
        What the server said, unchanged; or the channel, with a hint where no server was reached.
        The error as a str has the first 2,000 characters of it, with those escaped that do not
        print.
    status : StatusCode, optional
        The status; the subclass's own when left out.
    call : str, default ""
        What was being called, for the reader of a traceback: ``"ModelInfer('resnet')"``.
    target : str, default ""
        The server's address as given to the client.
    safe_to_retry : bool, default False
        Whether it is known that the server has not begun the call, so that making it again cannot
        do anything twice. The client has tried that already, until the call's deadline, or 32 times
        if it has none; the message says how often.

    Attributes
    ----------
    status, message, call, target, safe_to_retry
        As above.

    Notes
    -----
    Catch the subclasses: there is one for each status.
    """

    default_status: ClassVar[StatusCode] = StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        status: StatusCode | None = None,
        *,
        call: str = "",
        target: str = "",
        safe_to_retry: bool = False,
    ) -> None:
        self.message = message
        self.status = self.default_status if status is None else status
        self.call = call
        self.target = target
        self.safe_to_retry = safe_to_retry
        super().__init__(message)

    def __str__(self) -> str:
        where = f"{self.call} at {self.target}" if self.call and self.target else self.call
        text = f"{self.status.name}: {printable(self.message)}"
        return f"{where}: {text}" if where else text

    def __reduce__(self) -> tuple[Callable[..., ServerError], tuple[object, ...]]:
        # Keyword-only arguments do not survive the default pickling of exceptions.
        state = (self.message, self.status, self.call, self.target, self.safe_to_retry)
        return _rebuild, (type(self), *state)


def _rebuild(
    kind: type[ServerError],
    message: str,
    status: StatusCode,
    call: str,
    target: str,
    safe_to_retry: bool,
) -> ServerError:
    return kind(message, status, call=call, target=target, safe_to_retry=safe_to_retry)


def add_remark(error: ServerError, remark: str) -> None:
    """Add to the message of an error what its caller may do about it, or what was done."""
    error.message = f"{error.message} ({remark})"
    error.args = (error.message,)


class Cancelled(ServerError):
    """The call was cancelled, by the caller or by a server that is shutting down."""

    default_status = StatusCode.CANCELLED


class Unknown(ServerError):
    """The server failed without saying how."""

    default_status = StatusCode.UNKNOWN


class InvalidArgument(ServerError):
    """The server refused the request: a tensor, parameter or option is not what the model takes."""

    default_status = StatusCode.INVALID_ARGUMENT


class DeadlineExceeded(ServerError, TimeoutError):
    """The call's ``timeout`` passed before the answer was complete."""

    default_status = StatusCode.DEADLINE_EXCEEDED


class NotFound(ServerError):
    """The server knows no such model, version or shared-memory region."""

    default_status = StatusCode.NOT_FOUND


class AlreadyExists(ServerError):
    """What was to be created is there already."""

    default_status = StatusCode.ALREADY_EXISTS


class PermissionDenied(ServerError):
    """The caller may not do this."""

    default_status = StatusCode.PERMISSION_DENIED


class ResourceExhausted(ServerError):
    """A limit was reached: message size, quota, memory."""

    default_status = StatusCode.RESOURCE_EXHAUSTED


class FailedPrecondition(ServerError):
    """The system is not in a state in which this can be done."""

    default_status = StatusCode.FAILED_PRECONDITION


class Aborted(ServerError):
    """The operation was aborted, usually because of another one."""

    default_status = StatusCode.ABORTED


class OutOfRange(ServerError):
    """A position lies past the end of what there is."""

    default_status = StatusCode.OUT_OF_RANGE


class Unimplemented(ServerError):
    """The server does not offer this call, or not for this model."""

    default_status = StatusCode.UNIMPLEMENTED


class Internal(ServerError):
    """The server, the model or the transport broke an invariant."""

    default_status = StatusCode.INTERNAL


class Unavailable(ServerError):
    """No server was reached, the connection broke, or the server takes no requests just now."""

    default_status = StatusCode.UNAVAILABLE


class DataLoss(ServerError):
    """Data was lost or corrupted beyond repair."""

    default_status = StatusCode.DATA_LOSS


class Unauthenticated(ServerError):
    """The call carried no valid credentials."""

    default_status = StatusCode.UNAUTHENTICATED


_BY_STATUS: dict[StatusCode, type[ServerError]] = {
    kind.default_status: kind
    for kind in (
        Cancelled,
        Unknown,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Internal,
        Unavailable,
        DataLoss,
        Unauthenticated,
    )
}


def server_error(
    status: int, message: str, *, call: str = "", target: str = "", safe_to_retry: bool = False
) -> ServerError:
    """Return the error that stands for a gRPC status.

    Parameters
    ----------
    status : int
        The number from ``grpc-status``. One that gRPC does not know becomes `Unknown`, as gRPC's
        specification says.
    message : str
        The text from ``grpc-message``.
    call, target, safe_to_retry
        See `ServerError`.

    Returns
    -------
    ServerError
        An instance of the status's own subclass, to be raised by the caller.
    """
    try:
        code = StatusCode(status)
    except ValueError:
        code = StatusCode.UNKNOWN
    kind = _BY_STATUS.get(code, Unknown)
    return kind(message, call=call, target=target, safe_to_retry=safe_to_retry)
