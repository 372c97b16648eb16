"""The contenders for coroutines: each makes the same inference in its own way, on an event loop.

They are made, called and closed in a running loop.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
from contenders import INPUT, OUTPUT, Addresses, Case, Contender, verify
from report import AIO, ASYNC, ASYNC_GRPCIO, ASYNC_WIRE

import triton_fast


class AsyncContender(Contender):
    """One way to make the inference, as a coroutine."""

    @abstractmethod
    async def call(self) -> Any: ...

    async def aclose(self) -> None:
        """Give everything back."""


class AsyncTritonFast(AsyncContender):
    """`AsyncClient.infer` as it comes: shared memory for large tensors."""

    name = ASYNC
    channel: ClassVar[Literal["native", "grpc"]] = "native"
    shared_memory: ClassVar[bool | Literal["auto"]] = "auto"

    def __init__(self, server: Addresses, case: Case) -> None:
        self._client = triton_fast.AsyncClient(
            server.grpc, channel=self.channel, shared_memory=self.shared_memory
        )
        self._model = case.model
        self._array = case.array

    async def call(self) -> Any:
        return (await self._client.infer(self._model, {INPUT: self._array}))[OUTPUT]

    async def aclose(self) -> None:
        await self._client.close()


class AsyncTritonFastWire(AsyncTritonFast):
    """The same with all of it on the wire."""

    name = ASYNC_WIRE
    shared_memory = False


class AsyncTritonFastGrpcio(AsyncTritonFastWire):
    """The same over grpcio's channel for coroutines."""

    name = ASYNC_GRPCIO
    channel = "grpc"


class TritonclientAio(AsyncContender):
    """The official client for coroutines, over gRPC."""

    name = AIO
    headers: ClassVar[dict[str, str]] = {}

    def __init__(self, server: Addresses, case: Case) -> None:
        import tritonclient.grpc.aio

        self._library = tritonclient.grpc.aio
        self._client: Any = tritonclient.grpc.aio.InferenceServerClient(server.grpc)
        self._case = case

    async def call(self) -> np.ndarray[Any, Any]:
        array = self._case.array
        tensor = self._library.InferInput(INPUT, array.shape, self._case.datatype)
        tensor.set_data_from_numpy(array)
        answer = await self._client.infer(self._case.model, [tensor], headers=self.headers)
        received: np.ndarray[Any, Any] = answer.as_numpy(OUTPUT)
        return received

    async def aclose(self) -> None:
        await self._client.close()


class TritonclientHttpAio(TritonclientAio):
    """The official client for coroutines, over HTTP, with tensors in binary.

    It is told not to ask for compressed answers, as aiohttp does by itself: the server compresses
    600 KB for 20 ms then.
    """

    name = "tritonclient.http.aio"
    headers: ClassVar[dict[str, str]] = {"Accept-Encoding": "identity"}

    def __init__(self, server: Addresses, case: Case) -> None:
        import tritonclient.http.aio

        self._library = tritonclient.http.aio
        self._client = tritonclient.http.aio.InferenceServerClient(server.http)
        self._case = case


SMALL: tuple[type[AsyncContender], ...] = (
    AsyncTritonFast,
    AsyncTritonFastGrpcio,
    TritonclientAio,
    TritonclientHttpAio,
)
"""In the order of the tables, for tensors that go over the wire anyway."""

LARGE: tuple[type[AsyncContender], ...] = (AsyncTritonFast, AsyncTritonFastWire, *SMALL[1:])
"""Those, and one that does not use shared memory."""


async def made(
    classes: tuple[type[AsyncContender], ...], server: Addresses, case: Case, seed: int
) -> list[AsyncContender]:
    """Return contenders that are connected, and whose first answers were right."""
    contenders = []
    # None is always the first to connect.
    for index in np.random.default_rng(seed).permutation(len(classes)):
        contender = classes[index](server, case)
        verify(contender, case, await contender.call())
        contenders.append(contender)
    return contenders
