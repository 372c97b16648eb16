"""The native channel for coroutines: HTTP/2 in the event loop, without threads and without grpcio.

Owns the connections to one server: which call is on which, and when one is made or dropped. For
servers at one address, in plain text; everything else is the grpcio channel's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections import deque
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from ...errors import (
    ClosedError,
    DeadlineExceeded,
    InvalidOption,
    StatusCode,
    TritonFastError,
    Unavailable,
    server_error,
)
from ..base import CallOptions, Incoming, Outgoing, StreamIncoming
from ..event_loop import end_of, in_thread, running_loop, seconds_left
from .channel import import_native, metadata, native_address
from .connection_async import AsyncConnection
from .loop_budget import LoopBudget

if TYPE_CHECKING:
    from ..._core import _http2
    from ...options.keepalive import Keepalive
    from .stream_async import AsyncNativeStream

__all__ = ["AsyncNativeChannel"]

# Calls that send as much have connections to themselves while there are some, so that the small
# ones need not wait behind their frames.
_LARGE = 64 << 10
_MOST_LARGE_CONNECTIONS = 8
# How long to wait for an address before the next one is tried beside it. Source: RFC 8305, 8.
_ATTEMPT_DELAY_S = 0.25
# Of several megabytes, compressing takes longer than the loop should wait.
_SLOW = 1 << 20
# Shorter than the idle timeouts of the load balancers that people put in between (60 s and up).
_IDLE_S = 50.0


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
    calls have up to eight to themselves. Payloads are sent from where they lie; those of a call
    that is given up are kept until the last frame that was begun with them is sent.
    """

    def __init__(self, target: str, *, keepalive: Keepalive | None = None) -> None:
        self._native = import_native()
        address = native_address(target)
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
        self._budget: LoopBudget  # of that loop
        self._small: list[AsyncConnection] = []
        self._large: list[AsyncConnection] = []
        self._streaming: list[AsyncConnection] = []
        # By the id of the list it is for.
        self._opening: dict[int, list[asyncio.Task[AsyncConnection]]] = {}

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
        connections, most = (
            (self._large, _MOST_LARGE_CONNECTIONS) if byte_size >= _LARGE else (self._small, 1)
        )
        while True:
            connection = self._free_connection(connections, most) or await self._new_connection(
                connections, most, options
            )
            try:
                exchange = connection.multiplexer.open(
                    method, outgoing, incoming, headers, encoding, options.deadline_ns
                )
                break
            except RuntimeError:
                connection.retire()  # the server is going away; the next may be to another one
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
            raise self._failure(outcome, connection, options)
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

    def _failure(
        self, outcome: _http2.Outcome, connection: AsyncConnection, options: CallOptions
    ) -> TritonFastError:
        """Return the error for a call that went wrong on a connection."""
        closed = self._closed_meanwhile()
        if closed is not None:
            return closed
        if outcome.safe_to_retry:
            connection.retire()  # it idled, and was dead: whoever tries again has another one
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

    async def _stream_connection(self, options: CallOptions) -> AsyncConnection:
        """Return the connection that streams share."""
        self._enter_loop(options)
        connections = self._streaming
        return self._free_connection(connections, 1) or await self._new_connection(
            connections, 1, options
        )

    async def close(self) -> None:
        """End running calls with `ClosedError` and give everything back. Idempotent."""
        if self._closed:
            return
        if self._loop is not None:
            running_loop(self._loop, self._name)
        self._closed = True
        self._drop_connections()

    def abandon(self) -> None:
        """Refuse calls in a forked child; the connections were closed there by the fork."""
        self._closed = True
        # Not to be unregistered: what the loop watches them with is the parent's, too.
        self._forget_connections()

    def _enter_loop(self, options: CallOptions) -> asyncio.AbstractEventLoop:
        """Check that a call can be made here and now; return the running event loop."""
        if self._closed:
            raise ClosedError(f"{self._name} is closed")
        loop = running_loop(self._loop, self._name)
        if loop is not self._loop:
            self._forget_connections()  # the loop that watched them is closed
            self._loop = loop
            self._budget = LoopBudget(loop)
        if options.deadline_ns is not None and options.deadline_ns <= time.monotonic_ns():
            raise DeadlineExceeded(
                "the deadline passed before the request was sent",
                call=options.call,
                target=self.target,
            )
        return loop

    def _free_connection(
        self, connections: list[AsyncConnection], most: int
    ) -> AsyncConnection | None:
        """Return a connection for a call; None if one is to be made, or being made, for it."""
        assert self._loop is not None
        found: AsyncConnection | None = None
        stale = []
        for connection in connections:
            idle = connection.calls == 0
            if not connection.usable or (
                idle and self._loop.time() - connection.idle_since > _IDLE_S
            ):
                stale.append(connection)
            elif found is None or connection.byte_size < found.byte_size:
                found = connection
        for connection in stale:
            connections.remove(connection)
            connection.retire()
        if found is None or (found.calls and len(connections) < most):
            return None
        return found

    async def _new_connection(
        self, connections: list[AsyncConnection], most: int, options: CallOptions
    ) -> AsyncConnection:
        """Return a connection after one was made, for this call or for one that waits too."""
        while True:
            if self._closed:
                raise ClosedError(f"{self._name} was closed during the call")
            opening = self._opening.setdefault(id(connections), [])
            if len(connections) + len(opening) < most or not (connections or opening):
                assert self._loop is not None
                task = self._loop.create_task(self._open(connections))
                opening.append(task)
                task.add_done_callback(opening.remove)
                task.add_done_callback(_look_at)
            elif opening:
                task = opening[0]
            else:
                return min(connections, key=lambda connection: connection.byte_size)
            # Others may wait for it too: it goes on if this call is given up.
            await asyncio.wait((task,), timeout=seconds_left(options.deadline_ns))
            if not task.done():
                raise DeadlineExceeded(
                    "the deadline passed while connecting", call=options.call, target=self.target
                )
            if task.cancelled() or self._closed:
                raise ClosedError(f"{self._name} was closed during the call")
            error = task.exception()
            if error is not None:
                raise Unavailable(_said(error), call=options.call, target=self.target) from error
            # All who waited are here at once: each takes the connection with the least on it.
            connection = self._free_connection(connections, most) or task.result()
            if connection.usable:
                return connection

    async def _open(self, connections: list[AsyncConnection]) -> AsyncConnection:
        """Connect, and return the connection. Raises OSError or RuntimeError."""
        loop = asyncio.get_running_loop()
        hosts = await self._hosts(loop)
        if len(hosts) == 1:
            connecting = await self._reached(loop, hosts[0])
        else:
            connecting = await self._first_reached(loop, deque(hosts))
        multiplexer = self._native.Multiplexer(connecting, self._address.authority)
        connection = AsyncConnection(loop, multiplexer, self._budget, self._keepalive)
        connections.append(connection)
        return connection

    async def _reached(self, loop: asyncio.AbstractEventLoop, host: str) -> _http2.Connecting:
        """Connect to an address. Raises RuntimeError."""
        connecting = self._native.Connecting(
            host,
            self._address.port,
            self._address.unix_path.encode("utf-8", "surrogateescape"),
        )
        while not connecting.step():
            await _writable(loop, connecting.descriptor)
        return connecting  # type: ignore[no-any-return]

    async def _first_reached(
        self, loop: asyncio.AbstractEventLoop, hosts: deque[str]
    ) -> _http2.Connecting:
        """Connect to the first of some addresses that answers, as `Connecting` does with a name.

        Raises OSError or RuntimeError.
        """
        failure: BaseException = OSError(f"{self._address.host} has no address")
        trying: set[asyncio.Task[_http2.Connecting]] = set()
        try:
            while hosts or trying:
                if hosts:
                    trying.add(loop.create_task(self._reached(loop, hosts.popleft())))
                done, trying = await asyncio.wait(
                    trying,
                    timeout=_ATTEMPT_DELAY_S if hosts else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                failures = [error for task in done if (error := task.exception())]
                if len(failures) < len(done):
                    return next(task.result() for task in done if not task.exception())
                failure = failures[-1] if failures else failure
        finally:
            for task in trying:
                task.cancel()
            await end_of(trying)
            for task in trying:
                _look_at(task)
        raise failure

    async def _hosts(self, loop: asyncio.AbstractEventLoop) -> list[str]:
        """Return the addresses that the host's name has now: of the families in turn."""
        host, port = self._address.host, self._address.port
        if self._address.unix_path:
            return [host]
        for family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                socket.inet_pton(family, host)
                return [host]
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        first = [str(address[0]) for family, *_, address in found if family == found[0][0]]
        others = [str(address[0]) for family, *_, address in found if family != found[0][0]]
        return [host for pair in zip_longest(first, others) for host in pair if host is not None]

    def _drop_connections(self) -> None:
        for tasks in self._opening.values():
            for task in tasks:
                task.cancel()
        for connections in (self._small, self._large, self._streaming):
            for connection in connections:
                connection.hang_up()
        self._forget_connections()

    def _forget_connections(self) -> None:
        self._small, self._large, self._streaming = [], [], []
        self._opening = {}
        self._loop = None

    def __del__(self) -> None:
        loop = getattr(self, "_loop", None)
        if loop is None or loop.is_closed():
            return
        # Any thread may be here, and the loop has the connections.
        for connection in (*self._small, *self._large, *self._streaming):
            if not connection.multiplexer.inherited:
                with contextlib.suppress(RuntimeError):  # closed just now
                    loop.call_soon_threadsafe(connection.hang_up)


def _said(error: BaseException) -> str:
    return str(error).removeprefix("triton_fast's native code failed: ")


def _look_at(task: asyncio.Task[Any]) -> None:
    """Look at a result that nobody may look at any more, or asyncio would complain."""
    if not task.cancelled():
        task.exception()


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _writable(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    """Return when a socket can be written to."""
    waiter: asyncio.Future[None] = loop.create_future()
    loop.add_writer(descriptor, _expire, waiter)
    try:
        await waiter
    finally:
        loop.remove_writer(descriptor)
