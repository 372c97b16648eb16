"""Waiting for what nobody tells of, with a generous limit."""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

LONG = 30.0


def within(seconds: float) -> int:
    """Return a deadline as channels take it."""
    return time.monotonic_ns() + round(seconds * 1e9)


def until(condition: Callable[[], object], seconds: float = LONG) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still not so after {seconds} s"
        time.sleep(0.005)


async def until_async(condition: Callable[[], object], seconds: float = LONG) -> None:
    """Wait, and let other tasks run, until something is so; it may be something to await."""
    end = time.monotonic() + seconds
    while not await _value(condition()):
        assert time.monotonic() < end, f"still not so after {seconds} s"
        await asyncio.sleep(0.005)


async def _value(found: object) -> object:
    return await found if inspect.isawaitable(found) else found


def until_blocked(thread: threading.Thread) -> None:
    """Wait until a thread waits for something: until it sleeps, and is not woken for a while.

    For the sake of what comes next; a thread that is late must not make it fail.
    """
    # man 5 proc. Not sys._current_frames, which deadlocks where it collects a grpcio server.
    status = Path(f"/proc/self/task/{thread.native_id}/status")
    looks: list[str] = []

    def is_still() -> bool:
        try:
            text = status.read_text()
        except OSError:  # it has ended
            return True
        looks.append(re.sub(r"(?m)^(?!State|.*ctxt_switches).*\n", "", text))
        return len(looks) > 5 and "sleeping" in looks[-1] and set(looks[-5:]) == {looks[-1]}

    until(is_still)
