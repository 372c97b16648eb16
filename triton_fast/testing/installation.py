"""Where Triton is on this machine, and what its Python backend needs to run this Python's models.

Owns the search for ``tritonserver`` and the layout of the nvidia-pytriton wheel. Starts nothing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from triton_fast.testing.errors import PythonBackendUnavailable, TritonServerNotFound

__all__ = ["INSTALL_COMMAND", "Installation", "PythonBackend", "find_tritonserver"]

INSTALL_COMMAND = "pip install --no-deps nvidia-pytriton"
_VARIABLE = "TRITON_FAST_TRITONSERVER"
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


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


@dataclass(frozen=True)
class PythonBackend:
    """What it takes to run models of this version of Python in the wheel's Python backend.

    Attributes
    ----------
    files : tuple of Path
        The files that must lie in the backend's folder, the right stub among them.
    library : Path
        The shared libpython that the stub is linked to.
    home : Path
        The ``bin`` folder of the Python whose standard library goes with `library`.
    """

    files: tuple[Path, ...]
    library: Path
    home: Path

    @classmethod
    def of(cls, installation: Installation) -> PythonBackend:
        """Choose the stub and find the library for the Python that runs this.

        Raises
        ------
        PythonBackendUnavailable
            If there is no such stub or no such library.
        """
        if installation.stubs is None or installation.backends is None:
            raise PythonBackendUnavailable(
                f"{installation.executable} is not from the nvidia-pytriton wheel"
            )
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            raise PythonBackendUnavailable(
                "Triton's Python backend cannot run models of a free-threaded Python; "
                f"use the ordinary build of Python {_VERSION}"
            )
        stub = installation.stubs / _VERSION / "triton_python_backend_stub"
        if not stub.is_file():
            versions = sorted(
                (path.parent.name for path in installation.stubs.glob("*/*_stub")),
                key=lambda version: [int(part) for part in version.split(".") if part.isdigit()],
            )
            raise PythonBackendUnavailable(
                f"the Triton of {installation.stubs.parent} runs Python models of Python "
                f"{', '.join(versions)}, and this is Python {_VERSION}"
            )
        library = _bundled_libpython(installation.libraries) or _find_libpython()
        files = [path for path in (installation.backends / "python").iterdir() if path.is_file()]
        return cls(files=(*files, stub), library=library, home=_python_home(library))


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


def _bundled_libpython(libraries: Path | None) -> Path | None:
    """Return the libpython that the wheel brings for one version of Python, if it is this one."""
    if libraries is None:
        return None
    major, minor = sys.version_info[:2]
    return next(libraries.glob(f"libpython{major}-*.{minor}.so.1.0"), None)


def _find_libpython() -> Path:
    name = f"libpython{_VERSION}.so.1.0"
    folders = [sysconfig.get_config_var("LIBDIR"), sysconfig.get_config_var("LIBPL")]
    folders += [str(Path(sys.base_prefix, "lib")), str(Path(sys.base_prefix, "lib64"))]
    multiarch = sysconfig.get_config_var("MULTIARCH")
    if multiarch:
        folders += [f"/usr/lib/{multiarch}", f"/lib/{multiarch}"]
    folders += ["/usr/lib64", "/usr/lib", "/usr/local/lib64", "/usr/local/lib"]
    candidates = [Path(folder, name) for folder in folders if folder]
    for path in [*candidates, *_loader_knows(name)]:
        if path.is_file():
            return path
    raise PythonBackendUnavailable(
        f"Triton's Python backend needs {name}, the shared library of the Python that runs this "
        f"({sys.executable}), and there is none on this machine. Debian and Ubuntu: "
        f"apt-get install libpython{_VERSION}. Fedora: dnf install python{_VERSION}-libs. A Python "
        "built from source must be configured with --enable-shared."
    )


def _loader_knows(name: str) -> list[Path]:
    """Return what the dynamic loader's cache has under a name."""
    # Not ctypes.util.find_library: without ldconfig it would run a compiler.
    ldconfig = shutil.which("ldconfig", path=os.defpath + ":/sbin:/usr/sbin")
    if ldconfig is None:
        return []
    listing = subprocess.run(
        [ldconfig, "-p"], capture_output=True, text=True, errors="replace", check=False
    ).stdout
    pairs = (line.strip().partition(" ") for line in listing.splitlines())
    return [Path(rest.rpartition("=> ")[2]) for found, _, rest in pairs if found == name]


def _python_home(library: Path) -> Path:
    """Return the ``bin`` folder of the Python whose standard library goes with a libpython."""
    own = Path(sys.base_prefix)
    if not library.is_relative_to(own):
        for prefix in library.parents:
            # Debian's library beside a Python that was built elsewhere: each has its own modules.
            if Path(prefix, "lib", f"python{_VERSION}", "os.py").is_file():
                return prefix / "bin"
    return own / "bin"
