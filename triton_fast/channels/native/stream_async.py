"""A stream on the native channel for coroutines: one call with many messages each way."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import weakref
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from ...errors import Cancelled, ClosedError, DeadlineExceeded, TritonFastError
from ..base import CallOptions, Outgoing, StreamIncoming
from ..event_loop import seconds_left
from .channel import metadata
from .stream import stream_failure

if TYPE_CHECKING:
    from ..._core import _http2
    from .connection_async import AsyncConnection

__all__ = ["AsyncNativeStream"]


class AsyncNativeStream:
    """A stream among others on a connection; see `triton_fast.channels.base.AsyncChannelStream`.

    What is not received is not asked for: a mebibyte on, the server waits.

    Parameters
    ----------
    connection : coroutine function
        Returns the connection that it is to be on, where it is begun at once. It is given the
        options, and a future that is done when the stream is given up meanwhile.
    method, incoming, options
        As in `triton_fast.channels.base.Channel.open_stream`.
    target : str
        For errors.
    closed : callable
        Whether the channel was closed.
    """

    def __init__(
        self,
        connection: Callable[[CallOptions, asyncio.Future[None]], Awaitable[AsyncConnection]],
        method: str,
        incoming: StreamIncoming[Any],
        options: CallOptions,
        target: str,
        closed: Callable[[], bool],
    ) -> None:
        self._new_connection = connection
        self._target = target
        self._closed = closed
        self._method = method
        self._incoming = incoming
        self._options = options
        self._connection: AsyncConnection | None = None
        self._exchange: _http2.Exchange | None = None
        self._bell = _Bell()
        self._timer: asyncio.TimerHandle | None = None
        self._given_up: asyncio.Future[None] | None = None  # while it waits for a connection
        self._half_closed = False
        self._over = False
        self._failure: TritonFastError | None = None  # how it ended, if not well

    async def send(
        self, outgoing: Outgoing, deadline_ns: int | None = None, *, last: bool = False
    ) -> None:
        """Send one message; see `triton_fast.channels.base.AsyncChannelStream.send`."""
        self._check()
        if self._half_closed:
            raise ClosedError(f"{self._options.call}: the stream is half closed")
        if self._over:
            raise self._ended_by_server()
        try:
            connection, exchange = await self._begin(deadline_ns)
            self._half_closed = last
            connection.multiplexer.send(exchange, outgoing)
            if last:
                connection.multiplexer.half_close(exchange)
            connection.flush()
            while not self._over and not connection.multiplexer.sent(exchange):
                if connection.multiplexer.done(exchange):
                    self._end()
                    break
                await self._news(deadline_ns, "while the request was being sent")
        except TritonFastError as error:
            if not self._over:
                self._give_up(error)
            raise
        except BaseException:
            self.cancel()
            raise
        if self._over:
            raise self._failure or self._ended_by_server()

    async def half_close(self) -> None:
        """Say that no more messages will be sent. Idempotent."""
        self._check()
        if self._half_closed or self._over:
            return
        connection, exchange = await self._begin()
        self._half_closed = True
        connection.multiplexer.half_close(exchange)
        connection.flush_soon()

    async def receive(self, deadline_ns: int | None = None) -> list[Any]:
        """Wait for messages; see `triton_fast.channels.base.AsyncChannelStream.receive`."""
        while True:
            if self._exchange is not None and self._connection is not None:
                responses = self._connection.multiplexer.messages(self._exchange)
                if responses:
                    self._connection.flush_soon()  # that as many may come again
                    return responses
                if not self._over and self._connection.multiplexer.done(self._exchange):
                    self._end()
            if self._over:
                if self._failure is not None:
                    raise self._failure
                return []
            self._check()
            await self._news(deadline_ns, "before there was an answer")

    def cancel(self) -> None:
        """End the call; see `triton_fast.channels.base.AsyncChannelStream.cancel`."""
        if not self._over:
            self._give_up(
                Cancelled("the call was cancelled", call=self._options.call, target=self._target)
            )

    def _ended_by_server(self) -> ClosedError:
        return ClosedError(
            f"{self._options.call}: the server has ended the stream, and takes no more requests"
        )

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed():
            raise ClosedError(f"the channel to {self._target} is closed")

    async def _begin(
        self, deadline_ns: int | None = None
    ) -> tuple[AsyncConnection, _http2.Exchange]:
        """Return the call, which begins with its first message, by that message's deadline."""
        if self._connection is not None and self._exchange is not None:
            return self._connection, self._exchange
        options = self._options
        ends = [end for end in (deadline_ns, options.deadline_ns) if end is not None]
        waiting = dataclasses.replace(options, deadline_ns=min(ends, default=None))
        while True:
            self._given_up = asyncio.get_running_loop().create_future()
            try:
                connection = await self._new_connection(waiting, self._given_up)
            except Cancelled:
                self._check()  # how it was given up
                raise
            finally:
                self._given_up = None
            if self._over:
                connection.decline()
            self._check()
            try:
                exchange = connection.multiplexer.open(
                    self._method,
                    None,
                    self._incoming,
                    metadata(options.headers),
                    "",
                    options.deadline_ns,
                )
                break
            except RuntimeError:
                connection.retire()  # the server is going away; the next may be to another one
            except BaseException:
                connection.decline()
                raise
        exchange.waiter = self._bell
        left = seconds_left(self._options.deadline_ns)
        if left is not None:
            # The timer must not keep a stream that nobody reads any more.
            self._timer = asyncio.get_running_loop().call_later(left, _expire, weakref.ref(self))
        self._connection, self._exchange = connection, exchange
        connection.begin(0)
        return connection, exchange

    async def _news(self, deadline_ns: int | None, phase: str) -> None:
        """Wait until something has happened to the call."""
        if not await self._bell.wait(seconds_left(deadline_ns)):
            raise self._late(phase)

    def _late(self, phase: str) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"the deadline passed {phase}", call=self._options.call, target=self._target
        )

    def expire(self) -> None:
        """End the call, for its own deadline has passed."""
        if not self._over:
            self._give_up(self._late("before the stream was over"))

    def _give_up(self, failure: TritonFastError) -> None:
        self._failure = failure
        self._conclude()
        if self._connection is not None and self._exchange is not None:
            self._connection.multiplexer.close(self._exchange)
            self._connection.flush_soon()
            self._connection.finish(0)

    def _end(self) -> None:
        """Take note of how the call ended."""
        assert self._connection is not None
        assert self._exchange is not None
        options, target = self._options, self._target
        try:
            outcome = self._connection.multiplexer.end(self._exchange)
            self._failure = stream_failure(outcome, options, target, self._closed())
            if self._failure is not None and self._closed():
                self._failure = ClosedError(f"the channel to {target} is closed")
        except TritonFastError as error:
            self._failure = error
        self._conclude()
        self._connection.finish(0)

    def _conclude(self) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self._given_up is not None and not self._given_up.done():
            self._given_up.set_result(None)
        self._bell.set_result(None)

    def __del__(self) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None and not self._over and self._exchange is not None:
            connection.drop(self._exchange, self._timer)


class _Bell:
    """Wakes all who wait; stands where an `_http2.Exchange` has a future to be woken."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[bool]] = set()

    def done(self) -> bool:
        """Whether there is nobody to be woken; as a future has it."""
        return not self._waiters

    def set_result(self, _: None) -> None:
        """Wake all; as a future has it."""
        for waiter in self._waiters:
            _resolve(waiter, woken=True)
        self._waiters.clear()

    async def wait(self, timeout: float | None) -> bool:
        """Return whether it rang in time; timeout is in seconds."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        self._waiters.add(waiter)
        timer = None
        if timeout is not None:
            timer = loop.call_later(timeout, functools.partial(_resolve, waiter, woken=False))
        try:
            return await waiter
        finally:
            self._waiters.discard(waiter)
            if timer is not None:
                timer.cancel()


def _expire(stream: weakref.ref[AsyncNativeStream]) -> None:
    alive = stream()
    if alive is not None:
        alive.expire()


def _resolve(waiter: asyncio.Future[bool], *, woken: bool) -> None:
    if not waiter.done():
        waiter.set_result(woken)
