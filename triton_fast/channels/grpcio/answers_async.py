"""Messages from grpc.aio on their way to their parsers: as they are, or decompressed first."""

from __future__ import annotations

from ..base import CallOptions, Incoming
from ..event_loop import fed
from .answers import Ended, encoding_of

__all__ = ["feed_answer_async"]


async def feed_answer_async(
    incoming: Incoming, message: bytes, options: CallOptions, target: str, ended: Ended
) -> None:
    """Do as `triton_fast.channels.grpcio.answers.feed_answer`; the event loop goes on.

    Parameters
    ----------
    incoming, message, options, target, ended
        As there.

    Raises
    ------
    TritonFastError
        As there.
    """
    encoding = encoding_of(message)
    if encoding is None:
        await fed(incoming, message)
        return
    from ..compression import CallCheck  # noqa: PLC0415 - rare
    from ..compression_async import feed_decompressed_async  # noqa: PLC0415 - rare

    check = CallCheck(options, target, ended)
    await feed_decompressed_async(incoming, message, encoding, check)
