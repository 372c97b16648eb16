"""The contenders: each makes the same inference in its own way, behind one interface.

A new one is one class with a `name` and a `call`, and its place in `CONTENDERS`. Libraries are
imported when a contender is made, so that a process with one contender in it loads no other's.
"""

from __future__ import annotations

import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

import cpp_stub
import numpy as np

import triton_fast
from triton_fast.protocol.messages import message_class, method_path

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
    """What is sent and comes back. `group` is what the contenders compete in.

    One tensor; where there is `second`, it goes along: see `several`.
    """

    group: str
    datatype: Literal["FP32", "BYTES"]
    array: np.ndarray[Any, Any]
    batched: bool = False
    second: np.ndarray[Any, Any] | None = None

    @property
    def model(self) -> str:
        if self.second is not None:
            return "identity_optional"
        return "identity_batched" if self.batched else _MODELS[self.datatype]

    @property
    def arrays(self) -> tuple[np.ndarray[Any, Any], ...]:
        return (self.array,) if self.second is None else (self.array, self.second)

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


def rows(count: int, length: int, group: str) -> Case:
    """Return a batch of FP32, of `length` elements each."""
    rng = np.random.default_rng(count)
    return Case(group, "FP32", rng.standard_normal((count, length), np.float32), True)


def images(count: int, side: int, group: str) -> Case:
    """Return a batch of RGB images of FP32."""
    return rows(count, 3 * side * side, group)


def labelled_images(count: int, side: int, group: str) -> Case:
    """Return a batch of images, and ten INT32 for each: two inputs and two outputs."""
    case = images(count, side, group)
    labels = np.random.default_rng(count).integers(-1000, 1000, (count, 10), np.int32)
    return Case(group, "FP32", case.array, True, labels)


def strings(count: int, length: int, group: str) -> Case:
    """Return a case of BYTES, of `count` strings of `length` bytes."""
    rng = np.random.default_rng(count)
    letters = rng.integers(ord("a"), ord("z") + 1, (count, length), np.uint8)
    return Case(group, "BYTES", np.array([row.tobytes() for row in letters], np.object_))


class Contender(ABC):
    """One way to make the inference. Those for coroutines are in `async_contenders`.

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

    def answer(self, received: Any) -> Any:
        """Return the array in what `call` gave, or a tuple of several. Not timed."""
        return received

    def close(self) -> None:  # noqa: B027 - most have something to give back, not all
        """Give everything back."""


class TritonFast(Contender):
    """`Client.infer` over the native channel, all of it on the wire."""

    name = "triton_fast"
    channel: ClassVar[Literal["native", "grpc"]] = "native"
    busy_poll: ClassVar[float] = 0.0
    shared_memory: ClassVar[bool] = False

    def __init__(self, server: Addresses, case: Case) -> None:
        self._client = triton_fast.Client(
            server.grpc,
            channel=self.channel,
            busy_poll=self.busy_poll,
            shared_memory=self.shared_memory,
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


class TritonFastShared(TritonFast):
    """`Client.infer` through shared memory, as in the first lines of the README."""

    name = "triton_fast, shared memory"
    datatypes = frozenset({"FP32"})
    shared_memory = True


class TritonFastSharedGrpcio(TritonFastShared):
    """The same over the grpcio channel."""

    name = "triton_fast, shared memory, grpcio channel"
    channel = "grpc"


class TritonFastSplit(TritonFastShared):
    """A list of samples, in pieces that the model takes."""

    name = "triton_fast, split"

    def __init__(self, server: Addresses, case: Case) -> None:
        super().__init__(server, case)
        self._samples = list(case.array)

    def call(self) -> Any:
        return self._client.infer(self._model, {INPUT: self._samples}, split=True)[OUTPUT]


class TritonFastSplitWire(TritonFastSplit):
    """The same without shared memory."""

    name = "triton_fast, split, wire"
    shared_memory = False


class TritonFastEmpty(TritonFastShared):
    """With an input that is in shared memory from the beginning."""

    name = "triton_fast, empty()"

    def __init__(self, server: Addresses, case: Case) -> None:
        super().__init__(server, case)
        self._array = self._client.empty(case.array.shape, case.array.dtype)
        self._array[...] = case.array


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


class TritonclientShared(TritonclientGrpc):
    """The official client with its helper for shared memory, one region each way, made once."""

    name = "tritonclient.grpc, shared memory"
    datatypes = frozenset({"FP32"})

    def __init__(self, server: Addresses, case: Case) -> None:
        super().__init__(server, case)
        from tritonclient.utils import shared_memory

        self._memory = shared_memory
        self._regions = {}
        for end in (INPUT, OUTPUT):
            key = f"/bench-{os.getpid()}-{id(self)}-{end}"
            byte_size = sum(array.nbytes for array in case.arrays)
            self._regions[end] = shared_memory.create_shared_memory_region(key, key, byte_size)
            self._client.register_system_shared_memory(key, key, byte_size)
        self._keys = {end: f"/bench-{os.getpid()}-{id(self)}-{end}" for end in self._regions}

    def call(self) -> Any:
        array = self._case.array
        self._memory.set_shared_memory_region(self._regions[INPUT], [array])
        tensor = self._library.InferInput(INPUT, array.shape, self._case.datatype)
        tensor.set_shared_memory(self._keys[INPUT], array.nbytes)
        output = self._library.InferRequestedOutput(OUTPUT)
        output.set_shared_memory(self._keys[OUTPUT], array.nbytes)
        answer = self._client.infer(self._case.model, [tensor], outputs=[output])
        described = answer.get_output(OUTPUT)
        return self._memory.get_contents_as_numpy(
            self._regions[OUTPUT], array.dtype, list(described.shape)
        )

    def close(self) -> None:
        for end, region in self._regions.items():
            self._client.unregister_system_shared_memory(self._keys[end])
            self._memory.destroy_shared_memory_region(region)
        super().close()


class TritonShmClient(Contender):
    """The package triton-shm-client: a pool for each model, of shapes that are told beforehand."""

    name = "triton_shm_client"
    datatypes = frozenset({"FP32"})

    @classmethod
    def missing(cls) -> str | None:
        if find_spec("triton_shm_client") is None:
            return "it is not installed (pip install --no-deps triton-shm-client)"
        return None

    def __init__(self, server: Addresses, case: Case) -> None:
        import triton_shm_client

        self._client = triton_shm_client.TritonSHMClient(server.grpc)
        inputs, outputs = (
            [
                (f"{end}{index}", array.shape[1:], array.dtype.type)
                for index, array in enumerate(case.arrays)
            ]
            for end in ("INPUT", "OUTPUT")
        )
        self._client.register_shm_model(case.model, inputs, outputs, max_batch_size=8, pool_size=4)
        self._model = case.model
        self._samples = list(case.array)

    def call(self) -> Any:
        return self._client.infer_shm(self._model, {INPUT: self._samples})[OUTPUT]

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

    def answer(self, received: Any) -> Any:
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

    def answer(self, received: Any) -> Any:
        return self._case.decoded(received.tobytes())


class MemcpyAndCall(Memcpy):
    """What is left when only the model copies: its memcpy, and a call with 64 bytes."""

    name = "one memcpy and a 64 B call"
    needs_server = True

    def __init__(self, server: Addresses, case: Case) -> None:
        super().__init__(server, case)
        self._small = TritonFast(server, numbers(64, "64 B"))

    def call(self) -> Any:
        self._small.call()
        return super().call()

    def close(self) -> None:
        self._small.close()


CONTENDERS: tuple[type[Contender], ...] = (
    TritonFast,
    TritonFastModel,
    TritonFastOut,
    TritonFastPolling,
    TritonFastGrpcio,
    TritonFastShared,
    TritonFastEmpty,
    TritonFastSharedGrpcio,
    CppStub,
    TritonclientGrpc,
    TritonclientShared,
    TritonclientHttp,
    GrpcioBytes,
    Memcpy,
)
"""In the order of the tables."""

LARGE: tuple[type[Contender], ...] = (*CONTENDERS, MemcpyAndCall)
"""Where a call costs little beside the tensor."""

BATCH: tuple[type[Contender], ...] = (
    TritonFast,
    TritonFastShared,
    TritonFastEmpty,
    TritonFastSharedGrpcio,
    TritonclientGrpc,
    TritonclientShared,
    TritonShmClient,
)
"""Those that send a batch that the model takes at once."""

SPLIT: tuple[type[Contender], ...] = (TritonFastSplit, TritonFastSplitWire, TritonShmClient)
"""Those that cut a batch that it does not take."""


def present(classes: tuple[type[Contender], ...] = CONTENDERS) -> list[type[Contender]]:
    """Return those that can compete here."""
    return [cls for cls in classes if cls.missing() is None]


def contender_class(name: str) -> type[Contender]:
    return next(cls for cls in (*CONTENDERS, *SPLIT) if cls.name == name)


def verify(contender: Contender, case: Case, received: Any) -> None:
    """Hold what a call gave against what was sent, value for value."""
    answer = contender.answer(received)
    arrays = answer if isinstance(answer, tuple) else (answer,)
    for array, sent in zip(arrays, case.arrays, strict=True):
        if (
            array.shape != sent.shape
            or array.dtype != sent.dtype
            or not np.array_equal(array, sent)
        ):
            raise AssertionError(f"{contender.name} gave a wrong answer to {case.group}")
