"""A channel's stream that is begun again where the server has not seen it, for coroutines.

Owns the channel's stream, and copies of what was sent until the server is heard of. What
`triton_fast.streaming.repeated_stream` is for threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from ..channels.base import Incoming
from ..channels.unseen import Unseen
from ..errors import ServerError
from .held_messages import HeldMessages

if TYPE_CHECKING:
    from ..channels.base import AsyncChannelStream, Outgoing
    from .final_answers import FinalAnswers

__all__ = ["AsyncRepeatedStream"]

M = TypeVar("M", bound=Incoming)


class AsyncRepeatedStream(Generic[M]):
    """Answers `triton_fast.channels.base.AsyncChannelStream`.

    Parameters
    ----------
    open_stream : callable
        Opens the channel's stream; called again where it is begun again.
    deadline_ns : int or None
        The stream's.
    final_answers : FinalAnswers, optional
        Of the server, where requests ask for the mark of the last answer: where it refuses that,
        they are sent again without.

    Notes
    -----
    As long as nothing has come, what is sent is copied, up to 4 MiB in all. Beyond that a stream
    that the server has not seen fails.
    """

    def __init__(
        self,
        open_stream: Callable[[], AsyncChannelStream[M]],
        deadline_ns: int | None,
        final_answers: FinalAnswers | None = None,
    ) -> None:
        self._open = open_stream
        self._stream = open_stream()
        self._next: AsyncChannelStream[M] | None = None  # one that is being begun again
        self._unseen = Unseen(deadline_ns)
        self._held = HeldMessages(final_answers)
        self._turn = asyncio.Lock()  # to send, also what was sent before
        self._half_closed = False
        self._cancelled = False

    async def send(
        self, outgoing: Outgoing, deadline_ns: int | None = None, *, last: bool = False
    ) -> None:
        """Send one message; see `triton_fast.channels.base.AsyncChannelStream.send`."""
        async with self._turn:
            outgoing = self._held.to_send(outgoing)
            while True:
                try:
                    await self._stream.send(outgoing, deadline_ns, last=last)
                    break
                except ServerError as error:
                    failure = error
                try:
                    await self._begin_again(failure, deadline_ns)
                finally:
                    del failure  # it is not to be held by a frame of its own traceback
            self._held.add(outgoing, last=last)

    async def half_close(self) -> None:
        """Say that no more messages will be sent. Idempotent."""
        async with self._turn:
            self._half_closed = True
            try:
                await self._stream.half_close()
            except ServerError as error:
                # Otherwise whoever receives begins the stream again, and closes this half of it.
                if not error.safe_to_retry or not self._held.complete:
                    raise

    async def receive(self, deadline_ns: int | None = None) -> list[M]:
        """Wait for messages; see `triton_fast.channels.base.AsyncChannelStream.receive`."""
        while True:
            stream = self._stream
            try:
                messages = await stream.receive(deadline_ns)
            except ServerError as error:
                failure = error
            else:
                if self._held.refused(messages):
                    await self._send_unasked(stream, deadline_ns)
                    continue
                self._held.let_go()
                return messages
            try:
                async with self._turn:
                    if stream is self._stream:  # and whoever sends has not begun it again
                        await self._begin_again(failure, deadline_ns)
            finally:
                del failure

    async def _send_unasked(self, refused: AsyncChannelStream[M], deadline_ns: int | None) -> None:
        async with self._turn:
            refused.cancel()
            await self._send_again(deadline_ns)

    def cancel(self) -> None:
        """End the call; see `triton_fast.channels.base.AsyncChannelStream.cancel`."""
        self._cancelled = True
        self._stream.cancel()
        if self._next is not None:
            self._next.cancel()

    async def _begin_again(self, failure: ServerError, deadline_ns: int | None) -> None:
        """Begin the stream again, with what was sent so far, after it has failed.

        Raises
        ------
        ServerError
            The failure, if the server may have seen the stream, or does not take it.
        """
        try:
            while True:
                pause = self._unseen.pause(failure) if self._held.complete else None
                if pause is None or self._cancelled:
                    raise failure
                await asyncio.sleep(pause)
                try:
                    await self._send_again(deadline_ns)
                except ServerError as error:
                    failure = error
                else:
                    return
        finally:
            del failure

    async def _send_again(self, deadline_ns: int | None) -> None:
        stream = self._next = self._open()
        try:
            if self._cancelled:
                stream.cancel()
            last = False
            for message, last in self._held:
                await stream.send(message, deadline_ns, last=last)
            if self._half_closed and not last:
                await stream.half_close()
        except BaseException:
            stream.cancel()
            raise
        # Only now may others receive from it: one that has not begun would never answer.
        self._stream = stream
        self._next = None
