"""Compressed messages, as gRPC has them: gzip and deflate. Owns how much may come of an answer.

What is compressed here, or decompressed, goes on in pieces of a megabyte: between two of them a
signal's handler has its turn, and the call may end for its deadline, its caller, or its channel.
"""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable

from .._core import Segment, _wire
from ..errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    ResourceExhausted,
    TritonFastError,
)
from .base import CallOptions, Incoming

__all__ = [
    "DECOMPRESSING",
    "FEEDING",
    "CallCheck",
    "Compressed",
    "decompressed",
    "feed_decompressed",
]

_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib's codes for the two formats

# protobuf's own limit for a message; a response that swells beyond it is no response.
_MOST_BYTES = 2**31 - 1
# How often its compressed size an answer may have. Both formats can shrink zeros to a 1030th: of
# 4 MiB of them come 4 KiB, and such tensors are what people compress (masks, one-hot rows). So up
# to here any ratio goes, and only what is larger must not be denser. Two megabytes of a bomb are
# worth a quarter of a gigabyte then, and not two.
_ANY_RATIO_BYTES = 256 << 20
_MOST_RATIO = 100
# Into zlib at a time, which copies what it leaves of it.
_SLICE = 64 << 10
# Out of zlib at a time, and into it where it compresses: some milliseconds.
_PIECE = 1 << 20

DECOMPRESSING = "before the answer was decompressed"
"""When a deadline has passed, for its error."""

FEEDING = "before the answer was complete"
"""The same."""


class CallCheck:
    """Says whether a call is to go on that has work to do without waiting.

    Parameters
    ----------
    options : CallOptions
        Of the call.
    target : str
        For errors.
    ended : callable
        Returns the error that the call ends with if somebody has ended it; None if nobody has.

    Attributes
    ----------
    options, target
        As given.
    """

    __slots__ = ("_ended", "_stopped", "options", "target")

    def __init__(
        self, options: CallOptions, target: str, ended: Callable[[], TritonFastError | None]
    ) -> None:
        self.options = options
        self.target = target
        self._ended = ended
        self._stopped = False

    def stop(self) -> None:
        """Have it not go on: nobody waits for it any more. Any thread."""
        self._stopped = True

    def __call__(self, phase: str) -> None:
        """Return if it is to go on.

        Parameters
        ----------
        phase : str
            When the deadline has passed, if it has, for the error.

        Raises
        ------
        DeadlineExceeded
            If the call's deadline has passed.
        Cancelled
            If it was stopped.
        TritonFastError
            What ``ended`` has returned.
        """
        error = self._ended()
        if error is not None:
            raise error
        if self._stopped:
            raise Cancelled("the call was cancelled", call=self.options.call, target=self.target)
        deadline_ns = self.options.deadline_ns
        if deadline_ns is not None and deadline_ns <= time.monotonic_ns():
            raise DeadlineExceeded(
                f"the deadline passed {phase}", call=self.options.call, target=self.target
            )


class Compressed:
    """An `Outgoing` that was compressed in one piece.

    Parameters
    ----------
    message : bytes
        As it was.
    encoding : {"gzip", "deflate"}
        How to compress it.
    check : CallCheck
        Of the call that it is for.

    Raises
    ------
    TritonFastError
        What ``check`` raises.
    """

    def __init__(self, message: bytes, encoding: str, check: CallCheck) -> None:
        compressor = zlib.compressobj(wbits=_WINDOW_BITS[encoding])
        pieces = []
        view = memoryview(message)
        for first in range(0, len(view), _PIECE):
            check("before the request was sent")
            pieces.append(compressor.compress(view[first : first + _PIECE]))
        pieces.append(compressor.flush())
        self._message = b"".join(pieces)

    @property
    def byte_size(self) -> int:
        """Length of what was made of it."""
        return len(self._message)

    def segments(self) -> list[Segment]:
        """Return the one piece that it is."""
        return [_wire.address_of(self._message)]

    def render(self) -> bytes:
        """Return the compressed message."""
        return self._message


def feed_decompressed(
    incoming: Incoming,
    message: bytes,
    encoding: str,
    check: CallCheck,
) -> int:
    """Give a response to its parser as it was before it was compressed.

    Parameters
    ----------
    incoming : Incoming
        Told `begin` and `feed`, once all of it is there.
    message, encoding, check
        As in `decompressed`.

    Returns
    -------
    int
        How many bytes it has.

    Raises
    ------
    TritonFastError
        What `decompressed` and the parser raise.
    """
    pieces = decompressed(message, encoding, check)
    byte_size = sum(map(len, pieces))
    try:
        incoming.begin(byte_size)
        while pieces:
            check(FEEDING)
            incoming.feed(pieces.popleft())
    finally:
        pieces.clear()  # or the traceback of an error would hold them
    return byte_size


def decompressed(message: bytes, encoding: str, check: CallCheck) -> deque[bytes]:
    """Return a response as it was before it was compressed, in pieces of at most a megabyte.

    Parameters
    ----------
    message : bytes
        As it came.
    encoding : str
        How it is compressed.
    check : CallCheck
        Of the call.

    Raises
    ------
    ResourceExhausted
        If it is longer than an answer may be, or so much longer than what came.
    Internal
        If it was compressed in a way that was not asked for, or is damaged.
    TritonFastError
        What ``check`` raises.
    """
    call, target = check.options.call, check.target

    def damaged(how: str) -> Internal:
        return Internal(f"the server's {how}", call=call, target=target)

    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        raise damaged(f"message is compressed with {encoding!r}, which was not asked for")
    most = min(max(_ANY_RATIO_BYTES, _MOST_RATIO * len(message)), _MOST_BYTES)
    decompressor = zlib.decompressobj(wbits=bits)
    view = memoryview(message)
    at = 0
    byte_size = 0
    pieces: deque[bytes] = deque()
    try:
        while at < len(view) and not decompressor.eof:
            rest: bytes | memoryview = view[at : at + _SLICE]
            at += len(rest)
            # What has all been taken in may have more to give, which comes with the next slice: the
            # last one ends in a checksum, and that is taken last.
            while rest and not decompressor.eof:
                check(DECOMPRESSING)
                pieces.append(decompressor.decompress(rest, _PIECE))
                rest = decompressor.unconsumed_tail
                byte_size += len(pieces[-1])
                if byte_size > most:
                    raise ResourceExhausted(
                        _too_long(encoding, len(message), most), call=call, target=target
                    )
        if not decompressor.eof:
            raise damaged(f"{encoding} message is cut off")
        if decompressor.unused_data or at < len(view):
            raise damaged(f"{encoding} message goes on after its end")
    except zlib.error as error:
        pieces.clear()  # or the traceback would hold them
        raise damaged(f"{encoding} message cannot be decompressed: {error}") from error
    except BaseException:
        pieces.clear()
        raise
    return pieces


def _too_long(encoding: str, byte_size: int, most: int) -> str:
    what = f"the server's {encoding} message of {byte_size:,} bytes has more than {most:,} in it"
    if most == _MOST_BYTES:
        return f"{what}, which is what protobuf allows"
    return (
        f"{what}; an answer must not have more than {_MOST_RATIO} times as many bytes as came, "
        f"unless it has at most {_ANY_RATIO_BYTES:,}: ask for it without compression=, or have the "
        "server send it uncompressed"
    )
