"""The grpcio channel for threads: message bytes in, message bytes out.

Owns the grpcio channel object. grpcio itself is imported by the first call, so that importing this
module costs nothing. It knows no message and no tensor.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple

from ...errors import (
    ClosedError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidOption,
    StatusCode,
    TritonFastError,
)
from ...options.keepalive import Keepalive
from ...options.tls import TLS
from ..base import Call, CallOptions, Incoming, Outgoing, StreamIncoming
from .answers import encoding_of, feed_answer
from .common import ChannelOptions, Endpoint, algorithm, import_grpc
from .fork import ActiveCall, gate, here
from .stream_rules import withdrawn

if TYPE_CHECKING:
    from .stream import GrpcStream

__all__ = ["GrpcChannel"]

# From here up a request is handed to grpcio as a stream of one message. The bytes on the wire are
# the same, but grpcio lets go of the message once it is sent, and not only when the answer is
# there: 3 copies of the payload at the peak instead of 4 (tritonclient: 6). For smaller ones the
# thread that it takes costs more than that is worth (1.6 x at 64 B, 1.04 x at 4 MB; 2026-11-21).
# Not for compressed requests: such a stream goes out as it is (grpcio 1.85).
_LARGE_REQUEST = 32 << 20
# How long closing waits for all calls to have been told.
_CLOSE_S = 5.0


class GrpcChannel:
    """A way to one server through grpcio; answers the contract in `triton_fast.channels.base`.

    Parameters
    ----------
    target : str
        Where the server is: ``host:port``, ``[IPv6 address]:port``, ``unix:/path``,
        ``dns:///host:port``, ``ipv4:address:port,address:port`` or ``ipv6:[address]:port``.
    tls : TLS or bool, optional
        True for TLS with the system's authorities; left out or False, plain text.
    options : mapping or sequence of (str, value), optional
        grpcio channel options. Each replaces the one of the same name among ours and those of
        ``keepalive``; a value of None leaves the option to grpcio.
    keepalive : Keepalive, optional
        Left out, no pings are sent.
    authority : str, optional
        What calls carry as ``:authority``, in place of the target's own or that of ``tls``.

    Raises
    ------
    InvalidOption
        If the target, an option, or a file of ``tls`` cannot be used.

    Notes
    -----
    Thread-safe. Constructing one opens nothing and does not import grpcio; the first call does.

    Messages may have any size. A server that is away is tried again once a second at most.

    A server may compress its answers though nobody has asked for that, since grpcio says to each
    that it may. They are not decompressed by grpcio, which knows no bound then (its option
    ``"grpc.max_receive_message_length"`` is for the bytes on the wire), but here, within the call's
    deadline and the bounds of `triton_fast.channels.compression`. The option
    ``"grpc.per_message_decompression": 1`` leaves it to grpcio.

    grpcio goes through the proxy that ``grpc_proxy``, ``https_proxy`` or ``http_proxy`` names, for
    every host that ``no_grpc_proxy`` or ``no_proxy`` does not list, ``localhost`` included; the
    option ``"grpc.enable_http_proxy": 0`` turns that off.

    Fork: a channel belongs to the process whose call opened it; in a forked child it raises
    `ClosedError`, and the child makes another. For that one to work, grpcio must be at rest during
    the fork. So a fork holds up new calls and waits up to a second for those that run. If one runs
    longer, or ``GRPC_ENABLE_FORK_SUPPORT`` is off, calls in the child raise `FailedPrecondition`,
    because grpcio would hang or crash there. The parent goes on undisturbed in any case. Calls that
    others make through grpcio cannot be seen from here, and a fork is safe only between them, too.
    Leave that variable unset: where it is 1, grpcio hangs a child that is forked during a call.
    With grpcio before 1.80 a call in a child fails with `Unavailable` now and then, under TLS most.
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
        self._grpc: Any = None
        self._channel: Any = None
        self._methods: dict[str, _Callables] = {}
        self._streams: weakref.WeakSet[GrpcStream] = weakref.WeakSet()  # under the gate's lock
        self._ended: str | None = None  # why no call can be made any more

    def call(
        self, method: str, outgoing: Outgoing, incoming: Incoming, options: CallOptions
    ) -> None:
        """Make one unary call; see `triton_fast.channels.base.Channel.call`."""
        if self._ended is not None:
            raise ClosedError(self._ended)
        if options.deadline_ns is not None:
            self._endpoint.remaining(options)
        if _goes_as_stream(outgoing, options):
            response = self._call_as_future(method, outgoing, options, as_stream=True)
        else:
            response = self._call(method, outgoing, options)
        try:
            feed_answer(incoming, response, options, self.target, self.closed_meanwhile)
        finally:
            del response  # or the traceback of a WireError would hold it
        incoming.finish()

    def start(
        self,
        method: str,
        outgoing: Outgoing,
        incoming: Incoming,
        options: CallOptions,
        on_done: Callable[[BaseException | None], None],
    ) -> Call:
        """Start one unary call; see `triton_fast.channels.base.Channel.start`.

        ``on_done`` is called if this returns, and not if it raises. Besides `ClosedError` it raises
        `MissingDependency`, and what rendering the request raises.
        """
        if self._ended is not None:
            raise ClosedError(self._ended)
        as_stream = _goes_as_stream(outgoing, options)
        request = _OneMessage(outgoing.render())
        started = _StartedCall(self, incoming, options, on_done)
        future = None
        try:
            gate.enter(started.flight, options, self.target)
            callables = self._methods.get(method) or self._open(method, options)
            try:
                if as_stream:
                    future = callables.stream_unary.future(request, *self._settings(options))
                else:
                    future = callables.unary.future(next(request), *self._settings(options))
            except (self._grpc.RpcError, ValueError, TypeError) as error:
                raise self.failure(error, options) from error
            started.watch(future)
        except (DeadlineExceeded, FailedPrecondition, InvalidOption) as error:
            # The call is over before it began: told like any other end, so that there is one way.
            gate.leave(started.flight)
            on_done(error)
        except BaseException:
            gate.flights.discard(started.flight)  # see ActiveCall
            gate.leave(started.flight)
            if future is not None:
                future.cancel()
            raise
        return started

    def open_stream(
        self, method: str, incoming: StreamIncoming[Any], options: CallOptions
    ) -> GrpcStream:
        """Return a call with many messages; see `triton_fast.channels.base.Channel.open_stream`."""
        from .stream import GrpcStream  # noqa: PLC0415 - imported on use

        if self._ended is not None:
            raise ClosedError(self._ended)

        def start(messages: Iterator[bytes] | bytes) -> Any:
            callables = self._methods.get(method) or self._open(method, options)
            only = isinstance(messages, bytes)
            streaming = callables.unary_stream if only else callables.stream
            try:
                return streaming(
                    messages, self._endpoint.remaining(options), options.headers or None
                )
            except (self._grpc.RpcError, ValueError, TypeError) as error:
                raise self.failure(error, options) from error

        stream = GrpcStream(self, start, incoming, options)
        with gate.lock:
            self._streams.add(stream)
        return stream

    @property
    def ended(self) -> str | None:
        """Why no call can be made any more; None if one can."""
        return self._ended

    def closed_meanwhile(self) -> ClosedError | None:
        """Return the error of a call that has outlived the channel; None if there can be none."""
        return None if self._ended is None else ClosedError(self._ended)

    def close(self) -> None:
        """End running calls with `ClosedError` and give everything back. Idempotent.

        Waits until all calls have been told, 5 s at most: whoever is told may never return.
        """
        gate.notice_fork()
        with gate.lock:
            if self._ended is not None:
                return
            self._ended = f"the channel to {self.target} is closed"
            channel, self._channel = self._channel, None
            self._methods = {}
            streams = list(self._streams)
            gate.opened.discard(self)
            # grpcio's close returns when every call has been told, which takes the threads that
            # serve the calls. On one of those (in on_done, or in a signal handler during a call) it
            # never would.
            serving = getattr(here, "delivering", False) or gate.serves(self)
        if channel is None:
            return
        for stream in streams:  # or their threads would wait for those who receive
            stream.end()
        closing = threading.Thread(target=channel.close, name="triton_fast close", daemon=True)
        try:
            closing.start()
        except RuntimeError:  # the interpreter is being taken down, and starts no threads any more
            channel.close()
            return
        if not serving:
            # What somebody does in a future's callback may take for ever.
            closing.join(_CLOSE_S)

    def abandon(self) -> None:
        """Do nothing: the channel sees to it itself, in an order with grpcio's own hooks."""

    def _open(self, method: str, options: CallOptions) -> _Callables:
        """Return the callables for a method, having made the grpcio channel if there is none."""
        grpc = import_grpc()
        with gate.lock:
            if self._ended is not None:
                raise ClosedError(self._ended)
            if gate.unusable is not None:
                raise FailedPrecondition(gate.unusable, call=options.call, target=self.target)
            self._grpc = grpc
            if self._channel is None:
                self._channel = self._endpoint.connect(grpc)
                gate.watch(self)
            callables = _Callables(
                self._channel.unary_unary(method),
                self._channel.stream_unary(method),
                self._channel.unary_stream(method),
                self._channel.stream_stream(method),
            )
            self._methods[method] = callables
        return callables

    def _call(self, method: str, outgoing: Outgoing, options: CallOptions) -> bytes:
        # Spelt out, and not by way of _settings: for small requests every function call shows.
        message = outgoing.render()
        flight = ActiveCall(self, get_ident())
        try:
            gate.enter(flight, options, self.target)
            callables = self._methods.get(method) or self._open(method, options)
            try:
                response: bytes = callables.unary(
                    message,
                    None if options.deadline_ns is None else self._endpoint.remaining(options),
                    options.headers or None,
                    None,
                    None,
                    None if options.compression is None else algorithm(self._grpc, options),
                )
            except (self._grpc.RpcError, ValueError, TypeError) as error:
                raise self.failure(error, options) from error
        finally:
            del message
            gate.flights.discard(flight)  # see ActiveCall
            gate.leave(flight)
        return response

    def _call_as_future(
        self, method: str, outgoing: Outgoing, options: CallOptions, *, as_stream: bool
    ) -> bytes:
        request = _OneMessage(outgoing.render())
        flight = ActiveCall(self, get_ident())
        try:
            gate.enter(flight, options, self.target)
            callables = self._methods.get(method) or self._open(method, options)
            try:
                # As a future: a blocking stream that is interrupted while it sends leaves its
                # thread behind, with the message.
                if as_stream:
                    future = callables.stream_unary.future(request, *self._settings(options))
                else:
                    future = callables.unary.future(next(request), *self._settings(options))
                try:
                    response: bytes = future.result()
                except BaseException:
                    future.cancel()
                    raise
            except (self._grpc.RpcError, ValueError, TypeError) as error:
                raise self.failure(error, options) from error
        finally:
            gate.flights.discard(flight)  # see ActiveCall
            gate.leave(flight)
        return response

    def _settings(self, options: CallOptions) -> tuple[Any, ...]:
        """Return what grpcio's callables take after the request, in their order."""
        return (
            self._endpoint.remaining(options),
            options.headers or None,
            None,
            None,
            algorithm(self._grpc, options),
        )

    def failure(
        self, error: Any, options: CallOptions, *, cancelled: bool = False
    ) -> TritonFastError:
        """Return our error for a grpcio call that has failed; see `Endpoint.failure`."""
        return self._endpoint.failure(error, options, self._ended, cancelled=cancelled)

    def rest(self, patience_s: float) -> None:
        """Do nothing before a fork: without calls, there is no thread inside grpcio."""

    def leave_to_parent(self) -> None:
        """Put the channel out of use in a forked child, without touching what is the parent's."""
        self._ended = (
            f"the channel to {self.target} belongs to the process that this one was forked from"
        )
        # Kept, not dropped: dropping it would have grpcio tear down the parent's connection state.
        gate.inherited.append(self._channel)
        self._channel = None
        self._methods = {}


class _Callables(NamedTuple):
    """grpcio's ways to call a method: with one message or an iterator of them, for one or many."""

    unary: Any
    stream_unary: Any
    unary_stream: Any
    stream: Any


class _OneMessage:
    """A request on its way into grpcio, given out once and then forgotten."""

    __slots__ = ("_message",)

    def __init__(self, message: bytes) -> None:
        self._message: bytes | None = message

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        message, self._message = self._message, None
        if message is None:
            raise StopIteration
        return message


class _StartedCall:
    """A call without a thread waiting for it: hands its end to ``on_done``, once."""

    __slots__ = (
        "_cancelled",
        "_channel",
        "_future",
        "_incoming",
        "_on_done",
        "_options",
        "_starting",
        "flight",
    )

    def __init__(
        self,
        channel: GrpcChannel,
        incoming: Incoming,
        options: CallOptions,
        on_done: Callable[[BaseException | None], None],
    ) -> None:
        self.flight = ActiveCall(channel, 0)
        self._channel = channel
        self._incoming = incoming
        self._options = options
        self._on_done = on_done
        self._future: Any = None
        self._cancelled = False
        self._starting: int | None = None  # the thread that does, while it does

    def watch(self, future: Any) -> None:
        """Have the end of this grpcio call told."""
        self._future = future
        self._starting = get_ident()
        try:
            future.add_done_callback(self._finish)
        finally:
            self._starting = None

    def cancel(self) -> None:
        """End the call with `Cancelled` unless it is over; the server is told. Idempotent."""
        self._cancelled = True
        future = getattr(self, "_future", None)
        if future is not None:
            future.cancel()

    def _finish(self, future: Any) -> None:
        if self._starting == get_ident() and _takes_long(future):
            # It was over before it was watched, and whoever started it is not to wait for this.
            self._starting = None
            thread = threading.Thread(target=self._finish, args=(future,), name="triton_fast")
            thread.daemon = True
            try:
                thread.start()
            except RuntimeError:
                pass  # no thread is to be had
            else:
                return
        outer = getattr(here, "delivering", False)
        here.delivering = True
        try:
            gate.leave(self.flight)
            error: BaseException | None = None
            try:
                self._deliver(future)
            except BaseException as raised:  # noqa: BLE001  on_done is where it goes
                error = raised
            on_done = self._on_done
            # The caller may keep this object: not with all that the call had to do with.
            del self._future, self._incoming, self._on_done
            on_done(error)
        finally:
            here.delivering = outer

    def _deliver(self, future: Any) -> None:
        if future.code().value[0] != StatusCode.OK:
            raise self._channel.failure(
                future, self._options, cancelled=self._cancelled
            ) from future
        response = future.result()
        channel, options = self._channel, self._options
        try:
            feed_answer(self._incoming, response, options, channel.target, self._ended)
        finally:
            del response
        self._incoming.finish()

    def _ended(self) -> TritonFastError | None:
        if self._cancelled:
            return withdrawn(self._channel, self._options)
        return self._channel.closed_meanwhile()


def _takes_long(future: Any) -> bool:
    """Tell whether a call's answer is to be decompressed."""
    return future.code().value[0] == StatusCode.OK and encoding_of(future.result()) is not None


def _goes_as_stream(outgoing: Outgoing, options: CallOptions) -> bool:
    return outgoing.byte_size >= _LARGE_REQUEST and options.compression is None
