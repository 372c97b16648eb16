"""The contenders in streams: each asks a decoupled model for so many small answers, and takes them.

The model is `square_int32`: to the number n it gives n answers, each of them n.
"""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from contenders import Addresses
from report import AIO, ASYNC, ASYNC_GRPCIO, BASELINE, GRPCIO, OURS

import triton_fast

MODEL = "square_int32"
INPUT = "IN"
OUTPUT = "OUT"

_clock = time.perf_counter


@dataclass(frozen=True)
class Asked:
    """One request, and its answers.

    Attributes
    ----------
    start, first, end : float, seconds
        Of the clock: before the request, when the first answer's array was there, and the last's.
    arrays : list of numpy.ndarray
        The answers.
    """

    start: float
    first: float
    end: float
    arrays: list[np.ndarray[Any, Any]]

    def verify(self, name: str, count: int) -> None:
        """Hold the answers against the model, value for value."""
        if len(self.arrays) != count or not (np.concatenate(self.arrays) == count).all():
            raise AssertionError(f"{name} gave wrong answers, or not {count} of them")


class StreamContender(ABC):
    """One way to ask. Made and used in the main thread, where no event loop runs."""

    name: ClassVar[str]
    """What reports call it."""

    @abstractmethod
    def __init__(self, server: Addresses, loop: asyncio.AbstractEventLoop) -> None: ...

    @abstractmethod
    def ask(self, number: np.ndarray[Any, Any]) -> Asked:
        """Make a request, and take its answers, each as an array."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""


class TritonFastStream(StreamContender):
    """`Client.stream`: a call for the request."""

    name = OURS
    channel: ClassVar[Literal["native", "grpc"]] = "native"

    def __init__(self, server: Addresses, loop: asyncio.AbstractEventLoop) -> None:
        self._client = triton_fast.Client(server.grpc, channel=self.channel)

    def _responses(self, inputs: dict[str, Any]) -> Iterator[triton_fast.InferResult]:
        return self._client.stream(MODEL, inputs)

    def ask(self, number: np.ndarray[Any, Any]) -> Asked:
        start = _clock()
        responses = self._responses({INPUT: number})
        arrays = [next(responses)[OUTPUT]]
        first = _clock()
        arrays += [response[OUTPUT] for response in responses]
        return Asked(start, first, _clock(), arrays)

    def close(self) -> None:
        self._client.close()


class TritonFastStreamGrpcio(TritonFastStream):
    """The same over the grpcio channel."""

    name = GRPCIO
    channel = "grpc"


class TritonFastOpenStream(TritonFastStream):
    """Requests that share a call, as those of tritonclient.grpc do."""

    name = "triton_fast, open_stream()"

    def __init__(self, server: Addresses, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server, loop)
        self._stream = self._client.open_stream()

    def _responses(self, inputs: dict[str, Any]) -> Iterator[triton_fast.InferResult]:
        return self._stream.stream(MODEL, inputs)

    def close(self) -> None:
        self._stream.close()
        super().close()


class AsyncTritonFastStream(StreamContender):
    """`AsyncClient.stream`."""

    name = ASYNC
    channel: ClassVar[Literal["native", "grpc"]] = "native"

    def __init__(self, server: Addresses, loop: asyncio.AbstractEventLoop) -> None:
        self._client = triton_fast.AsyncClient(server.grpc, channel=self.channel)
        self._loop = loop

    def ask(self, number: np.ndarray[Any, Any]) -> Asked:
        return self._loop.run_until_complete(self._ask(number))

    async def _ask(self, number: np.ndarray[Any, Any]) -> Asked:
        start = _clock()
        responses = self._client.stream(MODEL, {INPUT: number})
        arrays = [(await anext(responses))[OUTPUT]]
        first = _clock()
        arrays += [response[OUTPUT] async for response in responses]
        return Asked(start, first, _clock(), arrays)

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())


class AsyncTritonFastStreamGrpcio(AsyncTritonFastStream):
    """The same over grpcio's channel for coroutines."""

    name = ASYNC_GRPCIO
    channel = "grpc"


class TritonclientStream(StreamContender):
    """The official client: one stream for all requests, and a callback in a thread of its own.

    The callback is done when it has as many answers as it waits for, which is less than programs
    have to do that do not know how many will come.
    """

    name = BASELINE

    def __init__(self, server: Addresses, loop: asyncio.AbstractEventLoop) -> None:
        import tritonclient.grpc

        self._library = tritonclient.grpc
        self._client = tritonclient.grpc.InferenceServerClient(server.grpc)
        self._client.start_stream(self._on_answer)
        self._done = threading.Event()
        self._arrays: list[np.ndarray[Any, Any]] = []
        self._awaited = 0
        self._first = 0.0
        self._error: Exception | None = None

    def ask(self, number: np.ndarray[Any, Any]) -> Asked:
        self._arrays = []
        self._awaited = int(number[0])
        self._done.clear()
        start = _clock()
        tensor = self._library.InferInput(INPUT, number.shape, "INT32")
        tensor.set_data_from_numpy(number)
        self._client.async_stream_infer(MODEL, [tensor])
        self._done.wait()
        end = _clock()
        if self._error is not None:
            raise self._error
        return Asked(start, self._first, end, self._arrays)

    def _on_answer(self, result: Any, error: Exception | None) -> None:
        if error is not None:
            self._error = error
            self._done.set()
            return
        self._arrays.append(result.as_numpy(OUTPUT))
        if len(self._arrays) == 1:
            self._first = _clock()
        if len(self._arrays) == self._awaited:
            self._done.set()

    def close(self) -> None:
        self._client.stop_stream()
        self._client.close()


class TritonclientAioStream(StreamContender):
    """The official client for coroutines: a call for the request."""

    name = AIO

    def __init__(self, server: Addresses, loop: asyncio.AbstractEventLoop) -> None:
        import tritonclient.grpc.aio

        self._library = tritonclient.grpc.aio
        self._loop = loop
        self._client = loop.run_until_complete(self._made(server.grpc))

    async def _made(self, address: str) -> Any:
        return self._library.InferenceServerClient(address)

    def ask(self, number: np.ndarray[Any, Any]) -> Asked:
        return self._loop.run_until_complete(self._ask(number))

    async def _ask(self, number: np.ndarray[Any, Any]) -> Asked:
        start = first = _clock()
        arrays: list[np.ndarray[Any, Any]] = []
        async for result, error in self._client.stream_infer(self._requests(number)):
            if error is not None:
                raise error
            arrays.append(result.as_numpy(OUTPUT))
            if len(arrays) == 1:
                first = _clock()
        return Asked(start, first, _clock(), arrays)

    async def _requests(self, number: np.ndarray[Any, Any]) -> AsyncIterator[dict[str, Any]]:
        tensor = self._library.InferInput(INPUT, number.shape, "INT32")
        tensor.set_data_from_numpy(number)
        yield {"model_name": MODEL, "inputs": [tensor]}

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())


STREAMING: tuple[type[StreamContender], ...] = (
    TritonFastStream,
    TritonFastOpenStream,
    TritonFastStreamGrpcio,
    AsyncTritonFastStream,
    AsyncTritonFastStreamGrpcio,
    TritonclientStream,
    TritonclientAioStream,
)
"""In the order of the tables."""
