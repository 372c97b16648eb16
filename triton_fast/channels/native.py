"""The native channel: HTTP/2 on a plain socket, driven by the calling thread, without grpcio.

Owns the pool of connections and the threads that serve `NativeChannel.start`. For servers at one
address, in plain text; everything else is the grpcio channel's.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import heapq
import os
import queue
import threading
import time
import weakref
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .._core import Segment, _wire
from ..errors import (
    ClosedError,
    DeadlineExceeded,
    Internal,
    InvalidOption,
    MissingDependency,
    StatusCode,
    TritonFastError,
    server_error,
)
from .base import Call, CallOptions, Headers, Incoming, Outgoing

if TYPE_CHECKING:
    from .._core import _http2
    from ..keepalive import Keepalive

__all__ = ["Address", "NativeChannel", "native_address", "why_not_native"]

# Enough for a Triton of many instances; a thread that finds all of them busy waits for one.
_MOST_CONNECTIONS = 128
# Shorter than the idle timeouts of the load balancers that people put in between (60 s and up).
_IDLE_NS = 50 * 10**9
_MOST_THREADS = 32
_NEVER_NS = 2**63 - 1


class Address(NamedTuple):
    """One place to connect to; ``unix_path`` wins if it is not empty."""

    host: str
    port: str
    unix_path: str
    authority: str


def native_address(target: str) -> Address | None:
    """Return the one address that a target stands for, or None if it takes grpcio to reach it.

    Parameters
    ----------
    target : str
        As in `triton_fast.Client`; found to be a target already.
    """
    if target.startswith("unix:"):
        path = target.removeprefix("unix:")
        return Address(
            "", "", path.removeprefix("//") if path.startswith("//") else path, "localhost"
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
    return Address(host.removeprefix("[").removesuffix("]"), port, "", target)


def why_not_native() -> str | None:
    """Return why this build of triton_fast has no native channel; None if it has one."""
    try:
        from .._core import _http2  # noqa: F401, PLC0415
    except ImportError as error:
        return str(error)
    return None


class NativeChannel:
    """A way to one server over HTTP/2 sockets of our own.

    Parameters
    ----------
    target : str
        ``host:port``, ``[IPv6 address]:port``, ``ipv4:address:port``, ``unix:/path``.
    keepalive : Keepalive, optional
        When to ping a server that is silent during a call. There are no pings between calls: a
        connection that died then is noticed when the next call takes it.
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
    next call, the most recently used first, and dropped when they idle. A call that a dead
    connection swallowed is made again once, if the server cannot have seen it. Names are looked up
    anew for each connection.
    """

    def __init__(
        self,
        target: str,
        *,
        keepalive: Keepalive | None = None,
        busy_poll_ns: int = 0,
    ) -> None:
        try:
            from .._core import _http2  # noqa: PLC0415 - it may not have been built
        except ImportError as error:
            raise MissingDependency(
                "triton_fast was built without its native channel; install libnghttp2 and "
                "pkg-config (Debian: apt-get install pkg-config libnghttp2-dev) and build it "
                "again, or use channel='grpc'"
            ) from error
        address = native_address(target)
        if address is None:
            raise InvalidOption(
                f"target {target!r}: the native channel takes one address, 'host:port' or "
                "'unix:/path'; use channel='grpc' for others"
            )
        self.target = target
        self._native = _http2
        self._keepalive = (
            (0, 0)
            if keepalive is None
            else (round(keepalive.time * 1e9), round(keepalive.timeout * 1e9))
        )
        self._busy_ns = busy_poll_ns
        self._closed = False
        self._pool: _http2.Pool = _http2.Pool(
            address.host,
            address.port,
            address.unix_path.encode("utf-8", "surrogateescape"),
            address.authority,
            _MOST_CONNECTIONS,
            _IDLE_NS,
        )
        self._threads = _Threads()
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

        return self._threads.run(native, work, options.deadline_ns)

    def close(self) -> None:
        """End running calls with `ClosedError` and give everything back. Idempotent."""
        self._closed = True
        if self.inherited:
            return  # the threads are the parent's, and so may be a lock that is held
        self._pool.close()
        self._threads.close()

    @property
    def inherited(self) -> bool:
        """Whether this is a copy, in a forked child, of the parent's."""
        return self._pool.inherited

    def abandon(self) -> None:
        """Refuse calls in a forked child; the connections were closed there by the fork."""
        self._closed = True
        self._threads.abandon()

    def _prepare(
        self, method: str, outgoing: Outgoing, incoming: Incoming, options: CallOptions
    ) -> _http2.Call:
        if self._closed:
            raise ClosedError(f"the channel to {self.target} is closed")
        if options.deadline_ns is not None and options.deadline_ns <= time.monotonic_ns():
            raise DeadlineExceeded(
                "the deadline passed before the request was sent",
                call=options.call,
                target=self.target,
            )
        encoding = options.compression or ""
        if encoding:
            outgoing = _Compressed(outgoing.render(), encoding)
        # What may come compressed is gathered first, and so is what the codec does not parse.
        parser = incoming if isinstance(incoming, _wire.Response) and not encoding else None
        try:
            return self._native.Call(
                self._pool,
                method,
                outgoing,
                parser,
                _metadata(options.headers),
                encoding,
                options.deadline_ns,
                self._keepalive,
                self._busy_ns,
            )
        except TritonFastError:
            raise
        except RuntimeError as error:
            if self._closed or self.inherited:
                raise ClosedError(f"the channel to {self.target} is closed") from error
            raise

    def _make(self, native: _http2.Call, incoming: Incoming, options: CallOptions) -> None:
        native.run()
        status, message, compressed, encoding, gathered = native.end()
        if status != StatusCode.OK:
            if status == StatusCode.CANCELLED and self._closed:
                raise ClosedError(f"the channel to {self.target} was closed during the call")
            raise server_error(status, message, call=options.call, target=self.target)
        if gathered is None:
            return
        if compressed:
            gathered = _decompressed(gathered, encoding, options, self.target)
        incoming.begin(len(gathered))
        incoming.feed(gathered)
        incoming.finish()


def _metadata(headers: Headers) -> list[tuple[str, str]]:
    # gRPC over HTTP/2: binary values travel in base64, without the padding.
    return [
        (name, value if isinstance(value, str) else base64.b64encode(value).rstrip(b"=").decode())
        for name, value in headers
    ]


_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib's codes for the two formats


class _Compressed:
    """An `Outgoing` that was compressed in one piece."""

    def __init__(self, message: bytes, encoding: str) -> None:
        compressor = zlib.compressobj(wbits=_WINDOW_BITS[encoding])
        self._message = compressor.compress(message) + compressor.flush()

    @property
    def byte_size(self) -> int:
        return len(self._message)

    def segments(self) -> list[Segment]:
        return [_wire.address_of(self._message)]

    def render(self) -> bytes:
        return self._message


# protobuf's own limit for a message; a response that swells beyond it is no response.
_MOST_BYTES = 2**31 - 1


def _decompressed(message: bytes, encoding: str, options: CallOptions, target: str) -> bytes:
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        raise Internal(
            f"the server compressed its message with {encoding!r}, which was not asked for",
            call=options.call,
            target=target,
        )
    try:
        decompressor = zlib.decompressobj(wbits=bits)
        plain = decompressor.decompress(message, _MOST_BYTES)
    except zlib.error as error:
        raise Internal(
            f"the server's {encoding} message cannot be decompressed: {error}",
            call=options.call,
            target=target,
        ) from error
    if not decompressor.eof:
        raise Internal(
            f"the server's {encoding} message is cut off, or longer than {_MOST_BYTES} bytes",
            call=options.call,
            target=target,
        )
    if decompressor.unused_data:
        raise Internal(
            f"the server's {encoding} message goes on after its end",
            call=options.call,
            target=target,
        )
    return plain


class _Turn:
    """A call that nobody waits for, from `NativeChannel.start` on until a thread takes it."""

    __slots__ = ("_threads", "due_ns", "native", "work")

    def __init__(
        self, threads: _Threads, native: _http2.Call, work: Callable[[], None], due_ns: int
    ) -> None:
        self._threads = threads
        self.native = native
        self.work: Callable[[], None] | None = work  # None once it was taken
        self.due_ns = due_ns

    def __lt__(self, other: _Turn) -> bool:
        return self.due_ns < other.due_ns

    def cancel(self) -> None:
        """End the call with `Cancelled`; see `triton_fast.channels.base.Call.cancel`."""
        self.native.cancel()
        self._threads.hurry(self)


class _Threads:
    """Daemon threads for calls that nobody waits for; made as they are needed, up to a limit.

    A call that finds all of them busy waits for its turn. If it is due before that, or cancelled,
    one more thread takes it, where it ends at once.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Turn | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._count = 0
        self._pending = 0  # turns that are waiting or running
        self._closed = False
        self._due: list[_Turn] = []  # a heap of those that may have to be taken out of turn
        self._due_changed = threading.Condition(self._lock)
        self._watched = False  # whether there is a thread for those

    def run(self, native: _http2.Call, work: Callable[[], None], due_ns: int | None) -> Call:
        turn = _Turn(self, native, work, _NEVER_NS if due_ns is None else due_ns)
        with self._lock:
            closed = self._closed
            if not closed:
                self._pending += 1
                if self._pending > self._count and self._count < _MOST_THREADS:
                    self._add_thread()
                if self._pending > self._count and due_ns is not None:
                    self._watch(turn)
                self._queue.put(turn)
        if closed:
            work()  # closing has ended the call
        return turn

    def hurry(self, turn: _Turn) -> None:
        """See to a turn at once, if it is still waiting."""
        with self._lock:
            if turn.work is not None and not self._closed:
                turn.due_ns = 0
                self._watch(turn)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for _ in range(self._count):
                self._queue.put(None)

    def abandon(self) -> None:
        """Forget, in a forked child, the threads and a lock that one of them may have held."""
        self._lock = threading.Lock()
        self._closed = True

    def _add_thread(self) -> None:
        self._count += 1
        try:
            threading.Thread(target=self._serve, name="triton_fast", daemon=True).start()
        except RuntimeError:  # the system allows no more
            self._count -= 1
            if self._count == 0:
                self._pending -= 1
                raise

    def _watch(self, turn: _Turn) -> None:
        heapq.heappush(self._due, turn)
        if self._watched:
            self._due_changed.notify()
            return
        # Where no thread can be had, the turn comes when one of the others is free.
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=self._serve_due, name="triton_fast", daemon=True).start()
            self._watched = True

    def _take(self, turn: _Turn) -> Callable[[], None] | None:
        with self._lock:
            work, turn.work = turn.work, None
        return work

    def _finish(self) -> None:
        with self._lock:
            self._pending -= 1

    def _serve(self) -> None:
        while (turn := self._queue.get()) is not None:
            work = self._take(turn)
            del turn
            if work is not None:
                work()
                del work
                self._finish()

    def _serve_due(self) -> None:
        while (turn := self._next_due()) is not None:
            work = self._take(turn)
            del turn
            if work is not None:
                work()
                del work
                self._finish()

    def _next_due(self) -> _Turn | None:
        """Wait for the next turn that is due; None if none can be."""
        with self._lock:
            while self._due:
                left_ns = self._due[0].due_ns - time.monotonic_ns()
                if left_ns <= 0 or self._due[0].work is None:
                    return heapq.heappop(self._due)
                self._due_changed.wait(min(left_ns / 1e9, 3600.0))
            self._watched = False
            return None


_channels: weakref.WeakSet[NativeChannel] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    # Threads that wait in native code would otherwise be cut off in mid-call.
    for channel in list(_channels):
        channel.close()


def _abandon_all() -> None:
    for channel in list(_channels):
        if channel.inherited:  # others that forked children run may have made new ones
            channel.abandon()


os.register_at_fork(after_in_child=_abandon_all)
