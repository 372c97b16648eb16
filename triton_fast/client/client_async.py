"""AsyncClient, the face for coroutines: the names of `triton_fast.Client`, to be awaited.

Owns how one is made, and how it streams; its calls are in calls_async.py. Imports neither grpc nor
protobuf.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

from ..channels.base import Compression
from ..channels.factory import async_channel_factory, channel_factory
from ..inference.request import Outputs, prepare_streamed
from ..options.headers import HeaderSource
from ..shared_memory.sharing import shared_factory
from . import calls_async
from .admission import Admission
from .call_settings import CallSettings
from .endpoint_async import AsyncEndpoint, AsyncHeaderHook

if TYPE_CHECKING:
    from ..options.keepalive import Keepalive
    from ..options.tls import TLS
    from ..streaming.stream_async import AsyncResponseStream, AsyncStream

__all__ = ["AsyncClient"]


class AsyncClient(calls_async.AsyncClient):
    """A client of one Triton (or other KServe v2) server, for coroutines.

    Parameters
    ----------
    url, timeout, channel, headers, compression, tls, keepalive, authority, channel_options,
    shared_memory, shared_memory_limit
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
    loop of its own. Can be pickled, as `triton_fast.Client` can.

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
        authority: str | None = None,
        channel_options: Mapping[str, Any] | None = None,
        shared_memory: bool | Literal["auto"] = "auto",
        shared_memory_limit: int = 1 << 30,
        max_in_flight: int = 1024,
        max_in_flight_bytes: int = 1 << 30,
    ) -> None:
        endpoint = AsyncEndpoint(
            url,
            async_channel_factory(
                url,
                channel,
                tls=tls,
                keepalive=keepalive,
                options=channel_options,
                authority=authority,
            ),
            CallSettings(
                timeout=timeout,
                headers=headers,
                header_hook=header_hook,
                compression=compression,
            ),
            partial(Admission, max_in_flight, max_in_flight_bytes),
            shared_factory(url, shared_memory, shared_memory_limit),
            channel_factory(
                url,
                channel,
                tls=tls,
                keepalive=keepalive,
                busy_poll=0.0,
                options=channel_options,
                authority=authority,
            ),
        )
        super().__init__(endpoint)

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
        from ..options.environment import settings_from_environment  # noqa: PLC0415 - imported on use

        settings = settings_from_environment(prefix, environ, overrides)
        if "busy_poll" not in overrides:
            settings.pop("busy_poll", None)
        return cls(**settings)

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
        timeout: float | None = None,
        headers: HeaderSource | None = None,
    ) -> AsyncResponseStream:
        """Run a model that may give many answers (a decoupled one), and iterate over them.

        Parameters
        ----------
        model, inputs, outputs, model_version, request_id, parameters, priority, queue_timeout,
        headers
            As in `infer`. Inputs may be changed once the first answer is there.
        timeout : float, seconds, optional
            When the last answer must have come, from when the first is asked for. The client's by
            default; infinity for no limit.

        Returns
        -------
        AsyncResponseStream
            An asynchronous iterator of `InferResult`. Closing it early, leaving its ``async with``
            block, or cancelling the task that waits for an answer cancels the request on the
            server.

        Raises
        ------
        InvalidOption, ClosedError
            As in `infer`.
        InvalidTensor, InvalidOption, ClosedError, ServerError
            As in `infer`, when an answer is asked for. The server gives no status with an error in
            a stream, so the subclass of `ServerError` is told from its text.

        Notes
        -----
        The request is made when the first answer is asked for. It has a call to itself, among
        others on a connection, and is read no faster than its answers are taken. Tensors go over
        the wire. Any model can be called so: one that is not decoupled gives one answer.

        Source
        ------
        inference.proto, ModelStreamInfer.
        """
        from ..streaming.stream_async import AsyncResponseStream  # noqa: PLC0415 - imported on use

        prepared = prepare_streamed(
            self._endpoint.codec, model, model_version, outputs, parameters, priority, queue_timeout
        )
        stream = self._open_stream(prepared.call, timeout, headers, 1 << 30)
        return AsyncResponseStream(lambda: stream, prepared, inputs, request_id, None, own=True)

    def _open_stream(
        self, call: str, timeout: float | None, headers: HeaderSource | None, buffer_size: int
    ) -> AsyncStream:
        return self._endpoint.open_stream(call, timeout, headers, buffer_size)
