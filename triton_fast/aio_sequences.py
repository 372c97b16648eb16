"""Sequences for coroutines: what `triton_fast.sequences` is for threads, on an event loop."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .errors import TritonFastError
from .request import UNSET
from .response import InferResult
from .sequences import FAREWELL_S, SequenceRequests, only_answer, unary_only

if TYPE_CHECKING:
    from .aio_connection import AsyncConnection
    from .aio_streams import AsyncResponseStream, AsyncStream
    from .headers import HeaderSource

__all__ = ["AsyncInferSequence"]


class AsyncInferSequence:
    """Requests that a model with state sees as one sequence; made by `AsyncClient.sequence`.

    See `triton_fast.InferSequence`, whose names it has as coroutines.

    Notes
    -----
    An asynchronous context manager. One task at a time.
    """

    def __init__(
        self,
        connection: AsyncConnection,
        requests: SequenceRequests,
        stream: AsyncStream | None,
        timeout: float | None,
        headers: HeaderSource | None,
    ) -> None:
        self._connection = connection
        self._requests = requests
        self._stream = stream
        self._timeout = timeout
        self._headers = headers

    @property
    def id(self) -> int | str:
        """What the server knows the sequence by."""
        return self._requests.id

    async def infer(
        self,
        inputs: Mapping[str, Any],
        *,
        end: bool = False,
        request_id: str = "",
        timeout: float | None = UNSET,
    ) -> InferResult:
        """Make the next request, and wait for its answer; see `triton_fast.InferSequence.infer`."""
        if self._stream is not None:
            answers = self.stream(inputs, end=end, request_id=request_id, timeout=timeout)
            async with answers:
                return only_answer([answer async for answer in answers], self._requests)
        prepared = self._requests.prepared(end=end)
        limit = self._timeout if timeout is UNSET else timeout
        options = await self._connection.options(prepared.call, limit, self._headers)
        with self._requests.sending(inputs, end=end):
            return await self._connection.infer(prepared, inputs, request_id, options, None)

    def stream(
        self,
        inputs: Mapping[str, Any],
        *,
        end: bool = False,
        request_id: str = "",
        timeout: float | None = UNSET,
    ) -> AsyncResponseStream:
        """Return the answers to the next request; see `triton_fast.InferSequence.stream`.

        It is made when the first answer is asked for; do that before the request after it.
        """
        if self._stream is None:
            raise unary_only()
        prepared = self._requests.prepared(end=end)
        deadline_ns = self._connection.deadline_ns(self._timeout if timeout is UNSET else timeout)
        with self._requests.sending(inputs, end=end):
            return self._stream.make(prepared, inputs, request_id, deadline_ns)

    async def aclose(self) -> None:
        """End the sequence on the server; see `triton_fast.InferSequence.close`. Idempotent."""
        try:
            if self._requests.wants_end:
                await self.infer(self._requests.blank(), end=True)
        finally:
            self._requests.ended = True
            if self._stream is not None:
                await self._stream.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            await self.aclose()
            return
        self._timeout = FAREWELL_S
        try:
            await self.aclose()
        except TritonFastError as failure:
            # The error that is on its way is the one to see; this one is told with it.
            error.add_note(f"and sequence {self.id!r} could not be ended: {failure}")
