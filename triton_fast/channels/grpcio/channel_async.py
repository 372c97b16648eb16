"""The grpcio channel for coroutines, over grpc.aio.

Owns the grpc.aio channel object, which belongs to the event loop of the call that opened it. It
knows no message and no tensor.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from threading import Event, get_ident
from typing import TYPE_CHECKING, Any

from ...errors import ClosedError, FailedPrecondition, TritonFastError, Unavailable
from ...options.keepalive import Keepalive
from ...options.tls import TLS
from ..base import CallOptions, Incoming, Outgoing, StreamIncoming
from ..event_loop import MOVED, Cancellation, in_thread, running_loop
from .answers_async import feed_answer_async
from .common import ChannelOptions, Endpoint, algorithm, import_grpc
from .fork import ActiveCall, collect_calls, gate

if TYPE_CHECKING:
    from .stream_async import AsyncGrpcStream

__all__ = ["AsyncGrpcChannel"]

# From here up a message is copied on another thread than the event loop's on its way out.
_LARGE = 4 << 20


class AsyncGrpcChannel:
    """A way to one server through grpc.aio.

    Answers `triton_fast.channels.base.AsyncChannel`.

    Parameters
    ----------
    target, tls, options, keepalive
        As in `triton_fast.channels.grpcio.channel.GrpcChannel`.

    Raises
    ------
    InvalidOption
        If the target, an option, or a file of ``tls`` cannot be used.

    Notes
    -----
    Constructing one opens nothing and does not import grpcio; the first call does, in the event
    loop that runs then. When that loop is closed, or does not run, it can be used in another one.

    Fork: grpc.aio does not survive a fork while it is in use. So an idle channel is taken down
    before a fork, and opened again by the next call. Where that cannot be, because a call is
    running or others use grpc.aio too, calls in the child raise `FailedPrecondition`; and of the
    children that are forked during a call of this thread's loop, grpcio 1.85 crashes some.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: TLS | bool | None = None,
        options: ChannelOptions | None = None,
        keepalive: Keepalive | None = None,
        authority: str | None = None,
    ) -> None:
        self.target = target
        self._endpoint = Endpoint(
            target, tls=tls, options=options, keepalive=keepalive, authority=authority
        )
        self._loop: asyncio.AbstractEventLoop | None = None  # while there is a grpc.aio channel
        self._channel: Any = None
        self._grpc: Any = None
        self._unary: dict[str, Any] = {}  # callables, by method
        self._ended: str | None = None  # why no call can be made any more

    async def call(
        self, method: str, outgoing: Outgoing, incoming: Incoming, options: CallOptions
    ) -> None:
        """Make one unary call; see `triton_fast.channels.base.AsyncChannel.call`."""
        self.enter_loop()
        self._endpoint.remaining(options)
        message = await self.rendered(outgoing, options)
        flight = ActiveCall(self, get_ident())
        try:
            if not gate.try_enter(flight):
                await self.await_fork(flight, options)
            if method not in self._unary:
                await self._open_unary(method, options)
            response = await self._answer(method, message, options)
        finally:
            del message
            gate.leave(flight)
        try:
            await feed_answer_async(incoming, response, options, self.target, self.closed_meanwhile)
        finally:
            del response  # or the traceback of a WireError would hold it
        incoming.finish()

    async def _answer(self, method: str, message: bytes, options: CallOptions) -> bytes:
        cancelled = Cancellation()
        try:
            response: bytes = await self._unary[method](
                message,
                timeout=self._endpoint.remaining(options),
                metadata=options.headers or None,
                compression=algorithm(self._grpc, options),
            )
        except asyncio.CancelledError as cancellation:
            if not cancelled.is_ours():
                if self._ended is not None:
                    raise ClosedError(self._ended) from None
                if self._loop is not asyncio.get_running_loop():
                    raise Unavailable(MOVED, call=options.call, target=self.target) from None
            # Without its traceback, whose frames hold grpcio's call, and that grpcio's asyncio,
            # which would tell the loop of the call's end when that may be closed.
            raise cancellation.with_traceback(None)  # noqa: B904
        except self.errors as error:
            raise self.failure(error, options) from error
        finally:
            del message
        return response

    def open_stream(
        self, method: str, incoming: StreamIncoming[Any], options: CallOptions
    ) -> AsyncGrpcStream:
        """Return a call with many messages each way; see `base.AsyncChannel.open_stream`."""
        from .stream_async import AsyncGrpcStream  # noqa: PLC0415 - imported on use

        if self._ended is not None:
            raise ClosedError(self._ended)
        return AsyncGrpcStream(self, method, incoming, options)

    async def close(self) -> None:
        """End running calls with `ClosedError` and give everything back. Idempotent."""
        gate.notice_fork()
        if self._ended is not None:
            return
        if self._loop is not None:
            running_loop(self._loop, f"the channel to {self.target}")
        self._ended = f"the channel to {self.target} is closed"
        self._take_down()
        gate.opened.discard(self)

    def abandon(self) -> None:
        """Do nothing: the channel sees to it itself, in an order with grpcio's own hooks."""

    def rest(self, patience_s: float) -> Callable[[float], None] | None:
        """Take the idle channel down before a fork; see `grpc_fork.Guarded.rest`."""
        loop = self._loop
        if loop is None:
            return None
        try:
            elsewhere = loop.is_running() and asyncio.get_running_loop() is not loop
        except RuntimeError:
            elsewhere = True
        if not elsewhere:
            self._take_down()
            return lambda _: None
        _run_on(loop, self._take_down, patience_s)
        # Whatever the loop was at is over when it comes to this.
        return lambda patience_s: _run_on(loop, lambda: None, patience_s)

    def leave_to_parent(self) -> None:
        """Put the channel out of use in a forked child, without touching what is the parent's."""
        self._ended = (
            f"the channel to {self.target} belongs to the process that this one was forked from"
        )
        gate.inherited.append(self._channel)
        self._channel = None
        self._loop = None
        self._unary = {}

    def enter_loop(self) -> None:
        """Check that a call can be made here and now, on the running event loop."""
        if self._ended is not None:
            raise ClosedError(self._ended)
        loop = running_loop(self._loop, f"the channel to {self.target}")
        if loop is not self._loop and self._channel is not None:
            # What the other loop has left: also calls that are over, or this loop would be told
            # of their ends.
            self._take_down()
            collect_calls()

    async def rendered(self, outgoing: Outgoing, options: CallOptions) -> bytes:
        """Return a message in one piece."""
        if outgoing.byte_size < _LARGE:
            return outgoing.render()
        return await in_thread(options, self.target, outgoing.render, borrowed=True)

    async def await_fork(self, flight: ActiveCall, options: CallOptions) -> None:
        """Count a call in when no fork is under way any more."""
        while not gate.try_enter(flight):
            self._endpoint.remaining(options)
            await asyncio.sleep(0.001)

    async def open(self, options: CallOptions) -> Any:
        """Return the grpc.aio channel, made on the running loop if there is none."""
        if "grpc" not in sys.modules:
            await in_thread(options, self.target, import_grpc)  # a tenth of a second
        grpc = import_grpc()
        with gate.lock:
            if self._ended is not None:
                raise ClosedError(self._ended)
            obstacle = gate.unusable or gate.no_asyncio
            if obstacle is not None:
                raise FailedPrecondition(obstacle, call=options.call, target=self.target)
            if self._channel is None:
                self._grpc = grpc
                self._channel = self._endpoint.connect(grpc.aio)
                self._loop = asyncio.get_running_loop()
                gate.watch(self)
        return self._channel

    async def _open_unary(self, method: str, options: CallOptions) -> None:
        self._unary[method] = (await self.open(options)).unary_unary(method)

    def _take_down(self) -> None:
        channel, self._channel = self._channel, None
        loop, self._loop = self._loop, None
        self._unary = {}
        if channel is None or loop is None or loop.is_closed():
            return  # it is closed as it dies; calls of a closed loop cannot be told
        # A coroutine for the sake of calls that may end by themselves; without a time for that it
        # cancels them, and waits for nothing.
        closing = channel.close()
        try:
            closing.send(None)
        except StopIteration:
            return
        closing.close()

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What grpcio may raise."""
        return (self._grpc.RpcError, self._grpc.aio.BaseError, ValueError, TypeError)

    @property
    def ended(self) -> str | None:
        """Why no call can be made any more; None if one can."""
        return self._ended

    def closed_meanwhile(self) -> ClosedError | None:
        """Return the error of a call that has outlived the channel; None if there can be none."""
        return None if self._ended is None else ClosedError(self._ended)

    def remaining(self, options: CallOptions) -> float | None:
        """Return the seconds to the deadline, or raise if there are none."""
        return self._endpoint.remaining(options)

    def failure(
        self, error: Any, options: CallOptions, *, cancelled: bool = False
    ) -> TritonFastError:
        """Return our error for one of grpcio's."""
        return self._endpoint.failure(error, options, self._ended, cancelled=cancelled)


def _run_on(loop: asyncio.AbstractEventLoop, work: Callable[[], None], patience_s: float) -> None:
    """Have another thread's event loop do something, and wait for it so long."""
    over = Event()

    def run() -> None:
        work()
        over.set()

    with contextlib.suppress(RuntimeError):  # it was closed just now
        loop.call_soon_threadsafe(run)
        over.wait(patience_s)
