"""AsyncClient, the face for coroutines: the names of `triton_fast.Client`, to be awaited.

Turns arguments into prepared requests and call options. Imports neither grpc nor protobuf.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from ..channels.base import Compression
from ..channels.factory import async_channel_factory, channel_factory
from ..inference.request import UNSET, Outputs, PreparedCalls, prepare, prepare_streamed
from ..inference.result import InferResult
from ..management.server import (
    model_config,
    model_metadata,
    model_ready,
    server_live,
    server_metadata,
    server_ready,
)
from ..options.headers import HeaderSource, checked_headers
from ..protocol.operations import Query
from ..shared_memory.sharing import shared_factory
from .admission import Admission
from .attempt import Out
from .call_settings import CallSettings
from .endpoint_async import AsyncEndpoint, AsyncHeaderHook
from .model_async import AsyncModel

if TYPE_CHECKING:
    import numpy as np

    from ..management.health import Health
    from ..management.metadata import ModelConfig, ModelMetadata, ServerMetadata
    from ..options.keepalive import Keepalive
    from ..options.tls import TLS
    from ..shared_memory.regions_async import AsyncRegions
    from ..streaming.sequence_async import AsyncInferSequence
    from ..streaming.stream_async import AsyncResponseStream, AsyncStream
    from ..text.generation_async import AsyncGeneration
    from ..text.mappings import TextMapping
    from ..text.text_request import KnownTextModels

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient:
    """A client of one Triton (or other KServe v2) server, for coroutines.

    Parameters
    ----------
    url, timeout, channel, headers, compression, tls, keepalive, channel_options, shared_memory,
    shared_memory_limit
        As in `triton_fast.Client`. ``channel="native"`` is HTTP/2 in the event loop itself,
        ``"grpc"`` is grpc.aio.
    header_hook : callable or coroutine function, optional
        Called with a description of each call; returns headers to send with it, or None.
    max_in_flight : int, default 1024
        How many calls may be on their way at a time. Further ones wait their turn, up to their
        deadlines. Streams do not count.
    max_in_flight_bytes : int, bytes, default 1 GiB
        How much their inputs may have together.

    Raises
    ------
    InvalidOption
        If an argument makes no sense.

    Notes
    -----
    Constructing one opens nothing and needs no running loop. It belongs to the event loop of its
    first call until that loop is closed; any number of that loop's tasks may use it. Inputs are
    sent from where they lie: leave them alone until the call has returned. Cancelling a task that
    waits for a call cancels the call on the server. After ``os.fork`` the child may use it in a
    loop of its own.

    Examples
    --------
    >>> async with AsyncClient("localhost:8001") as client:  # doctest: +SKIP
    ...     result = await client.infer("densenet", {"data_0": image})
    ...     scores = result["fc6_1"]
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float | None = None,
        channel: Literal["auto", "native", "grpc"] = "auto",
        headers: HeaderSource | None = None,
        header_hook: AsyncHeaderHook | None = None,
        compression: Compression | None = None,
        tls: TLS | bool | None = None,
        keepalive: Keepalive | None = None,
        channel_options: Mapping[str, Any] | None = None,
        shared_memory: bool | Literal["auto"] = "auto",
        shared_memory_limit: int = 1 << 30,
        max_in_flight: int = 1024,
        max_in_flight_bytes: int = 1 << 30,
    ) -> None:
        self._endpoint = AsyncEndpoint(
            url,
            async_channel_factory(
                url, channel, tls=tls, keepalive=keepalive, options=channel_options
            ),
            CallSettings(
                timeout=timeout,
                headers=headers,
                header_hook=header_hook,
                compression=compression,
            ),
            lambda: Admission(max_in_flight, max_in_flight_bytes),
            shared_factory(url, shared_memory, shared_memory_limit),
            channel_factory(
                url, channel, tls=tls, keepalive=keepalive, busy_poll=0.0, options=channel_options
            ),
        )
        self._prepared = PreparedCalls()
        self._text_models: KnownTextModels = {}

    @classmethod
    def from_env(
        cls,
        prefix: str = "TRITON_FAST_",
        environ: Mapping[str, str] | None = None,
        **overrides: Any,
    ) -> Self:
        """Return a client with the settings that environment variables have.

        As `triton_fast.Client.from_env`; what ``BUSY_POLL`` says is for that one alone.
        """
        from ..options.environment import settings_from_environment  # noqa: PLC0415 - for those who do

        settings = settings_from_environment(prefix, environ, overrides)
        if "busy_poll" not in overrides:
            settings.pop("busy_poll", None)
        return cls(**settings)

    @property
    def url(self) -> str:
        """The server's address, as given."""
        return self._endpoint.url

    @property
    def shared_memory(self) -> AsyncRegions:
        """The shared memory regions that the server knows."""
        from ..shared_memory.regions_async import AsyncRegions  # noqa: PLC0415 - management only

        return AsyncRegions(self._ask)

    async def empty(self, shape: int | Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        """Return an array in memory that is shared with the server; see `Client.empty`."""
        return await self._endpoint.empty(shape, dtype)

    async def close(self) -> None:
        """Give the connections back. Calls that are running end with `ClosedError`. Idempotent."""
        await self._endpoint.close()

    async def aclose(self) -> None:
        """Do as `close`: `contextlib.aclosing` asks for this name."""
        await self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.url!r}{', closed' if self._endpoint.closed else ''})"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "an AsyncClient holds a connection; make one in the other process from its url"
        )

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        outputs: Outputs | None = None,
        model_version: str = "",
        request_id: str = "",
        parameters: Mapping[str, Any] | None = None,
        priority: int = 0,
        queue_timeout: float | None = None,
        timeout: float | None = UNSET,
        headers: HeaderSource | None = None,
        compression: Compression | None = UNSET,
        out: Out | None = None,
        split: bool = False,
    ) -> InferResult:
        """Run a model and wait for its answer.

        Parameters, result and errors are those of `triton_fast.Client.infer`.
        """
        prepared = self._prepared.get(
            model, model_version, outputs, parameters, priority, queue_timeout
        )
        options = await self._endpoint.options(prepared.call, timeout, headers, compression)
        if split:
            from .split_async import infer_split  # noqa: PLC0415 - for those who split

            return await infer_split(self._endpoint, prepared, inputs, request_id, options, out)
        return await self._endpoint.infer(prepared, inputs, request_id, options, out)

    def stream(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        outputs: Outputs | None = None,
        model_version: str = "",
        request_id: str = "",
        parameters: Mapping[str, Any] | None = None,
        priority: int = 0,
        queue_timeout: float | None = None,
        timeout: float | None = UNSET,
        headers: HeaderSource | None = None,
    ) -> AsyncResponseStream:
        """Return the answers of a model that may give many; see `triton_fast.Client.stream`.

        The request is made when the first answer is asked for, and ``timeout`` counts from then
        on. It has a call to itself, among others on a connection, and is read no faster than its
        answers are taken.

        Returns
        -------
        AsyncResponseStream
            An asynchronous iterator of `InferResult`. Closing it early, leaving its ``async with``
            block, or cancelling the task that waits for an answer cancels the request on the
            server.
        """
        from ..streaming.stream_async import AsyncResponseStream  # noqa: PLC0415 - imported on use

        prepared = prepare_streamed(
            model, model_version, outputs, parameters, priority, queue_timeout
        )
        stream = self._endpoint.open_stream(prepared.call, timeout, headers, 1 << 30)
        return AsyncResponseStream(lambda: stream, prepared, inputs, request_id, None, own=True)

    def open_stream(
        self,
        *,
        timeout: float | None = UNSET,
        headers: HeaderSource | None = None,
        buffer_size: int = 64 << 20,
    ) -> AsyncStream:
        """Return a stream that many requests share; see `triton_fast.Client.open_stream`."""
        return self._endpoint.open_stream("ModelStreamInfer", timeout, headers, buffer_size)

    def sequence(
        self,
        model: str,
        *,
        sequence_id: int | str | None = None,
        model_version: str = "",
        outputs: Outputs | None = None,
        parameters: Mapping[str, Any] | None = None,
        priority: int = 0,
        queue_timeout: float | None = None,
        timeout: float | None = UNSET,
        headers: HeaderSource | None = None,
        stream: bool = True,
    ) -> AsyncInferSequence:
        """Return a sequence of requests to a model that keeps state between them.

        As `triton_fast.Client.sequence`, to be used in ``async with``.
        """
        from ..streaming.sequence_async import AsyncInferSequence  # noqa: PLC0415 - for those who do
        from ..streaming.sequence_requests import SequenceRequests  # noqa: PLC0415

        requests = SequenceRequests(
            model,
            model_version,
            outputs,
            parameters,
            priority,
            queue_timeout,
            sequence_id,
            streamed=stream,
        )
        sent = checked_headers(headers)
        shared = self.open_stream(timeout=None, headers=sent) if stream else None
        return AsyncInferSequence(self._endpoint, requests, shared, timeout, sent)

    def generate(
        self,
        model: str,
        prompt: str,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        options: Mapping[str, Any] | None = None,
        mapping: TextMapping | None = None,
        model_version: str = "",
        request_id: str = "",
        parameters: Mapping[str, Any] | None = None,
        priority: int = 0,
        queue_timeout: float | None = None,
        timeout: float | None = UNSET,
        headers: HeaderSource | None = None,
    ) -> AsyncGeneration:
        """Have a model generate text, and iterate over events; see `triton_fast.Client.generate`.

        Returns
        -------
        AsyncGeneration
            An asynchronous iterator and context manager.
        """
        from ..text.generation_async import AsyncGeneration  # noqa: PLC0415 - for those who do
        from ..text.text_request import TextRequest  # noqa: PLC0415

        request = TextRequest(
            model,
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop,
            options=options,
            mapping=mapping,
            model_version=model_version,
            request_id=request_id,
            parameters=parameters,
            priority=priority,
            queue_timeout=queue_timeout,
            timeout=timeout,
            headers=headers,
        )
        return AsyncGeneration(self, self._text_models, request)

    def model(
        self,
        name: str,
        version: str = "",
        *,
        outputs: Outputs | None = None,
        parameters: Mapping[str, Any] | None = None,
        priority: int = 0,
        queue_timeout: float | None = None,
    ) -> AsyncModel:
        """Return a coroutine function for one model; see `triton_fast.Client.model`."""
        prepared = prepare(name, version, outputs, parameters, priority, queue_timeout)
        return AsyncModel(self._endpoint, prepared)

    async def health(
        self, *, timeout: float | None = 5.0, headers: HeaderSource | None = None
    ) -> Health:
        """Return how the server and its models are, as a value; see `triton_fast.Client.health`."""
        from ..management.health_check_async import check_health_async  # noqa: PLC0415 - management only

        return await check_health_async(self._endpoint, timeout, headers)

    async def is_live(
        self, *, timeout: float | None = UNSET, headers: HeaderSource | None = None
    ) -> bool:
        """Return whether the server is up; see `triton_fast.Client.is_live`."""
        return await self._ask(server_live(), timeout, headers)

    async def is_ready(
        self, *, timeout: float | None = UNSET, headers: HeaderSource | None = None
    ) -> bool:
        """Return whether the server takes requests; see `is_live`."""
        return await self._ask(server_ready(), timeout, headers)

    async def is_model_ready(
        self,
        name: str,
        version: str = "",
        *,
        timeout: float | None = UNSET,
        headers: HeaderSource | None = None,
    ) -> bool:
        """Return whether a model takes requests; see `triton_fast.Client.is_model_ready`."""
        return await self._ask(model_ready(name, version), timeout, headers)

    async def server_metadata(
        self, *, timeout: float | None = UNSET, headers: HeaderSource | None = None
    ) -> ServerMetadata:
        """Return the server's name, version and extensions."""
        return await self._ask(server_metadata(), timeout, headers)

    async def model_metadata(
        self,
        name: str,
        version: str = "",
        *,
        timeout: float | None = UNSET,
        headers: HeaderSource | None = None,
    ) -> ModelMetadata:
        """Return what a model takes and gives; see `triton_fast.Client.model_metadata`."""
        metadata = await self._ask(model_metadata(name, version), timeout, headers)
        self._endpoint.signatures.remember(metadata, name, version)
        return metadata

    async def model_config(
        self,
        name: str,
        version: str = "",
        *,
        timeout: float | None = UNSET,
        headers: HeaderSource | None = None,
    ) -> ModelConfig:
        """Return how the server is set up to run a model."""
        return await self._ask(model_config(name, version), timeout, headers)

    async def _ask(
        self,
        query: Query[T],
        timeout: float | None = UNSET,
        headers: HeaderSource | None = None,
    ) -> T:
        options = await self._endpoint.options(query.call, timeout, headers)
        return await self._endpoint.ask(query, options)
