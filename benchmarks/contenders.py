"""The contenders: each makes the same inference in its own way, behind one interface.

A new one is one class with a `name` and a `call`, and its place in `CONTENDERS`. Libraries are
imported when a contender is made, so that a process with one contender in it loads no other's.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import cpp_stub
import numpy as np

import triton_fast
from triton_fast.messages import message_class, method_path

INPUT = "INPUT0"
OUTPUT = "OUTPUT0"

_MODELS = {"FP32": "identity_cpp", "BYTES": "identity_cpp_bytes"}


@dataclass(frozen=True)
class Addresses:
    """Where the server is reached."""

    grpc: str
    http: str


@dataclass(frozen=True)
class Case:
    """What is sent and comes back: one tensor. `group` is what the contenders compete in."""

    group: str
    datatype: Literal["FP32", "BYTES"]
    array: np.ndarray[Any, Any]

    @property
    def model(self) -> str:
        return _MODELS[self.datatype]

    @property
    def payload(self) -> bytes:
        """The tensor as it travels."""
        if self.datatype == "BYTES":
            return b"".join(struct.pack("<I", len(text)) + text for text in self.array.flat)
        return self.array.tobytes()

    def decoded(self, payload: bytes) -> np.ndarray[Any, Any]:
        """Return the array that a payload stands for; slow, independent of what is measured."""
        if self.datatype == "FP32":
            return np.frombuffer(payload, np.float32).reshape(self.array.shape)
        texts = []
        while payload:
            (length,) = struct.unpack_from("<I", payload)
            texts.append(payload[4 : 4 + length])
            payload = payload[4 + length :]
        return np.array(texts, np.object_).reshape(self.array.shape)


def numbers(byte_size: int, group: str) -> Case:
    """Return a case of FP32, of `byte_size` bytes."""
    rng = np.random.default_rng(byte_size)
    return Case(group, "FP32", rng.standard_normal(byte_size // 4, np.float32))


def strings(count: int, length: int, group: str) -> Case:
    """Return a case of BYTES, of `count` strings of `length` bytes."""
    rng = np.random.default_rng(count)
    letters = rng.integers(ord("a"), ord("z") + 1, (count, length), np.uint8)
    return Case(group, "BYTES", np.array([row.tobytes() for row in letters], np.object_))


class Contender(ABC):
    """One way to make the inference.

    Parameters
    ----------
    server : Addresses
        A server that has the identity models.
    case : Case
        What to send.
    """

    name: ClassVar[str]
    """What reports call it."""

    datatypes: ClassVar[frozenset[str]] = frozenset({"FP32", "BYTES"})
    """What it can send."""

    needs_server: ClassVar[bool] = True

    @classmethod
    def missing(cls) -> str | None:
        """Return why it cannot compete here, in one line; None if it can."""
        return None

    @abstractmethod
    def __init__(self, server: Addresses, case: Case) -> None: ...

    @abstractmethod
    def call(self) -> Any:
        """Make the inference once, from the array to the answer. This is what is timed."""

    def caller(self) -> Callable[[], Any]:
        """Return what one thread of several calls, all of them at the same time."""
        return self.call

    def answer(self, received: Any) -> np.ndarray[Any, Any]:
        """Return the array in what `call` gave. Not timed."""
        return received  # type: ignore[no-any-return]

    def close(self) -> None:  # noqa: B027 - most have something to give back, not all
        """Give everything back."""


class TritonFast(Contender):
    """`Client.infer` over the native channel, as in the first lines of the README."""

    name = "triton_fast"
    channel: ClassVar[Literal["native", "grpc"]] = "native"
    busy_poll: ClassVar[float] = 0.0

    def __init__(self, server: Addresses, case: Case) -> None:
        self._client = triton_fast.Client(
            server.grpc, channel=self.channel, busy_poll=self.busy_poll
        )
        self._model = case.model
        self._array = case.array

    def call(self) -> Any:
        return self._client.infer(self._model, {INPUT: self._array})[OUTPUT]

    def close(self) -> None:
        self._client.close()


class TritonFastModel(TritonFast):
    """The callable that `Client.model` gives."""

    name = "triton_fast, model()"

    def __init__(self, server: Addresses, case: Case) -> None:
        super().__init__(server, case)
        self._handle = self._client.model(case.model)

    def call(self) -> Any:
        return self._handle({INPUT: self._array})[OUTPUT]


class TritonFastOut(TritonFast):
    """`Client.infer` into an array of the caller's."""

    name = "triton_fast, out="
    datatypes = frozenset({"FP32"})

    def __init__(self, server: Addresses, case: Case) -> None:
        super().__init__(server, case)
        self._out = np.full_like(case.array, np.nan)

    def call(self) -> Any:
        return self._client.infer(self._model, {INPUT: self._array}, out={OUTPUT: self._out})[
            OUTPUT
        ]


class TritonFastPolling(TritonFast):
    """`Client.infer`, which asks for the answer for a while before it sleeps."""

    name = "triton_fast, busy_poll"
    busy_poll = 50e-6


class TritonFastGrpcio(TritonFast):
    """`Client.infer` over the grpcio channel."""

    name = "triton_fast, grpcio channel"
    channel = "grpc"


class CppStub(Contender):
    """gRPC's stub for C++; see cpp_stub.cpp. Each call is one call of a C function."""

    name = "C++ stub"
    datatypes = frozenset({"FP32"})

    @classmethod
    def missing(cls) -> str | None:
        return cpp_stub.missing()

    def __init__(self, server: Addresses, case: Case) -> None:
        self._library = cpp_stub.library()
        self._stub = self._library.stub_open(server.grpc.encode())
        self._case = case
        self._handles: list[int] = []
        self._call = self.caller()

    def call(self) -> Any:
        return self._call()

    def caller(self) -> Callable[[], Any]:
        # Threads share the stub, not the messages.
        array = self._case.array
        answer = np.full_like(array, np.nan)
        handle = self._library.stub_caller(
            self._stub,
            self._case.model.encode(),
            self._case.datatype.encode(),
            array.size,
            array.ctypes.data,
            answer.ctypes.data,
            array.nbytes,
        )
        self._handles.append(handle)
        infer = self._library.stub_infer

        def call() -> Any:
            status = infer(handle)
            if status:
                raise RuntimeError(f"the C++ stub failed with status {status}")
            return answer

        return call

    def close(self) -> None:
        while self._handles:
            self._library.stub_caller_free(self._handles.pop())
        self._library.stub_close(self._stub)


class TritonclientGrpc(Contender):
    """The official client, over gRPC."""

    name = "tritonclient.grpc"

    def __init__(self, server: Addresses, case: Case) -> None:
        import tritonclient.grpc

        self._library = tritonclient.grpc
        self._client = tritonclient.grpc.InferenceServerClient(server.grpc)
        self._case = case

    def call(self) -> Any:
        array = self._case.array
        tensor = self._library.InferInput(INPUT, array.shape, self._case.datatype)
        tensor.set_data_from_numpy(array)
        return self._client.infer(self._case.model, [tensor]).as_numpy(OUTPUT)

    def close(self) -> None:
        self._client.close()


class TritonclientHttp(TritonclientGrpc):
    """The official client, over HTTP, with tensors in binary."""

    name = "tritonclient.http"

    def __init__(self, server: Addresses, case: Case) -> None:
        import tritonclient.http

        self._library = tritonclient.http
        self._client = tritonclient.http.InferenceServerClient(server.http)
        self._case = case


class GrpcioBytes(Contender):
    """grpcio alone: a message made beforehand goes out, and the answer stays bytes."""

    name = "grpcio, ready-made bytes"

    def __init__(self, server: Addresses, case: Case) -> None:
        import grpc

        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(server.grpc, unlimited)
        self._infer = self._channel.unary_unary(method_path("ModelInfer"))
        request: Any = message_class("ModelInferRequest")(model_name=case.model)
        request.inputs.add(name=INPUT, datatype=case.datatype, shape=case.array.shape)
        request.raw_input_contents.append(case.payload)
        self._request = request.SerializeToString()
        self._case = case

    def call(self) -> Any:
        return self._infer(self._request)

    def answer(self, received: Any) -> np.ndarray[Any, Any]:
        response: Any = message_class("ModelInferResponse").FromString(received)
        return self._case.decoded(response.raw_output_contents[0])

    def close(self) -> None:
        self._channel.close()


class Memcpy(Contender):
    """The floor: the payload copied once, and no server."""

    name = "one memcpy"
    needs_server = False

    def __init__(self, server: Addresses, case: Case) -> None:
        self._source = np.frombuffer(case.payload, np.uint8)
        self._destination = np.zeros_like(self._source)
        self._case = case

    def call(self) -> Any:
        np.copyto(self._destination, self._source)
        return self._destination

    def answer(self, received: Any) -> np.ndarray[Any, Any]:
        return self._case.decoded(received.tobytes())


CONTENDERS: tuple[type[Contender], ...] = (
    TritonFast,
    TritonFastModel,
    TritonFastOut,
    TritonFastPolling,
    TritonFastGrpcio,
    CppStub,
    TritonclientGrpc,
    TritonclientHttp,
    GrpcioBytes,
    Memcpy,
)
"""In the order of the tables."""


def present(classes: tuple[type[Contender], ...] = CONTENDERS) -> list[type[Contender]]:
    """Return those that can compete here."""
    return [cls for cls in classes if cls.missing() is None]


def contender_class(name: str) -> type[Contender]:
    return next(cls for cls in CONTENDERS if cls.name == name)


def verify(contender: Contender, case: Case, received: Any) -> None:
    """Hold what a call gave against what was sent, value for value."""
    answer = contender.answer(received)
    if (
        answer.shape != case.array.shape
        or answer.dtype != case.array.dtype
        or not np.array_equal(answer, case.array)
    ):
        raise AssertionError(f"{contender.name} gave a wrong answer to {case.group}")
