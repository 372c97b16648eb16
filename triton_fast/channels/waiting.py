"""Waiting for what another thread changes. Owns who waits, and no lock."""

from __future__ import annotations

import threading

__all__ = ["LOOK_S", "Waiters"]

LOOK_S = 1.0
"""How long a thread waits at most before it looks itself: a signal's handler may raise while
another one is about to wake it."""


class Waiters:
    """Threads that wait until something has changed that a lock of the caller's guards.

    In place of `threading.Condition`, whose lock is given back and taken again by Python code. An
    exception of a signal's handler may come between, and leave it taken, or not.
    """

    def __init__(self) -> None:
        self._waiting: set[threading.Lock] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def join(self) -> threading.Lock:
        """Return what to `wait` for. Called with the lock, when what is there was looked at."""
        waiter = threading.Lock()
        waiter.acquire()
        self._waiting.add(waiter)
        return waiter

    def wait(self, waiter: threading.Lock, seconds: float | None) -> None:
        """Wait until there may be a change, so long or shorter. Called without the lock."""
        try:
            waiter.acquire(timeout=LOOK_S if seconds is None else max(0.0, min(seconds, LOOK_S)))
        finally:
            self._waiting.discard(waiter)

    def leave(self, waiter: threading.Lock) -> None:
        """Forget who has joined, and does not wait after all."""
        self._waiting.discard(waiter)

    def wake(self) -> None:
        """Have all who wait look again. Called with the lock."""
        while self._waiting:
            self._waiting.pop().release()
