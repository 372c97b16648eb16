"""Event loops, and what is measured on one: tasks that make calls, and a ticker beside them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from report import CALLS, DELAY, HOLD, LONGEST, P50, P99
from sampling import Turn

LOOPS = ("asyncio", "uvloop") if find_spec("uvloop") else ("asyncio",)
TICK = 0.001


def new_runner(kind: str) -> asyncio.Runner:
    """Return a runner with a loop of one of the `LOOPS`."""
    if kind == "uvloop":
        import uvloop

        return asyncio.Runner(loop_factory=uvloop.new_event_loop)
    return asyncio.Runner(loop_factory=asyncio.new_event_loop)


class TaskCrew:
    """Tasks that make calls, all at the same time, while a window is open.

    Parameters
    ----------
    call : coroutine function
        What each of them calls, again and again.
    tasks : int
        How many they are.

    Attributes
    ----------
    answers : list
        The last answer of each task.
    """

    def __init__(self, call: Callable[[], Awaitable[Any]], tasks: int) -> None:
        self.answers: list[Any] = [None] * tasks
        self._call = call
        self._open = False

    async def window(self, seconds: float) -> Turn:
        """Let them work for a while. The reading is the time that a call took of it.

        The window ends when the last call that began in it has ended.
        """
        cpu_start = time.process_time()
        start = time.perf_counter()
        latencies = await self.work(seconds)
        elapsed = time.perf_counter() - start
        cpu_seconds = time.process_time() - cpu_start
        made = len(latencies)
        p50, p99 = np.percentile(latencies, [50, 99])
        return Turn(
            [(0.0, elapsed / made)],
            cpu_seconds / made,
            {CALLS: made / elapsed, P50: float(p50), P99: float(p99)},
        )

    async def work(self, seconds: float) -> list[float]:
        """Let them work for a while; return how long each call took, in seconds."""
        latencies: list[float] = []
        self._open = True
        asyncio.get_running_loop().call_later(seconds, self._shut)
        await asyncio.gather(
            *(self._make_calls(number, latencies) for number in range(len(self.answers)))
        )
        return latencies

    def _shut(self) -> None:
        self._open = False

    async def _make_calls(self, number: int, latencies: list[float]) -> None:
        clock = time.perf_counter
        self.answers[number] = None
        while True:
            start = clock()
            answer = await self._call()
            latencies.append(clock() - start)
            if not self._open:
                break
            del answer
        self.answers[number] = answer


async def ticked_window(crew: TaskCrew | None, seconds: float) -> Turn:
    """Let a crew work, or nobody, beside a ticker. The reading is the ticker's longest delay."""
    delays: list[float] = []
    holds: list[float] = []
    ticker = asyncio.create_task(_tick(delays, holds))
    cpu_start = time.process_time()
    start = time.perf_counter()
    if crew is None:
        await asyncio.sleep(seconds)
        made = 0
    else:
        made = len(await crew.work(seconds))
    elapsed = time.perf_counter() - start
    cpu_seconds = time.process_time() - cpu_start
    ticker.cancel()
    await asyncio.wait((ticker,))
    longest = max(delays)
    figures = {
        LONGEST: longest,
        DELAY: float(np.percentile(delays, 99)),
        HOLD: max(holds),
        CALLS: made / elapsed,
    }
    return Turn([(0.0, longest)], cpu_seconds / made if made else None, figures)


async def _tick(delays: list[float], holds: list[float]) -> None:
    clock, thread_clock = time.perf_counter, time.thread_time
    while True:
        due = clock() + TICK
        used = thread_clock()
        await asyncio.sleep(TICK)
        delays.append(clock() - due)
        holds.append(thread_clock() - used)
