"""What the wheel's Python backend needs to run models of the Python that runs this.

Owns the choice of the stub process, its libpython, its interpreter's search path and its numpy. The
Python backend of any other Triton (a container's) is complete as it is, and none of this applies.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from triton_fast.testing.errors import PythonBackendUnavailable
from triton_fast.testing.installation import Installation

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PythonBackend"]

_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
_MODULE = "triton_python_backend_utils.py"
_STUB = "triton_python_backend_stub"
_NUMPY_2 = Path(__file__).with_name("backends") / "numpy2.py"


@dataclass(frozen=True)
class PythonBackend:
    """The pieces of a Python backend that runs models of this version of Python.

    Attributes
    ----------
    files : tuple of Path
        The files that must lie in the backend's folder, the right stub among them.
    library : Path
        The shared libpython that the stub is linked to.
    home : Path
        The ``bin`` folder of the Python whose standard library goes with `library`.
    packages : tuple of Path
        The folders that models import packages from.
    numpy_version : str
        The version of the numpy that they find there.
    """

    files: tuple[Path, ...]
    library: Path
    home: Path
    packages: tuple[Path, ...]
    numpy_version: str

    @classmethod
    def of(cls, installation: Installation, python_path: str) -> PythonBackend:
        """Find the pieces.

        Parameters
        ----------
        installation : Installation
            A Triton from the wheel.
        python_path : str
            The value of ``PYTHONPATH``.

        Raises
        ------
        PythonBackendUnavailable
            If one is missing.
        """
        assert installation.stubs is not None
        assert installation.backends is not None
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            raise PythonBackendUnavailable(
                "Triton's Python backend cannot run models of a free-threaded Python; "
                f"use the ordinary build of Python {_VERSION}"
            )
        stub = installation.stubs / _VERSION / _STUB
        if not stub.is_file():
            versions = sorted(
                (path.parent.name for path in installation.stubs.glob(f"*/{_STUB}")),
                key=lambda version: [int(part) for part in version.split(".") if part.isdigit()],
            )
            raise PythonBackendUnavailable(
                f"the Triton in {installation.stubs.parent} runs models of Python "
                f"{', '.join(versions)}, and this is Python {_VERSION}"
            )
        library = _bundled_libpython(installation.libraries) or _find_libpython()
        packages = tuple(_package_folders(installation, python_path))
        numpy_version = _numpy_version(packages)
        if numpy_version is None:
            raise PythonBackendUnavailable(
                "Triton's Python backend needs numpy, and there is none in "
                f"{', '.join(map(str, packages))}"
            )
        files = [path for path in (installation.backends / "python").iterdir() if path.is_file()]
        return cls((*files, stub), library, _python_home(library), packages, numpy_version)

    @property
    def has_numpy_1(self) -> bool:
        """Whether the numpy is the one that the stub was built for."""
        return self.numpy_version.startswith("1.")

    def put_together(self, folder: Path, env: dict[str, str]) -> dict[str, str]:
        """Make the backend's folder, and an environment for its Python.

        The interpreter in the stubs for Python 3.11 and later is "isolated": it ignores PYTHONPATH
        and PYTHONHOME. What it does look at is the ``python3`` on PATH and the ``pyvenv.cfg``
        beside it. So it gets a virtual environment of its own, with a path file that lists our
        folders.

        Parameters
        ----------
        folder : Path
            The server's temporary folder.
        env : dict
            The server's environment so far.

        Returns
        -------
        dict
            The environment with what the stub needs.
        """
        backend = folder / "backends" / "python"
        backend.mkdir()
        for path in self.files:
            if path.name == _MODULE and not self.has_numpy_1:
                parts = [part.read_text(encoding="utf-8") for part in (path, _NUMPY_2)]
                (backend / _MODULE).write_text("\n\n".join(parts), encoding="utf-8")
            else:
                (backend / path.name).symlink_to(path)

        # A link, because the library's folder may have others that the server must not find.
        libraries = folder / "lib"
        libraries.mkdir()
        (libraries / self.library.name).symlink_to(self.library)

        environment = folder / "python"
        site_packages = environment / "lib" / f"python{_VERSION}" / "site-packages"
        site_packages.mkdir(parents=True)
        (environment / "bin").mkdir()
        (environment / "bin" / "python3").symlink_to(sys.executable)
        (environment / "pyvenv.cfg").write_text(f"home = {self.home}\n", encoding="utf-8")
        lines = [
            *map(str, self.packages),
            # No __pycache__ folders in the model repository.
            "import sys; sys.dont_write_bytecode = True",
        ]
        (site_packages / "triton_fast.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return {
            **env,
            "PATH": os.pathsep.join([str(environment / "bin"), env.get("PATH") or os.defpath]),
            "LD_LIBRARY_PATH": os.pathsep.join(
                filter(None, [str(libraries), env.get("LD_LIBRARY_PATH")])
            ),
        }


def _numpy_version(folders: Iterable[Path]) -> str | None:
    """Return the version of the first numpy in these folders."""
    paths = [str(folder) for folder in folders]
    found = importlib.metadata.distributions(name="numpy", path=paths)
    return next((numpy.version for numpy in found), None)


def _package_folders(installation: Installation, python_path: str) -> Iterable[Path]:
    """Return the folders that Python models import from, in order and each once."""
    # Not all of sys.path: a test folder with a model.py in it would hide every model's own.
    names = ("site-packages", "dist-packages")
    folders = [path for path in python_path.split(os.pathsep) if path]
    if installation.libraries is not None:
        # numpy 1 beside the wheel was meant for it, if it is for this version of Python.
        beside = installation.libraries.parent
        modules = beside.glob(
            f"numpy/core/_multiarray_umath{sysconfig.get_config_var('EXT_SUFFIX')}"
        )
        if any(modules) and (_numpy_version([beside]) or "").startswith("1."):
            folders.append(str(beside))
    folders += [path for path in sys.path if Path(path).name in names]
    folders += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    return dict.fromkeys(Path(path).absolute() for path in folders if Path(path).is_dir())


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
