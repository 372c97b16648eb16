"""The import-direction rule holds, and each way to break it would be seen."""

from __future__ import annotations

import shutil
from pathlib import Path

from import_rules import violations

ROOT = Path(__file__).resolve().parents[2]

# Where a line is planted, the line, and what must be said of it.
PLANTED = {
    "upward": (
        "triton_fast/inference/tensor.py",
        "from ..client.client import Client",
        "inference.tensor imports client.client",
    ),
    "upward, the package": (
        "triton_fast/inference/tensor.py",
        "import triton_fast",
        "imports triton_fast",
    ),
    "upward, in a function": (
        "triton_fast/inference/result.py",
        "def f():\n    from ..client.endpoint import Endpoint",
        "inference.result imports client.endpoint",
    ),
    "upward, absolute": (
        "triton_fast/channels/base.py",
        "import triton_fast.client.endpoint",
        "channels.base imports client.endpoint",
    ),
    "upward, by name": (
        "triton_fast/management/metadata.py",
        "import importlib\nimportlib.import_module('triton_fast.client.model')",
        "management.metadata imports client.model",
    ),
    "upward, the room": (
        "triton_fast/streaming/demux.py",
        "from .. import client",
        "streaming.demux imports client",
    ),
    "apart": (
        "triton_fast/text/events.py",
        "from ..streaming.demux import Inbox",
        "text.events imports streaming.demux",
    ),
    "in a circle": (
        "triton_fast/inference/classification.py",
        "def f():\n    from .result import InferResult",
        "classification imports inference.result imports inference.classification, in a circle",
    ),
    "the core, a room": (
        "triton_fast/_core/__init__.py",
        "from ..inference.tensor import Tensor",
        "_core imports inference.tensor",
    ),
    "compiled, a room": (
        "triton_fast/_core/_wire.pyx",
        "from ..channels.base import Outgoing",
        "_core._wire imports channels.base",
    ),
    "compiled, absolute": (
        "triton_fast/_core/_wire.pyx",
        "from triton_fast.client.client import Client",
        "_core._wire imports client.client",
    ),
    "compiled, numpy": ("triton_fast/_core/_wire.pyx", "cimport numpy", "imports numpy"),
    "grpc": ("triton_fast/client/client.py", "import grpc", "only channels.grpcio.common may"),
    "grpc, inside": (
        "triton_fast/options/tls.py",
        "from grpc.experimental import insecure_channel_credentials",
        "only channels.grpcio.common may",
    ),
    "one channel, the other": (
        "triton_fast/channels/native/channel.py",
        "from ..grpcio.channel import GrpcChannel",
        "channels.native.channel imports channels.grpcio.channel",
    ),
    "protobuf": (
        "triton_fast/management/metadata.py",
        "from google import protobuf",
        "only protocol.messages may",
    ),
    "protobuf, in a function": (
        "triton_fast/channels/grpcio/channel.py",
        "def f():\n    from google.protobuf import message",
        "only protocol.messages may",
    ),
    "generated code": (
        "triton_fast/protocol/messages.py",
        "from . import inference_pb2",
        "imports triton_fast.protocol.inference_pb2",
    ),
    "another client": ("triton_fast/testing/server.py", "import tritonclient.http", "nothing may"),
    "the test server": (
        "triton_fast/client/client.py",
        "from ..testing import TritonServer",
        "client.client imports testing",
    ),
    "no room": ("triton_fast/novelty.py", "from .errors import WireError", "is in no room"),
    "Python.h": ("csrc/src/wire/strings.cpp", "#include <Python.h>", "knows no Python"),
    "wire knows shm": (
        "csrc/include/triton_fast/wire/varint.hpp",
        '#include "triton_fast/shm/mapping.hpp"',
        "not below it",
    ),
    "wire knows http2": (
        "csrc/src/wire/buffer.cpp",
        '  #  include "triton_fast/http2/session.hpp"',
        "not below it",
    ),
    "http2 knows wire": (
        "csrc/src/http2/session.cpp",
        '#include "triton_fast/wire/response_reader.hpp"',
        "not below it",
    ),
    "wire knows what joins it": (
        "csrc/src/wire/buffer.cpp",
        '#include "triton_fast/bridge.hpp"',
        "not below it",
    ),
    "what all share knows wire": (
        "csrc/include/triton_fast/span.hpp",
        '#include "triton_fast/wire/buffer.hpp"',
        "not below it",
    ),
}
ALLOWED = {
    "upward, for types": (
        "triton_fast/inference/request.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..client.client import *",
    ),
    "for types": (
        "triton_fast/client/client.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import grpc\n",
    ),
    "the channel's own": ("triton_fast/channels/grpcio/common.py", "import grpc"),
    "the messages' own": (
        "triton_fast/protocol/messages.py",
        "def f():\n    import google.protobuf.message",
    ),
    "inside testing": ("triton_fast/testing/server.py", "from .models import write_test_models"),
    "of channels, the choice": (
        "triton_fast/channels/factory.py",
        "def f():\n    from .native.channel import NativeChannel",
    ),
    "compiled, another's classes": (
        "triton_fast/_core/_http2.pyx",
        "from triton_fast._core._wire cimport Header",
    ),
    "inside the core": ("triton_fast/_core/_wire.pyx", "from . import _errors"),
    "what the parts share": (
        "csrc/include/triton_fast/wire/varint.hpp",
        '#include "triton_fast/error.hpp"',
    ),
    "what joins two parts": (
        "csrc/include/triton_fast/bridge.hpp",
        '#include "triton_fast/wire/buffer.hpp"\n#include "triton_fast/http2/session.hpp"',
    ),
    "inside wire": ("csrc/src/wire/buffer.cpp", '#include "triton_fast/wire/varint.hpp"'),
}


def test_imports_point_down():
    assert (ROOT / "triton_fast" / "client" / "client.py").is_file()
    assert (ROOT / "csrc" / "include" / "triton_fast" / "wire").is_dir()
    assert violations(ROOT) == []


def violations_with(folder: Path, lines: dict[str, tuple[str, ...]]) -> list[str]:
    """Return what is wrong with a copy of the source that has lines added to it, all at once."""
    for name in ("triton_fast", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=_no_sources)
    for path, line, *_ in lines.values():
        with (folder / path).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
    return violations(folder)


def _no_sources(_folder: str, names: list[str]) -> list[str]:
    skip = {"__pycache__", "corpus", "inference.descriptors"}
    return [name for name in names if name in skip or name.endswith(".so")]


def test_planted_imports_are_found(tmp_path):
    found = violations_with(tmp_path, PLANTED)
    for path, line, expected in PLANTED.values():
        assert any(one.startswith(f"{path}: ") and expected in one for one in found), line
    assert len(found) == len(PLANTED), found


def test_allowed_imports_are_not(tmp_path):
    assert violations_with(tmp_path, ALLOWED) == []
