"""How time is taken: contenders take turns in one process, and every reading is kept.

`take_turns` measures. `ReplayClock` hands the readings to pytest-benchmark, which runs one
benchmark after the other and could not let them take turns itself: it asks the clock before and
after a function that does nothing, and gets the readings that were taken before and after the real
call.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from report import CALLS


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Parameters
    ----------
    rounds : int
        How many turns each contender has in a set.
    block : int
        Calls in one turn: more than one where a call is short, so that most calls find the
        caches as a program that makes many calls would.
    warmup : int
        Rounds before the measured ones of a set.
    sets : int
        How often this is done, each time with clients of their own. A connection keeps its pace for
        as long as it lives, and two of the same kind may differ by a third.
    """

    rounds: int
    block: int = 1
    warmup: int = 2
    sets: int = 1


@dataclass(frozen=True)
class Turn:
    """What was measured in one turn of one contender.

    Attributes
    ----------
    readings : list of (float, float), seconds
        Of the clock, before and after each call; or other pairs as far apart.
    cpu_seconds : float
        What this process used on all of its threads, per call; None if there was none.
    figures : dict of str to float
        What else was measured, by the report's names of quantities.
    """

    readings: list[tuple[float, float]]
    cpu_seconds: float | None
    figures: dict[str, float] = field(default_factory=dict)


@dataclass
class Samples:
    """What was measured of one contender, turn by turn; see `Turn`.

    Attributes
    ----------
    block : int
        Readings in one turn.
    """

    block: int = 1
    readings: list[tuple[float, float]] = field(default_factory=list)
    cpu_seconds: list[float | None] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)

    def take(self, turn: Turn) -> None:
        """Take what one more turn gave."""
        self.readings += turn.readings
        self.cpu_seconds.append(turn.cpu_seconds)
        for quantity, figure in turn.figures.items():
            self.figures.setdefault(quantity, []).append(figure)

    def add(self, more: Samples) -> None:
        """Take the readings of another set."""
        self.readings += more.readings
        self.cpu_seconds += more.cpu_seconds
        for quantity, figures in more.figures.items():
            self.figures.setdefault(quantity, []).extend(figures)


def take_turns(
    turns: Mapping[str, Callable[[], Turn]], plan: Plan, seed: int
) -> dict[str, Samples]:
    """Measure one set of contenders that take turns.

    Each round has one turn of each, in a random order, so that none always follows the same other.
    The garbage collector is off during turns.
    """
    names = list(turns)
    samples = {name: Samples(plan.block) for name in names}
    order = np.random.default_rng(seed)
    gc.collect()
    gc.disable()
    try:
        for number in range(-plan.warmup, plan.rounds):
            for index in order.permutation(len(names)):
                name = names[index]
                turn = turns[name]()
                if number >= 0:
                    samples[name].take(turn)
            # A contender may leave cycles behind, with its tensors in them.
            gc.collect(0)
    finally:
        gc.enable()
    return samples


def alternate(
    calls: Mapping[str, Callable[[], Any]], plan: Plan, seed: int = 0
) -> dict[str, Samples]:
    """Measure one set of calls that take turns.

    What a call returns is freed after its time was taken, but counts for the CPU time.
    """
    return take_turns(
        {name: partial(_block, call, plan.block) for name, call in calls.items()}, plan, seed
    )


def _block(call: Callable[[], Any], block: int) -> Turn:
    clock = time.perf_counter
    readings = []
    cpu_start = time.process_time()
    for _ in range(block):
        start = clock()
        answer = call()
        end = clock()
        del answer
        readings.append((start, end))
    return Turn(readings, (time.process_time() - cpu_start) / block)


class Crew:
    """Threads that make calls, all at the same time, while a window is open.

    Parameters
    ----------
    calls : sequence of callable
        One for each thread.

    Attributes
    ----------
    answers : list
        The last answer of each thread.
    """

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        self.answers: list[Any] = [None] * len(calls)
        self._made = [0] * len(calls)
        self._open = False
        self._error: BaseException | None = None
        self._gate = threading.Barrier(len(calls) + 1)
        self._threads = [
            threading.Thread(target=self._work, args=(number, call), daemon=True)
            for number, call in enumerate(calls)
        ]
        for thread in self._threads:
            thread.start()

    def window(self, seconds: float) -> Turn:
        """Let them work for a while. The reading is the time that a call took of it.

        The window ends when the last call that began in it has ended.
        """
        self._open = True
        cpu_start = time.process_time()
        start = time.perf_counter()
        try:
            self._gate.wait()
            time.sleep(seconds)
            self._open = False
            self._gate.wait()
        except threading.BrokenBarrierError:
            assert self._error is not None
            raise self._error from None
        elapsed = time.perf_counter() - start
        cpu_seconds = time.process_time() - cpu_start
        made = sum(self._made)
        return Turn([(0.0, elapsed / made)], cpu_seconds / made, {CALLS: made / elapsed})

    def close(self) -> None:
        """End the threads."""
        self._open = False
        self._gate.abort()
        for thread in self._threads:
            thread.join()

    def _work(self, number: int, call: Callable[[], Any]) -> None:
        try:
            while True:
                self._gate.wait()
                self.answers[number] = call()
                made = 1
                while self._open:
                    self.answers[number] = call()
                    made += 1
                self._made[number] = made
                self._gate.wait()
        except threading.BrokenBarrierError:
            pass
        except BaseException as error:  # noqa: BLE001 - `window` raises it
            self._error = error
            self._gate.abort()


class ReplayClock:
    """A timer for pytest-benchmark that gives readings which were taken before."""

    __name__ = "perf_counter, replayed"

    def __init__(self) -> None:
        self._readings: list[float] = []

    def load(self, readings: Iterable[tuple[float, float]]) -> None:
        """Take the readings that the next benchmark is to see."""
        self._readings = [reading for pair in readings for reading in pair][::-1]

    def __call__(self) -> float:
        return self._readings.pop()

    @property
    def exhausted(self) -> bool:
        return not self._readings
