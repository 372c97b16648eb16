"""Compressed messages of the native channel: gzip and deflate, as gRPC has them."""

from __future__ import annotations

import zlib

from ..._core import Segment, _wire
from ...errors import Internal
from ..base import CallOptions

__all__ = ["Compressed", "decompressed"]

_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib's codes for the two formats


class Compressed:
    """An `Outgoing` that was compressed in one piece."""

    def __init__(self, message: bytes, encoding: str) -> None:
        compressor = zlib.compressobj(wbits=_WINDOW_BITS[encoding])
        self._message = compressor.compress(message) + compressor.flush()

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


# protobuf's own limit for a message; a response that swells beyond it is no response.
_MOST_BYTES = 2**31 - 1


def decompressed(message: bytes, encoding: str, options: CallOptions, target: str) -> bytes:
    """Return a compressed response as it was before.

    Raises
    ------
    Internal
        If it was compressed in a way that was not asked for, or is damaged, or too long.
    """
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
