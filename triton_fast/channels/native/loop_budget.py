"""How long the connections of a channel may keep an event loop from everything else on it.

A loop runs all that is ready before it looks at its timers again. A connection's step, to send or
receive a megabyte, is short; those of eight connections with large tensors together are not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["LoopBudget"]

_SHARE_S = 0.002
# Shorter steps are not counted: small calls are not to pay for large ones.
_NOTABLE_S = 0.0001


class LoopBudget:
    """What connections have had of the loop's current round.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        All methods are called on it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._spent = 0.0

    @property
    def over(self) -> bool:
        """Whether further steps are to wait for the next round."""
        return self._spent >= _SHARE_S

    def run(self, step: Callable[[], None]) -> None:
        """Take a step, and count how long it takes."""
        start = time.monotonic()
        try:
            step()
        finally:
            spent = time.monotonic() - start
            if spent >= _NOTABLE_S:
                if not self._spent:
                    self._loop.call_soon(self._begin_round)
                self._spent += spent

    def _begin_round(self) -> None:
        self._spent = 0.0
