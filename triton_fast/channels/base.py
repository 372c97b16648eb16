"""The contract between a call and the channel that carries it. Owns no state and no transport.

A channel moves one request out and one response in. It knows gRPC methods, deadlines, headers and
status, and nothing of tensors: those are `Outgoing` and `Incoming` to it. Every channel is a folder
beside this module; it may import what lies below `channels`, and nothing above.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, TypeVar

from .._core import Segment

__all__ = [
    "AsyncChannel",
    "AsyncChannelStream",
    "Call",
    "CallOptions",
    "Channel",
    "ChannelStream",
    "Compression",
    "Headers",
    "Incoming",
    "Outgoing",
    "StreamIncoming",
]

M = TypeVar("M", bound="Incoming")
M_co = TypeVar("M_co", bound="Incoming", covariant=True)

Compression: TypeAlias = Literal["gzip", "deflate"]
"""How a request's message may be compressed."""

Headers: TypeAlias = Sequence[tuple[str, str | bytes]]


class Outgoing(Protocol):
    """A message to send: a gather list of header bytes and borrowed tensor memory.

    Notes
    -----
    Whoever made it keeps the memory behind it alive and unchanged until the channel has said that
    the call is over; a channel keeps no reference past that.
    """

    @property
    def byte_size(self) -> int:
        """Length of the whole message in bytes, without gRPC's five-byte prefix."""

    def segments(self) -> list[Segment]:
        """Return the message as (address, byte_size) pairs, in order, for channels that gather."""

    def render(self) -> bytes:
        """Return the message in one piece, for channels that cannot gather; copies each payload."""


class Incoming(Protocol):
    """A parser for the response, fed as bytes arrive."""

    def begin(self, byte_size: int) -> None:
        """Announce the length of the message in bytes, before the first `feed`.

        Raises
        ------
        WireError
            If it is longer than a message may be.
        """

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next piece of the message, of any size; it is read during this call only.

        Raises
        ------
        WireError
            If the bytes cannot be a response. The parser takes no more after that.
        """

    def finish(self) -> None:
        """Say that the message is complete.

        Raises
        ------
        WireError
            If it is not.
        """


class StreamIncoming(Protocol[M_co]):
    """Parsers for the messages of one stream, which are of type ``M_co``."""

    def message(self) -> M_co:
        """Return what is fed the next message."""


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What a call asks of its channel, checked already.

    Parameters
    ----------
    deadline_ns : int or None
        When the call must be over, in nanoseconds of ``time.monotonic_ns()``; None for never.
    headers : sequence of (str, str or bytes)
        Metadata to send. Names are lower case; a name that ends in ``-bin`` carries bytes.
    compression : {"gzip", "deflate"} or None
        How the request's message is compressed; None sends it as it is.
    call : str
        What is being called, for error messages: ``"ModelInfer('resnet')"``.
    """

    deadline_ns: int | None = None
    headers: Headers = field(default=(), repr=False)  # there may be tokens in them
    compression: Compression | None = None
    call: str = ""


class Call(Protocol):
    """A call on its way, as `Channel.start` returns it."""

    def cancel(self) -> None:
        """End the call with `Cancelled` unless it is over already, and tell the server.

        Idempotent.
        """


class Channel(Protocol):
    """A way to one server. Thread-safe: any thread may call any method at any time.

    Notes
    -----
    Constructing a channel opens nothing. It belongs to the process that made it: a forked child
    makes its own and does not touch the parent's, not even to close it.
    """

    def call(
        self, method: str, outgoing: Outgoing, incoming: Incoming, options: CallOptions
    ) -> None:
        """Make one unary call and return when ``incoming`` is complete.

        Parameters
        ----------
        method : str
            Full gRPC path, ``"/inference.GRPCInferenceService/ModelInfer"``.
        outgoing : Outgoing
            The request; its memory is not read any more once this returns or raises.
        incoming : Incoming
            Told `begin`, `feed` and `finish`, on the calling thread.
        options : CallOptions
            Deadline, headers, compression.

        Raises
        ------
        ServerError
            The subclass of the call's status: `DeadlineExceeded` at the deadline, `Unavailable`
            when no server was reached or the connection broke, or what the server answered.
        WireError
            If the response cannot be read.
        ClosedError
            If the channel is closed, or becomes so during the call.
        """

    def start(
        self,
        method: str,
        outgoing: Outgoing,
        incoming: Incoming,
        options: CallOptions,
        on_done: Callable[[BaseException | None], None],
    ) -> Call:
        """Start one unary call and return at once.

        Parameters
        ----------
        method, outgoing, incoming, options
            As in `call`; ``incoming`` is told on a thread of the channel's.
        on_done : callable
            Called exactly once, with None or with the exception that `call` would have raised, on
            a thread of the channel's or, if the call is over already, on this one. It must return
            soon and not raise.

        Raises
        ------
        ClosedError
            If the channel is closed.
        """

    def open_stream(
        self, method: str, incoming: StreamIncoming[M], options: CallOptions
    ) -> ChannelStream[M]:
        """Return a call with many messages each way, which begins with its first message.

        Parameters
        ----------
        method, options
            As in `call`; the deadline is that of the whole call. Messages are not compressed.
        incoming : StreamIncoming
            Makes what the peer's messages are fed to; this call's alone.

        Raises
        ------
        ClosedError
            If the channel is closed.
        """

    def close(self) -> None:
        """End running calls with `ClosedError` and give everything back. Idempotent."""

    def abandon(self) -> None:
        """Let go, in a forked child, of what is the parent's, without telling the server.

        Calls raise `ClosedError` from then on.
        """


class ChannelStream(Protocol[M]):
    """A call with many messages each way, as `Channel.open_stream` returns it.

    Notes
    -----
    One thread may send while another receives, and any thread may cancel; two threads neither send
    nor receive at the same time. Nothing is sent before the first `send`.
    """

    def send(
        self, outgoing: Outgoing, deadline_ns: int | None = None, *, last: bool = False
    ) -> None:
        """Send one message; its memory is not read any more once this returns or raises.

        With ``last``, as if `half_close` came after it. Waits while the peer takes no more, which
        it may only do again when some of its own messages have been received.

        Raises
        ------
        ServerError, ClosedError
            How the call ended, if it did. `DeadlineExceeded` if the peer had not taken the message
            by ``deadline_ns``; the call is over then, for part of the message may be on its way.
        """

    def half_close(self) -> None:
        """Say that no more messages will be sent. Idempotent."""

    def receive(self, into: list[M], deadline_ns: int | None = None) -> None:
        """Wait for messages, and append those that are there; none at the end.

        What is not received is not asked for: beyond a window's worth, the peer waits.

        Parameters
        ----------
        into : list
            Empty, and the caller's. What is appended was made by the stream's ``incoming``, and is
            finished. A message is either in it or can still be received, also after an exception of
            a signal's handler, which may come when the messages have been taken and this has not
            returned.
        deadline_ns : int, optional
            Nanoseconds of ``time.monotonic_ns()``.

        Raises
        ------
        ServerError, WireError, ClosedError
            How the call ended, if not well. `DeadlineExceeded` if ``deadline_ns`` passed before
            there was a message, in which case the call goes on, unless its own deadline passed.
        """

    def cancel(self) -> None:
        """End the call, unless it is over, and tell the server; then give all back. Idempotent."""


class AsyncChannelStream(Protocol[M]):
    """A call with many messages each way, on an event loop; see `ChannelStream`."""

    async def send(
        self, outgoing: Outgoing, deadline_ns: int | None = None, *, last: bool = False
    ) -> None:
        """Send one message; see `ChannelStream.send`. If it is cancelled, so is the call."""

    async def half_close(self) -> None:
        """Say that no more messages will be sent. Idempotent."""

    async def receive(self, deadline_ns: int | None = None) -> list[M]:
        """Wait for messages and return those that are there; an empty list at the end.

        See `ChannelStream.receive`. Cancelling it loses no message.
        """

    def cancel(self) -> None:
        """End the call; see `ChannelStream.cancel`."""


class AsyncChannel(Protocol):
    """A way to one server for coroutines. One event loop at a time.

    Notes
    -----
    Constructing one opens nothing and needs no running loop; the first call's loop is the one that
    it belongs to, until a call comes on another one while that is closed, or does not run: then its
    running calls end, with `Unavailable` once it runs again.
    """

    async def call(
        self, method: str, outgoing: Outgoing, incoming: Incoming, options: CallOptions
    ) -> None:
        """Make one unary call; see `Channel.call`. Cancelling it cancels the call on the server.

        ``outgoing``'s memory may be read for a while after a cancellation; the channel keeps it
        alive until then.
        """

    def open_stream(
        self, method: str, incoming: StreamIncoming[M], options: CallOptions
    ) -> AsyncChannelStream[M]:
        """Return a call with many messages each way; see `Channel.open_stream`."""

    async def close(self) -> None:
        """End running calls with `ClosedError` and give everything back. Idempotent."""

    def abandon(self) -> None:
        """Let go, in a forked child, of what is the parent's; see `Channel.abandon`."""
