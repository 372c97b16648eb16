"""The grpcio channel for coroutines, over grpc.aio.

Owns the grpc.aio channel object, which belongs to the event loop of the call that opened it. It
knows no message and no tensor.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from threading import Event, get_ident
from typing import Any

from .._core import _wire
from ..errors import (
    Cancelled,
    ClosedError,
    DeadlineExceeded,
    FailedPrecondition,
    StatusCode,
    TritonFastError,
    server_error,
)
from ..keepalive import Keepalive
from ..tls import TLS
from .base import Answer, CallOptions, Incoming, Outgoing
from .grpc_fork import Flight, collect_calls, gate
from .grpcio import ChannelOptions, Endpoint, algorithm, import_grpc
from .loops import in_thread, running_loop, seconds_left

__all__ = ["AsyncGrpcChannel"]

# From here up a message is copied on another thread than the event loop's on its way out, and in
# pieces on its way in.
_LARGE = 4 << 20
_PIECE = 1 << 20


class AsyncGrpcChannel:
    """A way to one server through grpc.aio.

    Answers `triton_fast.channels.base.AsyncChannel`.

    Parameters
    ----------
    target, tls, options, keepalive
        As in `triton_fast.channels.grpc.GrpcChannel`.

    Raises
    ------
    InvalidOption
        If the target, an option, or a file of ``tls`` cannot be used.

    Notes
    -----
    Constructing one opens nothing and does not import grpcio; the first call does, in the event
    loop that runs then. When that loop is closed, the channel can be used in another one.

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
    ) -> None:
        self.target = target
        self._endpoint = Endpoint(target, tls=tls, options=options, keepalive=keepalive)
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
        flight = Flight(self, get_ident())
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
            await fed(incoming, response)
        finally:
            del response  # or the traceback of a WireError would hold it

    async def _answer(self, method: str, message: bytes, options: CallOptions) -> bytes:
        cancelled = _Cancellation()
        try:
            response: bytes = await self._unary[method](
                message,
                timeout=self._endpoint.remaining(options),
                metadata=options.headers or None,
                compression=algorithm(self._grpc, options),
            )
        except asyncio.CancelledError as cancellation:
            if self._ended is not None and not cancelled.is_ours():
                raise ClosedError(self._ended) from None
            # Without its traceback, whose frames hold grpcio's call, and that grpcio's asyncio,
            # which would tell the loop of the call's end when that may be closed.
            raise cancellation.with_traceback(None)  # noqa: B904
        except self.errors as error:
            raise self.failure(error, options) from error
        finally:
            del message
        return response

    def open_stream(self, method: str, options: CallOptions) -> AsyncGrpcStream:
        """Return a call with many messages each way; see `base.AsyncChannel.open_stream`."""
        if self._ended is not None:
            raise ClosedError(self._ended)
        return AsyncGrpcStream(self, method, options)

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

    def rest(self, patience_s: float) -> bool:
        """Take the idle channel down before a fork; see `grpc_fork.Guarded.rest`."""
        loop = self._loop
        if loop is None:
            return False
        try:
            elsewhere = loop.is_running() and asyncio.get_running_loop() is not loop
        except RuntimeError:
            elsewhere = True
        if not elsewhere:
            self._take_down()
            return True
        down = Event()

        def take_down() -> None:
            self._take_down()
            down.set()

        with contextlib.suppress(RuntimeError):  # it was closed just now
            loop.call_soon_threadsafe(take_down)
            down.wait(patience_s)
        return True

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
            # What the closed loop has left: also calls that are over, or this loop would be told
            # of their ends.
            self._take_down()
            collect_calls()

    async def rendered(self, outgoing: Outgoing, options: CallOptions) -> bytes:
        """Return a message in one piece."""
        if outgoing.byte_size < _LARGE:
            return outgoing.render()
        return await in_thread(options, self.target, outgoing.render, borrowed=True)

    async def await_fork(self, flight: Flight, options: CallOptions) -> None:
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

    def remaining(self, options: CallOptions) -> float | None:
        """Return the seconds to the deadline, or raise if there are none."""
        return self._endpoint.remaining(options)

    def failure(
        self, error: Any, options: CallOptions, *, cancelled: bool = False
    ) -> TritonFastError:
        """Return our error for one of grpcio's."""
        return self._endpoint.failure(error, options, self._ended, cancelled=cancelled)


class AsyncGrpcStream:
    """A call with many messages each way; answers `base.AsyncChannelStream`."""

    def __init__(self, channel: AsyncGrpcChannel, method: str, options: CallOptions) -> None:
        self._channel = channel
        self._method = method
        self._options = options
        self._flight = Flight(channel, get_ident())
        self._call: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None  # of the call
        self._begun = asyncio.Event()  # set also if it will never begin
        self._half_closed = False
        self._reading: asyncio.Task[Any] | None = None  # outlives a receive that is cancelled
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
        message = await self._channel.rendered(outgoing, self._options)
        if self._call is None:
            await self._begin()
        cancelled = _Cancellation()
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
            cancelled = _Cancellation()
            try:
                await self._call.done_writing()
            except asyncio.CancelledError:
                error = self._end(self._withdrawn())
                if cancelled.is_ours():
                    raise
                raise error from None
            except self._channel.errors as error:
                raise self._end(self._channel.failure(error, self._options)) from error

    async def receive(self, deadline_ns: int | None = None) -> list[Answer]:
        """Wait for a message; see `base.AsyncChannelStream.receive`."""
        self._check()
        if self._call is None:
            await self._await_beginning(deadline_ns)
        if self._at_end or self._call is None:
            return []
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._call.read())
            self._reading.add_done_callback(_retrieve)
        await asyncio.wait((self._reading,), timeout=seconds_left(deadline_ns))
        if not self._reading.done():
            raise self._late("there was a message")
        reading, self._reading = self._reading, None
        try:
            message = reading.result()
        except asyncio.CancelledError:
            raise self._end(self._withdrawn()) from None
        except self._channel.errors as error:
            raise self._end(self._channel.failure(error, self._options)) from error
        if not isinstance(message, bytes):  # grpcio's mark for the end
            self._at_end = True
            return []
        response = _wire.Response(envelope=True)
        await fed(response, message)
        return [Answer(response.error_message, response)]

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

    @property
    def _target(self) -> str:
        return self._channel.target

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
            return ClosedError(f"the server has ended the stream to {self._target}")
        return server_error(
            code.value[0], details or "", call=self._options.call, target=self._target
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
        if self._channel.ended is not None:
            return ClosedError(self._channel.ended)
        return Cancelled("the call was cancelled", call=self._options.call, target=self._target)

    def _late(self, what: str) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"the deadline passed before {what}", call=self._options.call, target=self._target
        )


class _Cancellation:
    """Tells a task's own cancellation from grpcio's, which raises the same when a call is."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._before = 0 if self._task is None else self._task.cancelling()

    def is_ours(self) -> bool:
        """Whether the task was cancelled since this was made."""
        return self._task is not None and self._task.cancelling() > self._before


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Look at a result that nobody may look at any more, or asyncio would complain."""
    if not task.cancelled():
        task.exception()


async def fed(incoming: Incoming, message: bytes) -> None:
    """Give a message to its parser, in pieces, between which the event loop goes on."""
    incoming.begin(len(message))
    if len(message) < _LARGE:
        incoming.feed(message)
    else:
        view = memoryview(message)
        for first in range(0, len(view), _PIECE):
            incoming.feed(view[first : first + _PIECE])
            await asyncio.sleep(0)
    incoming.finish()
