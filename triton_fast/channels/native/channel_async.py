"""The native channel for coroutines: HTTP/2 in the event loop, without threads and without grpcio.

Owns the connections to one server: which call is on which, and when one is made or dropped. For
servers at one address, in plain text; everything else is the grpcio channel's.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from ...errors import (
    ClosedError,
    DeadlineExceeded,
    InvalidOption,
    StatusCode,
    TritonFastError,
    server_error,
)
from ..base import CallOptions, Incoming, Outgoing, StreamIncoming
from ..event_loop import MOVED, in_thread, running_loop, seconds_left
from .channel import import_native, metadata, native_address
from .connection_group_async import AsyncConnectionGroup
from .connector_async import AsyncConnector
from .loop_budget import LoopBudget

if TYPE_CHECKING:
    from ..._core import _http2
    from ...options.keepalive import Keepalive
    from .connection_async import AsyncConnection
    from .stream_async import AsyncNativeStream

__all__ = ["AsyncNativeChannel"]

# Calls that send as much have connections to themselves while there are some, so that the small
# ones need not wait behind their frames.
_LARGE = 64 << 10
_LARGE_CONNECTIONS = 8
# Of several megabytes, compressing takes longer than the loop should wait.
_SLOW = 1 << 20


class AsyncNativeChannel:
    """A way to one server over HTTP/2 sockets of our own, for coroutines.

    Parameters
    ----------
    target, keepalive
        As in `triton_fast.channels.native.channel.NativeChannel`.

    Raises
    ------
    InvalidOption
        If the target is not one address.
    MissingDependency
        If triton_fast was built without nghttp2.

    Notes
    -----
    Constructing one opens nothing and needs no running loop. It belongs to the loop of its first
    call, until that is closed. Small calls share one connection, streams another one, and large
    calls have up to eight to themselves; there are more where the server takes no more calls at a
    time on those that there are, up to 128 of each kind. Payloads are sent from where they lie;
    those of a call that is given up are kept until the last frame that was begun with them is sent.
    """

    def __init__(
        self, target: str, *, keepalive: Keepalive | None = None, authority: str | None = None
    ) -> None:
        self._native = import_native()
        address = native_address(target, authority)
        if address is None:
            raise InvalidOption(
                f"target {target!r}: the native channel takes one address, 'host:port' or "
                "'unix:/path'; use channel='grpc' for others"
            )
        self.target = target
        self._name = f"the channel to {target}"
        self._address = address
        self._keepalive = (
            (0, 0)
            if keepalive is None
            else (round(keepalive.time * 1e9), round(keepalive.timeout * 1e9))
        )
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        # Of that loop.
        self._small: AsyncConnectionGroup
        self._large: AsyncConnectionGroup
        self._streaming: AsyncConnectionGroup

    async def call(
        self, method: str, outgoing: Outgoing, incoming: Incoming, options: CallOptions
    ) -> None:
        """Make one unary call; see `triton_fast.channels.base.AsyncChannel.call`."""
        loop = self._enter_loop(options)
        encoding = options.compression or ""
        if encoding:
            outgoing = await self._compressed(outgoing, encoding, options)
        headers = metadata(options.headers) if options.headers else ()
        byte_size = outgoing.byte_size
        group = self._large if byte_size >= _LARGE else self._small
        while True:
            connection = group.free() or await group.place(options)
            try:
                exchange = connection.multiplexer.open(
                    method, outgoing, incoming, headers, encoding, options.deadline_ns
                )
                break
            except RuntimeError:
                connection.retire()  # the server is going away; the next may be to another one
            except BaseException:
                connection.decline()
                raise
        exchange.waiter = loop.create_future()
        connection.begin(byte_size)
        try:
            if options.deadline_ns is None:
                await exchange.waiter
            else:
                await self._wait(loop, exchange, connection, options)
        except BaseException:
            connection.multiplexer.close(exchange)
            connection.flush_soon()
            raise
        finally:
            connection.finish(byte_size)
        outcome = connection.multiplexer.end(exchange)
        if outcome.status != StatusCode.OK:
            raise self._failure(outcome, options)
        message = outcome.gathered
        if message is not None:
            if outcome.compressed:
                from ..compression import CallCheck  # noqa: PLC0415 - rare
                from ..compression_async import feed_decompressed_async  # noqa: PLC0415 - rare

                check = CallCheck(options, self.target, self._closed_meanwhile)
                await feed_decompressed_async(incoming, message, outcome.encoding, check)
            else:
                incoming.begin(len(message))
                incoming.feed(message)
        incoming.finish()

    def _failure(self, outcome: _http2.Outcome, options: CallOptions) -> TritonFastError:
        """Return the error for a call that went wrong."""
        closed = self._closed_meanwhile()
        if closed is not None:
            return closed
        return server_error(
            outcome.status,
            outcome.message,
            call=options.call,
            target=self.target,
            safe_to_retry=outcome.safe_to_retry,
        )

    def _closed_meanwhile(self) -> ClosedError | None:
        return ClosedError(f"{self._name} was closed during the call") if self._closed else None

    async def _wait(
        self,
        loop: asyncio.AbstractEventLoop,
        exchange: _http2.Exchange,
        connection: AsyncConnection,
        options: CallOptions,
    ) -> None:
        """Return when a call is over; raise if its deadline passes first."""
        left = seconds_left(options.deadline_ns)
        assert left is not None
        received = connection.multiplexer.received
        timer = loop.call_later(left, _expire, exchange.waiter)
        try:
            await exchange.waiter
        finally:
            timer.cancel()
        if not connection.multiplexer.done(exchange):
            if connection.multiplexer.received == received:
                # Nothing at all came: the model is slow, or nothing will ever come here. What else
                # is on the connection stays there, and new calls have another one.
                connection.retire()
            raise DeadlineExceeded(
                "the deadline passed before the answer was complete",
                call=options.call,
                target=self.target,
            )

    async def _compressed(self, outgoing: Outgoing, encoding: str, options: CallOptions) -> Any:
        from ..compression import CallCheck, Compressed  # noqa: PLC0415 - rare

        check = CallCheck(options, self.target, self._closed_meanwhile)
        if outgoing.byte_size < _SLOW:
            return Compressed(outgoing.render(), encoding, check)
        message = await in_thread(options, self.target, outgoing.render, borrowed=True)
        try:
            return await in_thread(options, self.target, Compressed, message, encoding, check)
        except BaseException:
            check.stop()  # the thread may still be at it
            raise

    def open_stream(
        self, method: str, incoming: StreamIncoming[Any], options: CallOptions
    ) -> AsyncNativeStream:
        """Return a call with many messages; see `base.AsyncChannel.open_stream`."""
        from .stream_async import AsyncNativeStream  # noqa: PLC0415 - imported on use

        if self._closed:
            raise ClosedError(f"{self._name} is closed")
        return AsyncNativeStream(
            self._stream_connection, method, incoming, options, self.target, lambda: self._closed
        )

    async def _stream_connection(
        self, options: CallOptions, given_up: asyncio.Future[None]
    ) -> AsyncConnection:
        """Return a connection that streams share, for one that is begun at once."""
        self._enter_loop(options)
        return self._streaming.free() or await self._streaming.place(options, given_up)

    async def close(self) -> None:
        """End running calls with `ClosedError` and give everything back. Idempotent."""
        if self._closed:
            return
        if self._loop is not None:
            running_loop(self._loop, self._name)
        self._closed = True
        if self._loop is not None:
            for group in (self._small, self._large, self._streaming):
                group.hang_up()
            self._loop = None

    def abandon(self) -> None:
        """Refuse calls in a forked child; the connections were closed there by the fork."""
        self._closed = True
        # Not to be unregistered: what the loop watches the connections with is the parent's, too.
        self._loop = None

    def _enter_loop(self, options: CallOptions) -> asyncio.AbstractEventLoop:
        """Check that a call can be made here and now; return the running event loop."""
        if self._closed:
            raise ClosedError(f"{self._name} is closed")
        loop = running_loop(self._loop, self._name)
        if loop is not self._loop:
            if self._loop is not None and not self._loop.is_closed():
                # It may run again, and is not to watch connections that another one uses.
                for group in (self._small, self._large, self._streaming):
                    group.hang_up(MOVED)
            self._loop = loop
            connector = AsyncConnector(
                self._native, self._address, LoopBudget(loop), self._keepalive
            )
            self._small, self._large, self._streaming = (
                AsyncConnectionGroup(connector.connect, loop, usual, self.target)
                for usual in (1, _LARGE_CONNECTIONS, 1)
            )
        if options.deadline_ns is not None and options.deadline_ns <= time.monotonic_ns():
            raise DeadlineExceeded(
                "the deadline passed before the request was sent",
                call=options.call,
                target=self.target,
            )
        return loop

    def __del__(self) -> None:
        loop = getattr(self, "_loop", None)
        if loop is None or loop.is_closed():
            return
        # Any thread may be here, and the loop has the connections.
        for group in (self._small, self._large, self._streaming):
            group.hang_up_soon()


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
