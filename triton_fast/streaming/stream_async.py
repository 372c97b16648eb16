"""Streams for coroutines: what `triton_fast.streaming.stream` is for threads, on an event loop.

Owns the channel's stream from its opening to its end. Tasks that wait for answers take turns at
reading, by the rules of `stream_state`; whoever reads hands out what came for the others.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

from ..channels.base import CallOptions
from ..channels.one_process import OneProcess
from ..errors import ClosedError, LoopError, TritonFastError
from ..inference.request import Outputs, Prepared, encode_request, prepare_streamed
from ..inference.result import InferResult
from ..options.deadline import deadline_after, seconds
from .demux import Inbox, Item, Pending, Refusal
from .stream_state import CLOSE_TIMEOUT_NS, Explain, StreamState, answers_repr, described

if TYPE_CHECKING:
    from ..channels.base import AsyncChannelStream
    from ..inference.tensor import InputTensor
    from ..protocol.codec import Codec, ResponseDecoder

__all__ = ["AsyncResponseStream", "AsyncStream"]


class AsyncResponseStream(OneProcess, AsyncIterator[InferResult]):
    """The answers to one request, in order; made by `AsyncClient.stream` and `AsyncStream.stream`.

    See `triton_fast.ResponseStream`. Nothing is sent before the first answer is asked for.

    Attributes
    ----------
    id : str
        The request's, as the caller gave it.

    Notes
    -----
    An asynchronous context manager. One task at a time. Cancelling the task that waits for an
    answer closes it.
    """

    def __init__(
        self,
        open_stream: Callable[[], AsyncStream],
        prepared: Prepared,
        inputs: Mapping[str, Any],
        request_id: str,
        deadline_ns: int | None,
        *,
        own: bool,
    ) -> None:
        self.id = request_id
        self._open_stream = open_stream
        self._prepared = prepared
        self._inputs = inputs
        self._deadline_ns = deadline_ns
        self._own = own  # whether the stream is this request's alone
        self._stream: AsyncStream | None = None
        self._pending: Pending | None = None
        self._closed = False

    def __repr__(self) -> str:
        if self._pending is None:
            state = "over" if self._closed else "not sent"
            return f"<AsyncResponseStream of {described(self._prepared, self.id)}; {state}>"
        return answers_repr(self, self._pending, closed=self._closed)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> InferResult:
        if self._closed:
            raise StopAsyncIteration
        if self._stream is None or self._pending is None:
            stream, pending = await self._send()
        else:
            stream, pending = self._stream, self._pending
        item = pending.inbox.popleft() if pending.inbox else None
        if item is None:
            try:
                item = await stream._next(pending, self._deadline_ns)
            except asyncio.CancelledError:
                await self.aclose()  # as a generator would be
                raise
        elif stream._state.starved:
            stream._state.took(item)
        if isinstance(item, InferResult):
            return item
        if item is None:
            await self._finish()
            raise StopAsyncIteration
        try:
            raise await stream._failure(item, pending.inbox, self._deadline_ns)
        finally:
            if pending.over and not pending.inbox:
                await self._finish()

    async def _send(self) -> tuple[AsyncStream, Pending]:
        """Send the request, if it was not; its inputs may be changed after that."""
        if self._stream is None or self._pending is None:
            stream = self._open_stream()
            try:
                self._pending = await stream._send_prepared(
                    self._prepared,
                    self._inputs,
                    self.id,
                    deque(),
                    self._deadline_ns,
                    last=self._own,
                )
            except BaseException:
                self._closed = True
                if self._own:
                    await stream.aclose()
                raise
            self._stream = stream
            self._inputs = {}
        return self._stream, self._pending

    async def aclose(self) -> None:
        """Read no more; see `triton_fast.ResponseStream.close`. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._stream is None or self._pending is None:
            return
        self._pending.inbox.clear()
        if self._own:
            await self._stream.aclose()
        else:
            self._stream._state.drop(self._pending)

    async def close(self) -> None:
        """Do as `aclose`, whose name is that of Python's own asynchronous iterators."""
        await self.aclose()

    async def _finish(self) -> None:
        self._closed = True
        if self._own and self._stream is not None:
            await self._stream._end()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        # A stream of its own goes with it, and its channel cancels the call.
        pending = getattr(self, "_pending", None)
        if pending is not None and not self._closed and self._stream is not None:
            self._stream._state.drop(pending)


class AsyncStream(OneProcess):
    """A call that many requests share, driven by hand; made by `AsyncClient.open_stream`.

    See `triton_fast.Stream`, whose names it has as coroutines.

    Notes
    -----
    An asynchronous context manager. Any number of tasks of one event loop may use it.
    """

    def __init__(
        self,
        opening: Callable[[], Awaitable[tuple[AsyncChannelStream[ResponseDecoder], CallOptions]]],
        target: str,
        inputs: Callable[[Prepared, Mapping[str, Any], CallOptions], Awaitable[list[InputTensor]]],
        buffer_size: int,
        codec: Codec,
        explain: Explain[Awaitable[None]],
    ) -> None:
        self._codec = codec
        self._explain = explain
        self._opening = opening
        # None until the first request.
        self._channel_stream: AsyncChannelStream[ResponseDecoder] | None = None
        self._inputs = inputs
        self._waiters: set[asyncio.Future[None]] = set()
        # Not a method of this object, which goes when nobody uses it any more.
        wake = functools.partial(_wake_all, self._waiters)
        self._state = StreamState(target, CallOptions(), buffer_size, wake)
        self._sending = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None  # that of its first use

    def __repr__(self) -> str:
        return self._state.describe(self)

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
    ) -> AsyncResponseStream:
        """Return the answers to a request, which is made when the first one is asked for.

        Parameters and errors are those of `triton_fast.Stream.stream`; errors come with the first
        answer.
        """
        prepared = prepare_streamed(
            self._codec, model, model_version, outputs, parameters, priority, queue_timeout
        )
        deadline_ns = deadline_after(seconds(timeout, "timeout"))
        return AsyncResponseStream(
            lambda: self, prepared, inputs, request_id, deadline_ns, own=False
        )

    async def _make(
        self,
        prepared: Prepared,
        inputs: Mapping[str, Any],
        request_id: str,
        deadline_ns: int | None = None,
    ) -> AsyncResponseStream:
        """Make a prepared request at once, and return its answers; see `stream`."""
        answers = AsyncResponseStream(
            lambda: self, prepared, inputs, request_id, deadline_ns, own=False
        )
        await answers._send()
        return answers

    async def send(
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
    ) -> None:
        """Make a request whose answers `receive` gives; see `triton_fast.Stream.send`."""
        prepared = prepare_streamed(
            self._codec, model, model_version, outputs, parameters, priority, queue_timeout
        )
        deadline_ns = deadline_after(seconds(timeout, "timeout"))
        await self._send_prepared(prepared, inputs, request_id, self._state.inbox, deadline_ns)

    async def receive(self, timeout: float | None = None) -> InferResult | None:
        """Return the next answer to a request of `send`; see `triton_fast.Stream.receive`."""
        deadline_ns = deadline_after(seconds(timeout, "timeout"))
        item = await self._next(None, deadline_ns)
        if item is None or isinstance(item, InferResult):
            return item
        raise await self._failure(item, self._state.inbox, deadline_ns)

    async def __aiter__(self) -> AsyncIterator[InferResult]:
        """Iterate over what `receive` returns."""
        while (result := await self.receive()) is not None:
            yield result

    async def half_close(self) -> None:
        """Say that no more requests will be made; answers may still come. Idempotent."""
        if self._state.half_closed or self._state.failure is not None:
            return
        self._state.half_closed = True
        async with self._sending:
            if self._channel_stream is not None:
                await self._channel_stream.half_close()

    async def aclose(self) -> None:
        """End the stream, and what is running on it, also on the server. Idempotent."""
        self._conclude(ClosedError("the stream was closed"))

    async def close(self) -> None:
        """Do as `aclose`, whose name is that of Python's own asynchronous iterators."""
        await self.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _send_prepared(
        self,
        prepared: Prepared,
        inputs: Mapping[str, Any],
        request_id: str,
        inbox: Inbox,
        deadline_ns: int | None,
        *,
        last: bool = False,
    ) -> Pending:
        """Make a prepared request. After the ``last`` one there can be no others."""
        self._enter_loop()
        async with self._sending:
            state = self._state
            if self._channel_stream is None and state.failure is None and not state.half_closed:
                self._channel_stream, state.options = await self._opening()
            tensors = await self._inputs(prepared, inputs, state.options)
            pending = state.add(prepared, tensors, request_id, inbox, last=last)
            channel_stream = self._channel_stream
            assert channel_stream is not None  # or the stream is over
            try:
                request = encode_request(prepared.header, pending.wire_id, tensors)
                try:
                    await channel_stream.send(request, deadline_ns, last=last)
                finally:
                    request.release()
            except BaseException as error:
                state.withdraw(pending, error)
                if state.failure is not None:
                    channel_stream.cancel()
                raise
        return pending

    async def _next(self, pending: Pending | None, deadline_ns: int | None) -> Item | None:
        """Return what comes next for a request, or for those sent by hand; None at the end."""
        self._enter_loop()
        state = self._state
        inbox = state.inbox if pending is None else pending.inbox
        patience = None
        while True:
            if inbox:
                item = inbox.popleft()
                if state.starved:
                    state.took(item)
                return item
            if state.is_over(pending):
                return None
            my_turn, patience = state.may_read(patience)
            if my_turn:
                await self._read(deadline_ns)
            else:
                await self._wait(state.seconds_to_wait(deadline_ns, patience))

    async def _failure(
        self, item: Refusal | TritonFastError, inbox: Inbox, deadline_ns: int | None
    ) -> TritonFastError:
        """Return what is raised for something that came in place of an answer, or the end."""
        if isinstance(item, Refusal):
            error, pending = item
            state = self._state
            if pending.sent is not None and state.explains:
                with state.explaining(item, inbox):
                    await self._explain(error, *pending.sent, state.options_until(deadline_ns))
            item = error
        # Others may raise it too, and it is not to hold on to the frames of all.
        return item.with_traceback(None)

    def _enter_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif loop is not self._loop:
            raise LoopError("the stream belongs to another event loop; open one in each")

    async def _wait(self, limit_s: float | None) -> None:
        """Wait until another task has read, or taken, something."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=limit_s)
        finally:
            self._waiters.discard(waiter)

    async def _read(self, deadline_ns: int | None) -> None:
        """Wait for answers, and hand them out."""
        assert self._channel_stream is not None  # a request was made
        state = self._state
        state.reading = True
        try:
            arrived = await self._channel_stream.receive(deadline_ns)
            if arrived:
                state.deliver(arrived)
            else:
                state.ended_by_server()
        except TritonFastError as error:
            if state.is_readers_own(error, deadline_ns):
                raise
            self._conclude(error)
        finally:
            state.reading = False
            state.wake()

    def _conclude(self, failure: TritonFastError) -> None:
        """Have nothing more be done on the stream."""
        if self._state.conclude(failure) and self._channel_stream is not None:
            self._channel_stream.cancel()

    async def _end(self) -> None:
        """See the call to its end: the last answer has come."""
        if self._state.failure is None and self._channel_stream is not None:
            try:
                await self._channel_stream.receive(time.monotonic_ns() + CLOSE_TIMEOUT_NS)
            except TritonFastError:
                pass  # the answers are there; how the call went after them is nobody's concern
            finally:
                self._conclude(ClosedError("the stream is over"))


def _wake_all(waiters: set[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
