"""A stream on the grpcio channel for coroutines: one call with many messages each way.

Owns the grpc.aio call, the task that reads it, and what that has read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from threading import get_ident
from typing import Any, Protocol

from ...errors import (
    ClosedError,
    DeadlineExceeded,
    StatusCode,
    TritonFastError,
    server_error,
)
from ..base import CallOptions, Outgoing, StreamIncoming
from ..event_loop import LONG, Cancellation, seconds_left
from .answers import encoding_of
from .answers_async import feed_answer_async
from .fork import ActiveCall, gate
from .stream_rules import MOST_BYTES, MOST_MESSAGES, StreamOwner, deadline_error, withdrawn

__all__ = ["AsyncGrpcStream"]


class Owner(StreamOwner, Protocol):
    """What a stream asks of its channel, an `AsyncGrpcChannel`."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What grpcio may raise."""

    def enter_loop(self) -> None:
        """Check that a call can be made here and now."""

    async def rendered(self, outgoing: Outgoing, options: CallOptions) -> bytes:
        """Return a message in one piece."""

    async def await_fork(self, flight: ActiveCall, options: CallOptions) -> None:
        """Count a call in when no fork is under way any more."""

    async def open(self, options: CallOptions) -> Any:
        """Return the grpc.aio channel."""

    def remaining(self, options: CallOptions) -> float | None:
        """Return the seconds to the deadline, or raise if there are none."""


class AsyncGrpcStream:
    """A call with many messages each way; answers `base.AsyncChannelStream`."""

    def __init__(
        self, channel: Owner, method: str, incoming: StreamIncoming[Any], options: CallOptions
    ) -> None:
        self._channel = channel
        self._method = method
        self._incoming = incoming
        self._options = options
        self._flight = ActiveCall(channel, get_ident())
        self._call: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None  # of the call
        self._begun = asyncio.Event()  # set also if it will never begin
        self._half_closed = False
        self._ahead: _ReadAhead | None = None  # from the first receive on
        self._over: TritonFastError | None = None  # how the call ended, if not well
        self._at_end = False

    async def send(
        self, outgoing: Outgoing, deadline_ns: int | None = None, *, last: bool = False
    ) -> None:
        """Send one message; see `base.AsyncChannelStream.send`."""
        self._check()
        if self._half_closed or self._at_end:
            raise ClosedError(
                f"{self._options.call}: the stream is half closed or over, and takes no more "
                "messages"
            )
        self._half_closed = last
        try:
            message = await self._channel.rendered(outgoing, self._options)
            if self._call is None:
                await self._begin()
        except BaseException as failure:
            self._end(failure if isinstance(failure, TritonFastError) else self._withdrawn())
            raise
        cancelled = Cancellation()
        try:
            async with asyncio.timeout(seconds_left(deadline_ns)):
                await self._call.write(message)
                if last:
                    await self._call.done_writing()
        except TimeoutError:
            raise self._end(self._late("the peer had taken the message")) from None
        except asyncio.CancelledError:
            error = self._end(self._withdrawn())
            if cancelled.is_ours():
                raise
            raise error from None
        except asyncio.InvalidStateError:
            raise self._end(await self._outcome()) from None
        except self._channel.errors as error:
            raise self._end(self._channel.failure(error, self._options)) from error

    async def half_close(self) -> None:
        """Say that no more messages will be sent. Idempotent."""
        self._check()
        self._half_closed = True
        self._begun.set()
        if self._call is not None:
            cancelled = Cancellation()
            try:
                await self._call.done_writing()
            except asyncio.CancelledError:
                error = self._end(self._withdrawn())
                if cancelled.is_ours():
                    raise
                raise error from None
            except self._channel.errors as error:
                raise self._end(self._channel.failure(error, self._options)) from error

    async def receive(self, deadline_ns: int | None = None) -> list[Any]:
        """Wait for a message; see `base.AsyncChannelStream.receive`."""
        self._check()
        if self._call is None:
            await self._await_beginning(deadline_ns)
        if self._at_end or self._call is None:
            return []
        ahead = self._ahead
        if ahead is None:
            self._ahead = ahead = _ReadAhead(self._call)
        await ahead.wait(seconds_left(deadline_ns))
        if ahead.messages:
            return await ahead.take(self._incoming, self._feed)
        if not ahead.is_over:
            raise self._late("there was a message")
        if ahead.error is None:
            self._at_end = True
            return []
        if isinstance(ahead.error, asyncio.CancelledError):
            raise self._end(self._withdrawn())
        if isinstance(ahead.error, self._channel.errors):
            raise self._end(self._channel.failure(ahead.error, self._options)) from ahead.error
        raise ahead.error

    async def _feed(self, parsed: Any, message: bytes) -> None:
        # Within the call's own deadline: who receives for less long would begin anew each time.
        target = self._channel.target
        await feed_answer_async(parsed, message, self._options, target, lambda: self._over)
        parsed.finish()

    def cancel(self) -> None:
        """End the call, unless it is over, and tell the server. Idempotent."""
        if not self._at_end:
            self._end(self._withdrawn())

    def __del__(self) -> None:
        # Nobody reads what still comes. Any thread may be here.
        loop = getattr(self, "_loop", None)
        if loop is None or loop.is_closed() or self._at_end or self._over is not None:
            return
        if self._channel.ended is None:
            with contextlib.suppress(RuntimeError):  # closed just now
                loop.call_soon_threadsafe(self._call.cancel)

    def _check(self) -> None:
        if self._over is not None:
            raise self._over
        self._channel.enter_loop()

    async def _begin(self) -> None:
        channel, options, flight = self._channel, self._options, self._flight
        try:
            if not gate.try_enter(flight):
                await channel.await_fork(flight, options)
            streaming = (await channel.open(options)).stream_stream(self._method)
            self._check()  # whether it was cancelled meanwhile
            try:
                call = streaming(
                    timeout=channel.remaining(options), metadata=options.headers or None
                )
            except channel.errors as error:
                raise channel.failure(error, options) from error
            call.add_done_callback(lambda _: gate.leave(flight))
            self._loop = asyncio.get_running_loop()
        except BaseException:
            gate.leave(flight)
            raise
        self._call = call
        self._begun.set()

    async def _await_beginning(self, deadline_ns: int | None) -> None:
        deadlines = [one for one in (deadline_ns, self._options.deadline_ns) if one is not None]
        try:
            async with asyncio.timeout(seconds_left(min(deadlines, default=None))):
                await self._begun.wait()
        except TimeoutError:
            raise self._late("there was a message") from None
        if self._over is not None:
            raise self._over

    async def _outcome(self) -> TritonFastError:
        """Return how a call ended that grpcio does not take messages for any more."""
        code, details = await self._call.code(), await self._call.details()
        if code.value[0] == StatusCode.OK:
            self._at_end = True
            return ClosedError(f"the server has ended the stream to {self._channel.target}")
        return server_error(
            code.value[0], details or "", call=self._options.call, target=self._channel.target
        )

    def _end(self, error: TritonFastError) -> TritonFastError:
        """Have all that follows fail with an error; return what it fails with."""
        if self._over is None:
            self._over = error
        self._begun.set()
        if self._call is not None:
            self._call.cancel()
        return self._over

    def _withdrawn(self) -> TritonFastError:
        return withdrawn(self._channel, self._options)

    def _late(self, what: str) -> DeadlineExceeded:
        return deadline_error(self._channel, self._options, what)


class _ReadAhead:
    """The task that reads a call, and what it has read.

    A task for the whole call, since one for each message takes as long as reading it does. It does
    not know the stream, so that a stream which nobody uses any more ends it.

    Attributes
    ----------
    messages : collections.deque of bytes
        Those that nobody has taken.
    is_over : bool
        Whether no more will come.
    error : BaseException or None
        What grpcio raised in the end, if anything.
    """

    def __init__(self, call: Any) -> None:
        self.messages: deque[bytes] = deque()
        self.is_over = False
        self.error: BaseException | None = None
        self._byte_size = 0
        self._is_cut_off = False
        self._waiter: asyncio.Future[None] | None = None  # who receives
        self._room: asyncio.Future[None] | None = None  # what the task waits for
        self._task = asyncio.ensure_future(self._read(call))
        call.add_done_callback(self._cut_off)

    async def wait(self, patience_s: float | None) -> None:
        """Wait for a message, or for the end, so long."""
        if self.messages or self.is_over:
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            if patience_s is None:
                await self._waiter
            else:
                await asyncio.wait((self._waiter,), timeout=patience_s)
        finally:
            self._waiter = None

    async def take(
        self, incoming: StreamIncoming[Any], feed: Callable[[Any, bytes], Awaitable[None]]
    ) -> list[Any]:
        """Return the messages that are there; a large one comes by itself, and a compressed one.

        Parameters
        ----------
        incoming : StreamIncoming
            Makes their parsers.
        feed : coroutine function
            Gives one its message.
        """
        taken: list[Any] = []
        while self.messages:
            message = self.messages[0]
            if taken and (len(message) >= LONG or encoding_of(message) is not None):
                break  # who is cancelled while it is read would lose these
            parsed = incoming.message()
            try:
                await feed(parsed, message)
            except TritonFastError:
                if taken:
                    break  # it is told when these have been taken
                self._drop_first()
                raise
            self._drop_first()
            taken.append(parsed)
        _tell(self._room)
        return taken

    def _drop_first(self) -> None:
        self._byte_size -= len(self.messages.popleft())

    def _cut_off(self, _: Any) -> None:
        """Take note that the call has ended, and that the peer need not be held up any more."""
        self._is_cut_off = True
        _tell(self._room)

    async def _read(self, call: Any) -> None:
        try:
            while isinstance(message := await call.read(), bytes):  # and not grpcio's mark
                self.messages.append(message)
                self._byte_size += len(message)
                _tell(self._waiter)
                while self._has_enough() and not self._is_cut_off:
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room
        except BaseException as error:  # noqa: BLE001  it is told to those who receive
            # Without its traceback, whose frames would hold grpcio's call; see AsyncGrpcChannel.
            self.error = error.with_traceback(None)
        finally:
            self.is_over = True
            _tell(self._waiter)

    def _has_enough(self) -> bool:
        return len(self.messages) >= MOST_MESSAGES or self._byte_size >= MOST_BYTES


def _tell(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
