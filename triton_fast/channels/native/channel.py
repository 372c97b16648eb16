"""The native channel: HTTP/2 on a plain socket, driven by the calling thread, without grpcio.

Owns the pool of connections and the threads that serve `NativeChannel.start`. For servers at one
address, in plain text; everything else is the grpcio channel's.
"""

from __future__ import annotations

import binascii
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from ...errors import (
    Cancelled,
    ClosedError,
    DeadlineExceeded,
    InvalidOption,
    MissingDependency,
    StatusCode,
    TritonFastError,
    server_error,
)
from ..base import Call, CallOptions, Headers, Incoming, Outgoing, StreamIncoming
from ..lifecycle import Phase, watch

if TYPE_CHECKING:
    from ..._core import _http2
    from ...options.keepalive import Keepalive
    from .call_threads import Threads
    from .stream import DrivenStream, NativeStream

__all__ = [
    "MOST_CONNECTIONS",
    "Address",
    "NativeChannel",
    "import_native",
    "metadata",
    "native_address",
    "why_not_native",
]

MOST_CONNECTIONS = 128
"""Enough for a Triton of many instances; a thread that finds all of them busy waits for one."""
# Shorter than the idle timeouts of the load balancers that people put in between (60 s and up).
_IDLE_NS = 50 * 10**9


class Address(NamedTuple):
    """One place to connect to; ``unix_path`` wins if it is not empty."""

    host: str
    port: str
    unix_path: str
    authority: str


def native_address(target: str, authority: str | None = None) -> Address | None:
    """Return the one address that a target stands for, or None if it takes grpcio to reach it.

    Parameters
    ----------
    target : str
        As in `triton_fast.Client`; found to be a target already.
    authority : str, optional
        What calls carry as ``:authority`` in place of the target's own.
    """
    if target.startswith("unix:"):
        path = target.removeprefix("unix:")
        return Address(
            "",
            "",
            path.removeprefix("//") if path.startswith("//") else path,
            authority or "localhost",
        )
    for scheme in ("ipv4:", "ipv6:"):
        if target.startswith(scheme):
            target = target.removeprefix(scheme)
            if "," in target:
                return None
    if target.startswith("dns:") or "/" in target:
        return None
    host, colon, port = target.rpartition(":")
    if not colon or not host or not port.isdigit():
        return None
    return Address(host.removeprefix("[").removesuffix("]"), port, "", authority or target)


def why_not_native() -> str | None:
    """Return why this build of triton_fast has no native channel; None if it has one."""
    try:
        from ..._core import _http2  # noqa: F401, PLC0415
    except ImportError as error:
        return str(error)
    return None


def import_native() -> Any:
    """Return the compiled module.

    Raises
    ------
    MissingDependency
        If triton_fast was built without nghttp2.
    """
    try:
        from ..._core import _http2  # noqa: PLC0415 - it may not have been built
    except ImportError as error:
        raise MissingDependency(
            "triton_fast was built without its native channel; install libnghttp2 and "
            "pkg-config (Debian: apt-get install pkg-config libnghttp2-dev) and build it "
            "again, or use channel='grpc'"
        ) from error
    return _http2


class NativeChannel:
    """A way to one server over HTTP/2 sockets of our own.

    Parameters
    ----------
    target : str
        ``host:port``, ``[IPv6 address]:port``, ``ipv4:address:port``, ``unix:/path``.
    keepalive : Keepalive, optional
        When to ping a server that is silent during a call. There are no pings between calls: a
        connection that died then is noticed when the next call takes it.
    authority : str, optional
        What calls carry as ``:authority``, in place of the target's own.
    busy_poll_ns : int, nanoseconds
        How long a call asks for its answer without sleeping, at the cost of a busy processor.

    Raises
    ------
    InvalidOption
        If the target is not one address.
    MissingDependency
        If triton_fast was built without nghttp2.

    Notes
    -----
    Thread-safe. Each call has a connection to itself while it runs; connections are kept for the
    next call, the most recently used first, and dropped when they idle. The error of a call that a
    dead connection has swallowed says so (`ServerError.safe_to_retry`), and the next call has a new
    connection. Names are looked up anew for each one.
    """

    def __init__(
        self,
        target: str,
        *,
        keepalive: Keepalive | None = None,
        authority: str | None = None,
        busy_poll_ns: int = 0,
    ) -> None:
        self._native = import_native()
        address = native_address(target, authority)
        if address is None:
            raise InvalidOption(
                f"target {target!r}: the native channel takes one address, 'host:port' or "
                "'unix:/path'; use channel='grpc' for others"
            )
        self.target = target
        self._keepalive = (
            (0, 0)
            if keepalive is None
            else (round(keepalive.time * 1e9), round(keepalive.timeout * 1e9))
        )
        self._busy_ns = busy_poll_ns
        self._closed = False
        self._pool: _http2.Pool = self._native.Pool(
            address.host,
            address.port,
            address.unix_path.encode("utf-8", "surrogateescape"),
            address.authority,
            MOST_CONNECTIONS,
            _IDLE_NS,
        )
        self._threads: Threads | None = None
        self._threads_lock = threading.Lock()
        self._streams: weakref.WeakSet[NativeStream] = weakref.WeakSet()
        _channels.add(self)

    def call(
        self, method: str, outgoing: Outgoing, incoming: Incoming, options: CallOptions
    ) -> None:
        """Make one unary call; see `triton_fast.channels.base.Channel.call`."""
        self._make(self._prepare(method, outgoing, incoming, options), incoming, options)

    def start(
        self,
        method: str,
        outgoing: Outgoing,
        incoming: Incoming,
        options: CallOptions,
        on_done: Callable[[BaseException | None], None],
    ) -> Call:
        """Start one unary call; see `triton_fast.channels.base.Channel.start`."""
        native = self._prepare(method, outgoing, incoming, options)

        def work() -> None:
            error = None
            try:
                self._make(native, incoming, options)
            except BaseException as failure:  # noqa: BLE001 - it is on_done's now
                error = failure
            on_done(error)

        return self._work_beside(native, work, options.deadline_ns)

    def open_stream(
        self, method: str, incoming: StreamIncoming[Any], options: CallOptions
    ) -> NativeStream:
        """Return a call with many messages; see `triton_fast.channels.base.Channel.open_stream`."""
        from .stream import NativeStream  # noqa: PLC0415 - imported on use

        self._check(options)
        try:
            call = self._native.StreamCall(
                self._pool,
                method,
                incoming,
                metadata(options.headers),
                options.deadline_ns,
                self._keepalive,
                self._busy_ns,
            )
        except RuntimeError as error:
            self._refuse(error)
        stream = NativeStream(self._driven(call), options, self.target, lambda: self._closed)
        self._streams.add(stream)
        return stream

    def close(self) -> None:
        """End running calls with `ClosedError` and give everything back. Idempotent."""
        self._closed = True
        if self.inherited:
            return  # the threads are the parent's, and so may be a lock that is held
        self._pool.close()
        for stream in list(self._streams):
            stream.cancel()  # nobody may be at it
        with self._threads_lock:
            threads = self._threads
        if threads is not None:
            threads.close()

    @property
    def inherited(self) -> bool:
        """Whether this is a copy, in a forked child, of the parent's."""
        return self._pool.inherited

    def abandon(self) -> None:
        """Refuse calls in a forked child; the connections were closed there by the fork."""
        self._closed = True
        if self._threads is not None:
            self._threads.abandon()

    def _work_beside(
        self, native: _http2.Call, work: Callable[[], None], deadline_ns: int | None
    ) -> Call:
        return self._pool_of_threads().run(native, work, deadline_ns)

    def _driven(self, call: _http2.StreamCall) -> DrivenStream:
        return call

    def _pool_of_threads(self) -> Threads:
        with self._threads_lock:
            if self._threads is None:
                from .call_threads import Threads  # noqa: PLC0415 - imported on use

                self._threads = Threads()
                if self._closed:
                    self._threads.close()
            return self._threads

    def _prepare(
        self, method: str, outgoing: Outgoing, incoming: Incoming, options: CallOptions
    ) -> _http2.Call:
        self._check(options)
        encoding = options.compression or ""
        if encoding:
            from ..compression import CallCheck, Compressed  # noqa: PLC0415 - rare

            check = CallCheck(options, self.target, self._closed_meanwhile)
            outgoing = Compressed(outgoing.render(), encoding, check)
        try:
            call: _http2.Call = self._native.Call(
                self._pool,
                method,
                outgoing,
                incoming,
                metadata(options.headers) if options.headers else (),
                encoding,
                options.deadline_ns,
                self._keepalive,
                self._busy_ns,
            )
        except TritonFastError:
            raise
        except RuntimeError as error:
            self._refuse(error)
        return call

    def _check(self, options: CallOptions) -> None:
        if self._closed:
            raise ClosedError(f"the channel to {self.target} is closed")
        if options.deadline_ns is not None and options.deadline_ns <= time.monotonic_ns():
            raise DeadlineExceeded(
                "the deadline passed before the request was sent",
                call=options.call,
                target=self.target,
            )

    def _refuse(self, error: RuntimeError) -> NoReturn:
        if self._closed or self.inherited:
            raise ClosedError(f"the channel to {self.target} is closed") from error
        raise error

    def _make(self, native: _http2.Call, incoming: Incoming, options: CallOptions) -> None:
        native.run()
        outcome = native.end()
        if outcome.status != StatusCode.OK:
            closed = self._closed_meanwhile()
            if outcome.status == StatusCode.CANCELLED and closed is not None:
                raise closed
            raise server_error(
                outcome.status,
                outcome.message,
                call=options.call,
                target=self.target,
                safe_to_retry=outcome.safe_to_retry,
            )
        message = outcome.gathered
        if message is not None:
            if outcome.compressed:
                from ..compression import CallCheck, feed_decompressed  # noqa: PLC0415 - rare

                def ended() -> TritonFastError | None:
                    if native.cancelled:
                        return Cancelled(
                            "the call was cancelled", call=options.call, target=self.target
                        )
                    return self._closed_meanwhile()

                check = CallCheck(options, self.target, ended)
                feed_decompressed(incoming, message, outcome.encoding, check)
            else:
                incoming.begin(len(message))
                incoming.feed(message)
        incoming.finish()

    def _closed_meanwhile(self) -> ClosedError | None:
        if not self._closed:
            return None
        return ClosedError(f"the channel to {self.target} was closed during the call")


def metadata(headers: Headers) -> list[tuple[str, str]]:
    """Return headers as they go on the wire.

    Source
    ------
    gRPC over HTTP/2 (PROTOCOL-HTTP2.md): binary values travel in base64, without the padding.
    """
    return [
        (
            name,
            value
            if isinstance(value, str)
            else binascii.b2a_base64(value, newline=False).rstrip(b"=").decode(),
        )
        for name, value in headers
    ]


def _abandon_inherited(channel: NativeChannel) -> None:
    if channel.inherited:  # others that forked children run may have made new ones
        channel.abandon()


# Nothing at exit: the interpreter leaves daemon threads where they wait, and the kernel closes what
# they wait for. If channels were closed first, programs would end with those threads' tracebacks.
_channels = watch({Phase.CHILD_CHANNELS: _abandon_inherited})
