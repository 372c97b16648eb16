"""Messages from grpcio on their way to their parsers: as they are, or decompressed first.

Knows how to tell one from the other, which grpcio does not say.
"""

from __future__ import annotations

from collections.abc import Callable

from ...errors import TritonFastError
from ..base import CallOptions, Incoming

__all__ = ["Ended", "encoding_of", "feed_answer"]

Ended = Callable[[], TritonFastError | None]

# The first two bytes of gzip's format, and of zlib's, which gRPC calls deflate, at its levels.
_HEADS = {
    b"\x1f\x8b": "gzip",
    b"\x78\x01": "deflate",
    b"\x78\x5e": "deflate",
    b"\x78\x9c": "deflate",
    b"\x78\xda": "deflate",
}


def encoding_of(message: bytes) -> str | None:
    """Return how a message is compressed; None if it is not.

    grpcio hands on neither the message's flag nor the header that names the format, so this goes by
    how it begins. No protobuf message begins as gzip does: there is no wire type 7. One may begin
    as zlib does, with a number in field 15, but no answer of the protocol has such a field.
    """
    return _HEADS.get(message[:2])


def feed_answer(
    incoming: Incoming, message: bytes, options: CallOptions, target: str, ended: Ended
) -> int:
    """Give a message to its parser.

    Parameters
    ----------
    incoming : Incoming
        Told `begin` and `feed`.
    message : bytes
        From grpcio.
    options, target, ended
        As in `triton_fast.channels.compression.CallCheck`.

    Returns
    -------
    int
        How many bytes it has as the parser was given it.

    Raises
    ------
    TritonFastError
        What the parser raises, and `triton_fast.channels.compression.feed_decompressed`.
    """
    encoding = encoding_of(message)
    if encoding is None:
        incoming.begin(len(message))
        incoming.feed(message)
        return len(message)
    from ..compression import CallCheck, feed_decompressed  # noqa: PLC0415 - rare

    return feed_decompressed(incoming, message, encoding, CallCheck(options, target, ended))
