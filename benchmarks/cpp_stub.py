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


class NoStub(Exception):
    """The contender cannot be built here; says what is missing."""


@functools.cache
def library() -> ctypes.CDLL:
    """Return the built library.

    Raises
    ------
    NoStub
        If the system has no gRPC for C++, or it does not build.
    """
    plugin = shutil.which("grpc_cpp_plugin")
    if not plugin or not shutil.which("protoc") or not shutil.which("pkg-config"):
        raise NoStub(
            "no C++ contender: install gRPC for C++ (Debian: apt-get install libgrpc++-dev "
            "protobuf-compiler-grpc pkg-config)"
        )
    sources = [HERE / "cpp_stub.cpp", *sorted(PROTOS.glob("*.proto"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    path = BUILD / f"cpp_stub-{digest}.so"
    if not path.exists():
        _build(plugin, path)
    stub = ctypes.CDLL(str(path))
    stub.stub_open.restype = ctypes.c_void_p
    stub.stub_open.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64]
    stub.stub_infer.restype = ctypes.c_int64
    stub.stub_infer.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_void_p,
        ctypes.c_int64,
    ]
    stub.stub_close.restype = None
    stub.stub_close.argtypes = [ctypes.c_void_p]
    return stub


def _build(plugin: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        protos = ["inference.proto", "model_config.proto"]
        _run(
            [
                "protoc",
                f"--proto_path={PROTOS}",
                f"--cpp_out={scratch}",
                f"--grpc_out={scratch}",
                f"--plugin=protoc-gen-grpc={plugin}",
                *protos,
            ]
        )
        flags = _run(["pkg-config", "--cflags", "--libs", "grpc++", "protobuf"]).split()
        generated = sorted(str(source) for source in Path(scratch).glob("*.cc"))
        built = Path(scratch, "stub.so")
        _run(
            [
                os.environ.get("CXX", "c++"),
                "-std=c++17",
                "-O2",
                "-shared",
                "-fPIC",
                f"-I{scratch}",
                str(HERE / "cpp_stub.cpp"),
                *generated,
                "-o",
                str(built),
                *flags,
            ]
        )
        built.replace(path)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoStub(f"no C++ contender: {command[0]} failed:\n{done.stderr[-2000:]}")
    return done.stdout
