"""Compressed answers for coroutines: decompressed on a thread beside the event loop."""

from __future__ import annotations

import asyncio

from .base import Incoming
from .compression import DECOMPRESSING, FEEDING, CallCheck, decompressed
from .event_loop import LONG, in_thread

__all__ = ["feed_decompressed_async"]


async def feed_decompressed_async(
    incoming: Incoming, message: bytes, encoding: str, check: CallCheck
) -> None:
    """Do as `triton_fast.channels.compression.feed_decompressed`; the event loop goes on.

    Parameters
    ----------
    incoming, message, encoding, check
        As there; ``check`` is asked on another thread, too.

    Raises
    ------
    TritonFastError
        As there.
    """
    try:
        pieces = await in_thread(
            check.options,
            check.target,
            decompressed,
            message,
            encoding,
            check,
            phase=DECOMPRESSING,
        )
    except BaseException:
        check.stop()  # the thread may still be at it
        raise
    byte_size = sum(map(len, pieces))
    try:
        incoming.begin(byte_size)
        while pieces:
            check(FEEDING)
            incoming.feed(pieces.popleft())
            if byte_size >= LONG:
                await asyncio.sleep(0)
    finally:
        pieces.clear()  # or the traceback of an error would hold them
