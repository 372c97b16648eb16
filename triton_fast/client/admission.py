"""How many calls, and bytes of theirs, a client for coroutines has on their way at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from ..channels.event_loop import seconds_left
from ..errors import DeadlineExceeded
from ..options.values import whole_number

if TYPE_CHECKING:
    from ..channels.base import CallOptions

__all__ = ["Admission"]


class Admission:
    """Lets calls in, in the order in which they come, as long as there is room.

    Parameters
    ----------
    most_calls : int
        On their way at a time.
    most_bytes : int
        That their inputs have together. One call that has more is let in when it is alone.

    Raises
    ------
    InvalidOption
        If one is no positive number.

    Notes
    -----
    One event loop at a time. A large call is not overtaken by small ones that come after it.
    """

    def __init__(self, most_calls: int, most_bytes: int) -> None:
        self._most_calls = whole_number(most_calls, "max_in_flight must be a number of calls", 1)
        self._most_bytes = whole_number(
            most_bytes, "max_in_flight_bytes must be a number of bytes", 1
        )
        self.calls = 0
        self.byte_size = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    def enter(self, byte_size: int) -> bool:
        """Let a call in if there is room now, and nobody waits for it."""
        if self._waiting or not self._fits(byte_size):
            return False
        self.calls += 1
        self.byte_size += byte_size
        return True

    async def wait(self, byte_size: int, options: CallOptions, target: str) -> None:
        """Return when a call is let in.

        Raises
        ------
        DeadlineExceeded
            If that takes longer than it has.
        """
        waiter = asyncio.get_running_loop().create_future()
        entry = (waiter, byte_size)
        self._waiting.append(entry)
        try:
            await asyncio.wait((waiter,), timeout=seconds_left(options.deadline_ns))
        except BaseException:
            self._withdraw(entry)
            raise
        if not waiter.done():
            self._withdraw(entry)
            raise DeadlineExceeded(
                f"the deadline passed while {self.calls} calls with {self.byte_size} bytes were on "
                "their way before it; max_in_flight and max_in_flight_bytes say how many may be",
                call=options.call,
                target=target,
            )

    def leave(self, byte_size: int) -> None:
        """Count a call out that was let in."""
        self.calls -= 1
        self.byte_size -= byte_size
        self._let_in()

    def _fits(self, byte_size: int) -> bool:
        return self.calls == 0 or (
            self.calls < self._most_calls and self.byte_size + byte_size <= self._most_bytes
        )

    def _let_in(self) -> None:
        while self._waiting:
            waiter, byte_size = self._waiting[0]
            if not self._fits(byte_size):
                return
            self._waiting.popleft()
            if waiter.done() or waiter.get_loop().is_closed():
                continue
            self.calls += 1
            self.byte_size += byte_size
            waiter.set_result(None)

    def _withdraw(self, entry: tuple[asyncio.Future[None], int]) -> None:
        """Forget a call that does not wait any more, or that was let in a moment too late."""
        waiter, byte_size = entry
        if waiter.done() and not waiter.cancelled():
            self.leave(byte_size)
        else:
            self._waiting.remove(entry)
            self._let_in()
