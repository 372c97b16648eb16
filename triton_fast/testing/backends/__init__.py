"""The C++ backends of the test models: compiled on first use, kept in the user's cache folder.

Owns the compiler's command line and the cache. The sources are beside this file, one for each
backend; the headers are what several have in common.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from triton_fast.testing.errors import BackendBuildFailed

__all__ = ["BACKENDS", "build_backend"]

_FOLDER = Path(__file__).parent
_HEADERS = sorted(_FOLDER.glob("*.hpp"))
BACKENDS = {
    "triton_fast_identity": _FOLDER / "identity.cpp",
    "triton_fast_computing": _FOLDER / "computing.cpp",
    "triton_fast_cancellable": _FOLDER / "cancellable.cpp",
    "triton_fast_sequences": _FOLDER / "sequences.cpp",
}
"""The backends by the name that a model's configuration has, and their sources."""

_FLAGS = ("-O2", "-std=c++17", "-pthread", "-shared", "-fPIC", "-fvisibility=hidden")


def build_backend(name: str, fallback_folder: Path) -> Path:
    """Compile a backend, unless the cache has it.

    Parameters
    ----------
    name : str
        One of `BACKENDS`.
    fallback_folder : Path
        Where to build if the user's cache folder (``$XDG_CACHE_HOME`` or ``~/.cache``) cannot be
        written.

    Returns
    -------
    Path
        The shared library.

    Raises
    ------
    BackendBuildFailed
        If there is no C++ compiler (``$CXX``, otherwise ``c++``), or it refuses the source.

    Notes
    -----
    Safe for several processes at once: each builds under a name of its own and renames.
    """
    command = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    compiler = shutil.which(command[0])
    if compiler is None:
        raise BackendBuildFailed(
            f"the test models need a C++ compiler for their backend, and there is no "
            f"{command[0]!r} on PATH; install one (Debian and Ubuntu: apt-get install g++) or "
            "point the environment variable CXX at one"
        )
    # The same path may be another compiler tomorrow: its size and time of change tell.
    program = Path(compiler).resolve().stat()
    source = BACKENDS[name]
    recipe = (
        source.read_bytes(),
        *(header.read_bytes() for header in _HEADERS),
        command,
        _FLAGS,
        program.st_size,
        program.st_mtime_ns,
    )
    key = hashlib.sha256(repr(recipe).encode()).hexdigest()[:24]
    file_name = f"lib{name}-{key}.so"
    for folder in (_cache_folder(), fallback_folder):
        if folder is not None and (folder / file_name).is_file():
            return folder / file_name
    folder = _writable(_cache_folder()) or fallback_folder
    with tempfile.TemporaryDirectory(prefix="build-", dir=folder) as build_folder:
        library = Path(build_folder, file_name)
        result = subprocess.run(
            [compiler, *command[1:], *_FLAGS, "-o", str(library), str(source)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if result.returncode != 0:
            raise BackendBuildFailed(
                f"{shlex.join(command)} could not compile {name}, a backend of the test models "
                f"(exit status {result.returncode}):\n{result.stderr.strip()}"
            )
        library.replace(folder / file_name)
    return folder / file_name


def _cache_folder() -> Path | None:
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    if chosen and Path(chosen).is_absolute():
        return Path(chosen, "triton_fast")
    try:
        return Path.home() / ".cache" / "triton_fast"
    except RuntimeError:  # a user without a home, as in some containers
        return None


def _writable(folder: Path | None) -> Path | None:
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home: the caller's folder serves as well
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None
