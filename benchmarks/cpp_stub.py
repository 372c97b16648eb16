"""Builds the C++ contender, where the system has gRPC for C++, and makes its functions callable."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
PROTOS = HERE.parent / "protos"
BUILD = HERE.parent / "build" / "cpp_stub"
_PACKAGES = "libgrpc++-dev libprotobuf-dev protobuf-compiler-grpc pkg-config"


class NoStub(Exception):
    """The contender cannot be built here; says why, in one line."""


@functools.cache
def missing() -> str | None:
    """Return why there is no C++ contender here, or None. Builds it, but loads nothing."""
    try:
        _built()
    except NoStub as error:
        return str(error)
    return None


@functools.cache
def version() -> str:
    """Return the release of gRPC for C++ that the contender is built with."""
    return "not here" if missing() else _run("pkg-config", "--modversion", "grpc++").strip()


@functools.cache
def library() -> ctypes.CDLL:
    """Return the built library.

    Raises
    ------
    NoStub
        If the system has no gRPC for C++, or the contender does not build.
    """
    # grpcio has a gRPC of its own in this process. The two do not meet: RTLD_LOCAL keeps the
    # symbols of this one and of the libraries under it out of sight, and grpcio hides its own.
    stub = ctypes.CDLL(str(_built()), mode=ctypes.RTLD_LOCAL)
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
    stub.stub_open.restype = pointer
    stub.stub_open.argtypes = [text]
    stub.stub_close.restype = None
    stub.stub_close.argtypes = [pointer]
    stub.stub_caller.restype = pointer
    stub.stub_caller.argtypes = [pointer, text, text, size, pointer, pointer, size]
    stub.stub_caller_free.restype = None
    stub.stub_caller_free.argtypes = [pointer]
    stub.stub_infer.restype = ctypes.c_int
    stub.stub_infer.argtypes = [pointer]
    return stub


@functools.cache
def _built() -> Path:
    """Return the library's file, built when its sources or the system's gRPC have changed."""
    if not all(map(shutil.which, ("pkg-config", "protoc", "grpc_cpp_plugin"))):
        raise NoStub(f"gRPC for C++ is not installed (Debian: apt-get install {_PACKAGES})")
    release = _run("pkg-config", "--modversion", "grpc++", "protobuf")
    flags = _run("pkg-config", "--cflags", "--libs", "grpc++", "protobuf").split()
    sources = [Path(__file__), HERE / "cpp_stub.cpp", *sorted(PROTOS.glob("*.proto"))]
    contents = b"".join(path.read_bytes() for path in sources) + release.encode()
    path = BUILD / f"cpp_stub-{hashlib.sha256(contents).hexdigest()[:16]}.so"
    if not path.exists():
        _build(path, flags)
    return path


def _build(path: Path, flags: list[str]) -> None:
    print("Building the C++ contender: half a minute, the first time.", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        _run(
            "protoc",
            f"--proto_path={PROTOS}",
            f"--cpp_out={scratch}",
            f"--grpc_out={scratch}",
            f"--plugin=protoc-gen-grpc={shutil.which('grpc_cpp_plugin')}",
            *(str(proto) for proto in sorted(PROTOS.glob("*.proto"))),
        )
        built = Path(scratch, "stub.so")
        _run(
            os.environ.get("CXX", "c++"),
            "-std=c++17",
            "-O2",
            "-shared",
            "-fPIC",
            f"-I{scratch}",
            str(HERE / "cpp_stub.cpp"),
            *sorted(map(str, Path(scratch).glob("*.cc"))),
            "-o",
            str(built),
            *flags,
        )
        built.replace(path)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NoStub(f"{command[0]} is not installed") from error
    if done.returncode:
        # The first line with "error" in it, or else the first: enough to know what to look for.
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        said = next((line for line in lines if "error" in line.lower()), lines[0])
        raise NoStub(f"{command[0]} failed: {said.strip()}")
    return done.stdout
