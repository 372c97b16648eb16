"""The grpcio channel: message bytes in, message bytes out. The only module that may import grpc.

Owns the grpcio channel object, its options, and what keeps ``fork`` safe around it. grpcio itself
is imported by the first call, so that importing this module costs nothing. It knows no message and
no tensor; it imports errors, the TLS settings and the contract in `base`.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import get_ident
from typing import Any, TypeAlias

from ..errors import (
    ClosedError,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidOption,
    MissingDependency,
    StatusCode,
    TritonFastError,
    server_error,
)
from ..keepalive import Keepalive
from ..target import checked_target
from ..tls import TLS
from .base import Call, CallOptions, Incoming, Outgoing

__all__ = ["ChannelOption", "GrpcChannel"]

ChannelOption: TypeAlias = int | str | bytes | None
"""Value of a grpcio channel option; None leaves the option as grpcio has it."""

# What every channel starts from; the user's options replace these one by one. None of them is for
# speed. Of the twenty that could be (HTTP/2 frame, window and write buffer sizes, BDP probe, TCP
# read chunks and receive buffer, TX zero-copy, retries, minimal stack) none gained more than two
# runs differ, at 64 B, 602,112 B, 4 MB and 16 MB (ratios 0.93 to 1.11 to none of them, without a
# pattern but for the BDP probe: switching it off cost 11 % at 602,112 B and 4 MB). Triton 2.51 with
# the C++ identity backend, grpcio 1.85, two cores, 2026-11-21.
_DEFAULT_OPTIONS: Mapping[str, ChannelOption] = {
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
    # An error message travels as a header, and Triton's can hold a whole Python traceback. grpcio's
    # own limit of 8 KiB turns those into RESOURCE_EXHAUSTED and loses what the server said.
    "grpc.max_metadata_size": 4 << 20,
    # A connection of our own: channels with equal options would share one otherwise, so that a
    # large tensor of one client holds up another's small one, and a forked child would write to
    # its parent's.
    "grpc.use_local_subchannel_pool": 1,
    # A server that was down for a while is left alone by grpcio for up to two minutes; with these a
    # restarted one is back within a second (0.7 s instead of 4.0 s after 20 s down, 2026-11-21).
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
}

# From here up a request is handed to grpcio as a stream of one message. The bytes on the wire are
# the same, but grpcio lets go of the message once it is sent, and not only when the answer is
# there: 3 copies of the payload at the peak instead of 4 (tritonclient: 6). For smaller ones the
# thread that it takes costs more than that is worth (1.6 x at 64 B, 1.04 x at 4 MB; 2026-11-21).
# Not for compressed requests: such a stream goes out as it is (grpcio 1.85).
_LARGE_REQUEST = 32 << 20

# How long a fork waits for running calls to end before the child has to do without this channel.
_FORK_PATIENCE_S = 1.0

_FORK_SWITCH = "GRPC_ENABLE_FORK_SUPPORT"
_OFF = ("0", "f", "false", "n", "no")


_REFUSED_HEADERS = "Invalid metadata"  # in grpcio's words
_NOT_REACHED = (
    "failed to connect to all addresses",
    "errors resolving",
    "DNS resolution failed",
    "empty address list",
)


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

    Raises
    ------
    InvalidOption
        If the target, an option, or a file of ``tls`` cannot be used.

    Notes
    -----
    Thread-safe. Constructing one opens nothing and does not import grpcio; the first call does.

    Messages may have any size. A server that is away is tried again once a second at most.

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
        options: Mapping[str, ChannelOption] | Sequence[tuple[str, ChannelOption]] | None = None,
        keepalive: Keepalive | None = None,
    ) -> None:
        self.target = target
        self._address = checked_target(target)
        if isinstance(tls, bool):
            tls = TLS() if tls else None
        if tls is not None:
            if not isinstance(tls, TLS):
                raise InvalidOption(f"tls is a TLS or True, not {tls!r}")
            tls.read()  # so that a missing file is found here, not by the first call
        self._tls = tls
        merged = dict(_DEFAULT_OPTIONS)
        if keepalive is not None:
            merged.update(_keepalive_options(keepalive))
        if tls is not None and tls.server_name is not None:
            merged["grpc.ssl_target_name_override"] = tls.server_name
            merged["grpc.default_authority"] = tls.server_name
        merged.update(_checked_options(options))
        self._options = tuple((name, value) for name, value in merged.items() if value is not None)
        self._grpc: Any = None
        self._channel: Any = None
        self._methods: dict[str, tuple[Any, Any]] = {}
        self._ended: str | None = None  # why no call can be made any more

    def call(
        self, method: str, outgoing: Outgoing, incoming: Incoming, options: CallOptions
    ) -> None:
        """Make one unary call; see `triton_fast.channels.base.Channel.call`."""
        if self._ended is not None:
            raise ClosedError(self._ended)
        if options.deadline_ns is not None:
            self._remaining(options)
        if _goes_as_stream(outgoing, options):
            response = self._call_as_stream(method, outgoing, options)
        else:
            response = self._call(method, outgoing, options)
        try:
            incoming.begin(len(response))
            incoming.feed(response)
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
            _gate.enter(started.flight, options, self.target)
            unary, streaming = self._methods.get(method) or self._open(method, options)
            try:
                if as_stream:
                    future = streaming.future(request, *self._settings(options))
                else:
                    future = unary.future(next(request), *self._settings(options))
            except (self._grpc.RpcError, ValueError, TypeError) as error:
                raise self._failure(error, options) from error
            started.watch(future)
        except (DeadlineExceeded, FailedPrecondition, InvalidOption) as error:
            # The call is over before it began: told like any other end, so that there is one way.
            _gate.leave(started.flight)
            on_done(error)
        except BaseException:
            _gate.leave(started.flight)
            if future is not None:
                future.cancel()
            raise
        return started

    def close(self) -> None:
        """End running calls with `ClosedError` and give everything back. Idempotent."""
        _gate.notice_fork()
        with _gate.lock:
            if self._ended is not None:
                return
            self._ended = f"the channel to {self.target} is closed"
            channel, self._channel = self._channel, None
            self._methods = {}
            _gate.opened.discard(self)
            # grpcio's close returns when every call has been told, which takes the threads that
            # serve the calls. On one of those (in on_done, or in a signal handler during a call) it
            # never would.
            serving = getattr(_here, "delivering", False) or _gate.serves(self)
        if channel is None:
            return
        if serving:
            threading.Thread(target=channel.close, name="triton_fast close", daemon=True).start()
        else:
            channel.close()

    def abandon(self) -> None:
        """Do nothing: the channel sees to it itself, in an order with grpcio's own hooks."""

    def _open(self, method: str, options: CallOptions) -> tuple[Any, Any]:
        """Return the callables for a method, having made the grpcio channel if there is none."""
        grpc = _import_grpc()
        with _gate.lock:
            if self._ended is not None:
                raise ClosedError(self._ended)
            if _gate.unusable is not None:
                raise FailedPrecondition(_gate.unusable, call=options.call, target=self.target)
            self._grpc = grpc
            if self._channel is None:
                self._channel = self._connect(grpc)
                _gate.watch(self)
            pair = (self._channel.unary_unary(method), self._channel.stream_unary(method))
            self._methods[method] = pair
        return pair

    def _connect(self, grpc: Any) -> Any:
        if self._tls is None:
            return grpc.insecure_channel(self._address, self._options)
        pem = self._tls.read()
        credentials = grpc.ssl_channel_credentials(
            pem.root_certificates, pem.private_key, pem.certificate_chain
        )
        return grpc.secure_channel(self._address, credentials, self._options)

    def _call(self, method: str, outgoing: Outgoing, options: CallOptions) -> bytes:
        # Spelt out, and not by way of _settings: for small requests every function call shows.
        message = outgoing.render()
        flight = _Flight(self, get_ident())
        try:
            _gate.enter(flight, options, self.target)
            unary, _ = self._methods.get(method) or self._open(method, options)
            try:
                response: bytes = unary(
                    message,
                    None if options.deadline_ns is None else self._remaining(options),
                    options.headers or None,
                    None,
                    None,
                    None if options.compression is None else self._algorithm(options),
                )
            except (self._grpc.RpcError, ValueError, TypeError) as error:
                raise self._failure(error, options) from error
        finally:
            del message
            _gate.leave(flight)
        return response

    def _call_as_stream(self, method: str, outgoing: Outgoing, options: CallOptions) -> bytes:
        request = _OneMessage(outgoing.render())
        flight = _Flight(self, get_ident())
        try:
            _gate.enter(flight, options, self.target)
            _, streaming = self._methods.get(method) or self._open(method, options)
            try:
                # As a future: a blocking stream that is interrupted while it sends leaves its
                # thread behind, with the message.
                future = streaming.future(request, *self._settings(options))
                try:
                    response: bytes = future.result()
                except BaseException:
                    future.cancel()
                    raise
            except (self._grpc.RpcError, ValueError, TypeError) as error:
                raise self._failure(error, options) from error
        finally:
            _gate.leave(flight)
        return response

    def _settings(self, options: CallOptions) -> tuple[Any, ...]:
        """Return what grpcio's callables take after the request, in their order."""
        return (
            None if options.deadline_ns is None else self._remaining(options),
            options.headers or None,
            None,
            None,
            None if options.compression is None else self._algorithm(options),
        )

    def _remaining(self, options: CallOptions) -> float | None:
        """Return the seconds to the deadline, or raise if there are none."""
        if options.deadline_ns is None:
            return None
        remaining = (options.deadline_ns - time.monotonic_ns()) * 1e-9
        if remaining <= 0:
            raise DeadlineExceeded(
                "the deadline passed before the request was sent",
                call=options.call,
                target=self.target,
            )
        return remaining

    def _algorithm(self, options: CallOptions) -> Any:
        algorithms = self._grpc.Compression
        return algorithms.Gzip if options.compression == "gzip" else algorithms.Deflate

    def _failure(
        self, error: Any, options: CallOptions, *, cancelled: bool = False
    ) -> TritonFastError:
        """Return our error for one of grpcio's, or for a grpcio call that has failed."""
        if isinstance(error, BaseException):
            # Its traceback ends in grpcio's frames, and those hold the whole request.
            error.__traceback__ = None
        if isinstance(error, ValueError | TypeError):
            return self._refusal(error, options)
        status = error.code().value[0]
        if status == StatusCode.INTERNAL and error.details() == _REFUSED_HEADERS:
            return self._refusal(error, options)
        if status == StatusCode.CANCELLED and self._ended is not None and not cancelled:
            return ClosedError(self._ended)
        message = error.details() or ""
        if status == StatusCode.UNAVAILABLE:
            message += self._advice(message)
        return server_error(status, message, call=options.call, target=self.target)

    def _refusal(self, error: Any, options: CallOptions) -> TritonFastError:
        """Return the error for a call that grpcio would not begin."""
        if self._ended is not None:
            return ClosedError(self._ended)
        if isinstance(error, ValueError):
            # Older ones say which header they refuse with its value, and that may be a secret.
            error.args = (_REFUSED_HEADERS,)
        names = ", ".join(sorted({str(header[0]) for header in options.headers}))
        return InvalidOption(
            f"{options.call or 'the call'} cannot be sent with these headers: {names}"
        )

    def _advice(self, message: str) -> str:
        """Say what to look at, where grpcio reached no server at all."""
        if not message.startswith(_NOT_REACHED):
            return ""
        if self._address.startswith("unix:"):
            where = "that the socket is its gRPC one"
        else:
            where = "that this is its gRPC port (8001 unless set otherwise; 8000 is HTTP)"
        if "andshake" in message or "ssl" in message.lower():
            where += ", and that server and client agree on TLS and certificates"
        elif "Socket closed" in message:
            where += ", and whether it expects TLS"
        proxies = [
            name for name in ("grpc_proxy", "https_proxy", "http_proxy") if os.environ.get(name)
        ]
        if proxies and not self._address.startswith("unix:"):
            where += f", and the proxy in {proxies[0]}, which grpcio goes through"
        return f" (check that the server runs, {where})"

    def _leave_to_parent(self) -> None:
        """Put the channel out of use in a forked child, without touching what is the parent's."""
        self._ended = (
            f"the channel to {self.target} belongs to the process that this one was forked from"
        )
        # Kept, not dropped: dropping it would have grpcio tear down the parent's connection state.
        _gate.inherited.append(self._channel)
        self._channel = None
        self._methods = {}


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


class _Flight:
    """A call that is inside grpcio, or about to be."""

    __slots__ = ("channel", "slow", "thread")

    def __init__(self, channel: GrpcChannel, thread: int) -> None:
        self.channel = channel
        self.thread = thread  # that waits for it; 0 for none
        self.slow = False  # has outlasted a fork's patience


class _StartedCall:
    """A call without a thread waiting for it: hands its end to ``on_done``, once."""

    __slots__ = ("_cancelled", "_channel", "_future", "_incoming", "_on_done", "_options", "flight")

    def __init__(
        self,
        channel: GrpcChannel,
        incoming: Incoming,
        options: CallOptions,
        on_done: Callable[[BaseException | None], None],
    ) -> None:
        self.flight = _Flight(channel, 0)
        self._channel = channel
        self._incoming = incoming
        self._options = options
        self._on_done = on_done
        self._future: Any = None
        self._cancelled = False

    def watch(self, future: Any) -> None:
        """Have the end of this grpcio call told."""
        self._future = future
        future.add_done_callback(self._finish)

    def cancel(self) -> None:
        """End the call with `Cancelled` unless it is over; the server is told. Idempotent."""
        self._cancelled = True
        future = getattr(self, "_future", None)
        if future is not None:
            future.cancel()

    def _finish(self, future: Any) -> None:
        outer = getattr(_here, "delivering", False)
        _here.delivering = True
        try:
            _gate.leave(self.flight)
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
            _here.delivering = outer

    def _deliver(self, future: Any) -> None:
        if future.code().value[0] != StatusCode.OK:
            cancelled = self._cancelled
            raise self._channel._failure(future, self._options, cancelled=cancelled) from future
        response = future.result()
        try:
            self._incoming.begin(len(response))
            self._incoming.feed(response)
        finally:
            del response
        self._incoming.finish()


class _ForkGate:
    """Keeps calls and forks apart: grpcio survives a fork only while no thread is inside it.

    Without it, of the children forked while other threads called, 7 of 720 crashed (SIGSEGV, or an
    abort in grpcio's poller), and 10 of 192 where those calls were long; with it none of 2,400
    (grpcio 1.85, 2026-11-21). Nobody has to set ``GRPC_ENABLE_FORK_SUPPORT`` for that; where it is
    0, every child hangs past its deadlines, and where it is 1, those forked during a call.
    """

    def __init__(self) -> None:
        self._renew_lock()
        self.flights: set[_Flight] = set()
        self.forks = 0  # threads that are about to fork
        self.opened: weakref.WeakSet[GrpcChannel] = weakref.WeakSet()
        self.inherited: list[Any] = []
        self.unusable: str | None = None  # why grpcio cannot be used in this process
        self._support_off = False
        self._hooked = False
        self._pid = os.getpid()

    def _renew_lock(self) -> None:
        # Re-entrant, for a signal handler or a finaliser may make or end a call anywhere. Taken by
        # itself where nobody waits: through the condition it costs a microsecond more per call.
        self.lock = threading.RLock()
        self._condition = threading.Condition(self.lock)

    def enter(self, flight: _Flight, options: CallOptions, target: str) -> None:
        """Count a call in, once no fork is waiting; no longer than to the call's deadline."""
        if self._pid != os.getpid():
            self.notice_fork()
        with self.lock:
            if self.forks and not getattr(_here, "delivering", False):
                self._await_forks(options, target)
            self.flights.add(flight)

    def leave(self, flight: _Flight) -> None:
        """Count a call out. Idempotent."""
        with self.lock:
            self.flights.discard(flight)
            if self.forks and not self.flights:
                self._condition.notify_all()

    def notice_fork(self) -> None:
        """Start afresh if this is a forked child, whose locks may be held by threads it lacks.

        The hook below does this too, but not before those that were registered earlier, nor after
        a fork that runs no hooks.
        """
        if self._pid != os.getpid():
            self._after_fork_in_child()

    def serves(self, channel: GrpcChannel) -> bool:
        """Tell whether this very thread is in a blocking call on the channel."""
        thread = get_ident()
        return any(flight.thread == thread and flight.channel is channel for flight in self.flights)

    def watch(self, channel: GrpcChannel) -> None:
        """Have a channel put out of use in forked children."""
        self.opened.add(channel)
        if not self._hooked:
            self._hooked = True
            self._support_off = os.environ.get(_FORK_SWITCH, "").lower() in _OFF
            # After grpcio's own, which the first channel has registered: the last one registered is
            # the first to run before a fork, and calls end only while grpcio's threads run.
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(
                    before=self._before_fork,
                    after_in_parent=self._after_fork_in_parent,
                    after_in_child=self._after_fork_in_child,
                )

    def _await_forks(self, options: CallOptions, target: str) -> None:
        while self.forks:
            patience = None
            if options.deadline_ns is not None:
                patience = (options.deadline_ns - time.monotonic_ns()) * 1e-9
                if patience <= 0:
                    raise DeadlineExceeded(
                        "the deadline passed while the process was being forked",
                        call=options.call,
                        target=target,
                    )
            self._condition.wait(patience)

    def _before_fork(self) -> None:
        with self.lock:
            self.forks += 1
            # Where a call outlasted an earlier fork, this child has lost its channel already.
            patient = not any(flight.slow for flight in self.flights)
            end = time.monotonic() + _FORK_PATIENCE_S
            while patient and self.flights and (left := end - time.monotonic()) > 0:
                self._condition.wait(left)
            for flight in self.flights:
                flight.slow = True

    def _after_fork_in_parent(self) -> None:
        with self.lock:
            self.forks -= 1
            self._condition.notify_all()

    def _after_fork_in_child(self) -> None:
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        running = len(self.flights)
        self._renew_lock()
        self.flights = set()
        self.forks = 0
        opened, self.opened = list(self.opened), weakref.WeakSet()
        for channel in opened:
            channel._leave_to_parent()
        if self._support_off:
            why = f"{_FORK_SWITCH} is off: unset it"
        elif running:
            calls = "1 call was" if running == 1 else f"{running} calls were"
            why = f"{calls} running in the parent during the fork: fork while none is"
        else:
            return
        self.unusable = (
            f"grpcio cannot be used in this forked process, because {why}, or start the process "
            "with the spawn or forkserver method"
        )


_gate = _ForkGate()
_here = threading.local()


def _goes_as_stream(outgoing: Outgoing, options: CallOptions) -> bool:
    return outgoing.byte_size >= _LARGE_REQUEST and options.compression is None


def _import_grpc() -> Any:
    try:
        import grpc  # noqa: PLC0415  the point of it: not before the first call
    except ImportError as error:
        why = "is not installed" if error.name == "grpc" else f"cannot be imported ({error})"
        raise MissingDependency(
            f"the gRPC channel needs grpcio, which {why}; install it with: pip install grpcio"
        ) from error
    return grpc


def _checked_options(
    options: Mapping[str, ChannelOption] | Sequence[tuple[str, ChannelOption]] | None,
) -> dict[str, ChannelOption]:
    """Return the user's channel options by name, or say which one grpcio would choke on."""
    checked: dict[str, ChannelOption] = {}
    if options is None:
        return checked
    if not isinstance(options, Mapping | Sequence):
        raise InvalidOption(f"channel options are a mapping or (name, value) pairs: {options!r}")
    for pair in options.items() if isinstance(options, Mapping) else options:
        try:
            name, value = pair
        except (TypeError, ValueError):
            raise InvalidOption(f"a channel option is a (name, value) pair, not {pair!r}") from None
        if not isinstance(name, str) or not name:
            raise InvalidOption(f"the name of a channel option is a str, not {name!r}")
        if isinstance(value, float):
            raise InvalidOption(f"channel option {name}: grpcio takes int or str, not {value!r}")
        if isinstance(value, int):
            value = int(value)
            if not -(2**31) <= value < 2**31:
                raise InvalidOption(f"channel option {name}: {value} does not fit into 32 bits")
        checked[name] = value
    return checked


def _keepalive_options(keepalive: Keepalive) -> dict[str, ChannelOption]:
    """Return the settings as grpcio channel options."""
    options: dict[str, ChannelOption] = {
        "grpc.keepalive_time_ms": round(keepalive.time * 1000),
        "grpc.keepalive_timeout_ms": round(keepalive.timeout * 1000),
        # What grpcio goes by in fact, and 60 s unless set (tried with 1.60, 1.73 and 1.85).
        "grpc.http2.ping_timeout_ms": round(keepalive.timeout * 1000),
        "grpc.keepalive_permit_without_calls": int(keepalive.permit_without_calls),
    }
    if keepalive.max_pings_without_data is not None:
        options["grpc.http2.max_pings_without_data"] = keepalive.max_pings_without_data
    return options
