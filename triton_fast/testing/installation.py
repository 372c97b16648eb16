"""Where Triton is on this machine.

Owns the search for ``tritonserver`` and the layout of the nvidia-pytriton wheel. Starts nothing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from triton_fast.testing.errors import TritonServerNotFound

__all__ = ["INSTALL_COMMAND", "Installation", "find_tritonserver"]

INSTALL_COMMAND = "pip install --no-deps nvidia-pytriton"
_VARIABLE = "TRITON_FAST_TRITONSERVER"


@dataclass(frozen=True)
class Installation:
    """A Triton server: its program and what lies around it.

    Attributes
    ----------
    executable : Path
        The program ``tritonserver``.
    backends : Path or None
        The folder of its own backends.
    stubs : Path or None
        The nvidia-pytriton wheel's folder of Python backend stubs, one folder for each version of
        Python. None for any other layout: the Python backend then brings its own Python.
    libraries : Path or None
        The wheel's folder of shared libraries.
    """

    executable: Path
    backends: Path | None
    stubs: Path | None
    libraries: Path | None

    @classmethod
    def around(cls, executable: Path) -> Installation:
        """Look at the folders around a program."""
        root = executable.resolve().parent.parent
        return cls(
            executable=executable,
            backends=_folder(root / "backends"),
            stubs=_folder(root / "python_backend_stubs"),
            libraries=_folder(root.parent.parent / "nvidia_pytriton.libs"),
        )


def find_tritonserver(executable: str | os.PathLike[str] | None = None) -> Installation:
    """Find a Triton server.

    Parameters
    ----------
    executable : path, optional
        The program, when the caller knows. Otherwise the first of: the environment variable
        ``TRITON_FAST_TRITONSERVER``, ``tritonserver`` on ``PATH``, the one in the nvidia-pytriton
        wheel, which is found without being imported.

    Returns
    -------
    Installation
        The program and what lies around it.

    Raises
    ------
    TritonServerNotFound
        If there is none, or if the one that was asked for cannot be run.
    """
    named = os.environ.get(_VARIABLE, "") if executable is None else os.fspath(executable)
    if named:
        source = f"environment variable {_VARIABLE}" if executable is None else "executable="
        path = shutil.which(named)
        if path is None:
            raise TritonServerNotFound(f"{source} names {named!r}, which cannot be run")
        return Installation.around(Path(path).absolute())
    path = shutil.which("tritonserver")
    if path is not None:
        return Installation.around(Path(path).absolute())
    spec = importlib.util.find_spec("pytriton")
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        path = shutil.which(Path(location, "tritonserver", "bin", "tritonserver"))
        if path is not None:
            return Installation.around(Path(path))
    raise TritonServerNotFound(
        "there is no Triton server on this machine. The nvidia-pytriton wheel (Linux x86-64) has "
        f"one that needs no GPU and no container:\n\n    {INSTALL_COMMAND}\n\n"
        f"Looked at the environment variable {_VARIABLE} (not set), for tritonserver on PATH, and "
        f"for the wheel in {sys.prefix}."
    )


def _folder(path: Path) -> Path | None:
    return path if path.is_dir() else None
