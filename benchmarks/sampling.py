"""How time is taken: contenders take turns in one process, and every reading is kept.

`alternate` measures. `ReplayClock` hands the readings to pytest-benchmark, which runs one benchmark
after the other and could not let them take turns itself: it asks the clock before and after a
function that does nothing, and gets the readings that were taken before and after the real call.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Parameters
    ----------
    rounds : int
        How many turns each contender has.
    block : int
        Calls in one turn: more than one where a call is short, so that most calls find the
        caches as a program that makes many calls would.
    warmup : int
        Rounds before the measured ones.
    """

    rounds: int
    block: int = 1
    warmup: int = 2


@dataclass
class Samples:
    """What was measured of one contender.

    Attributes
    ----------
    readings : list of (float, float), seconds
        Of the clock, before and after each call.
    cpu_seconds : list of float
        What this process used in each turn, on all of its threads, per call.
    block : int
        Calls in one turn.
    """

    block: int = 1
    readings: list[tuple[float, float]] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)


def alternate(calls: Mapping[str, Callable[[], Any]], plan: Plan) -> dict[str, Samples]:
    """Measure calls that take turns.

    Each round has one turn of each, in a random order, so that none always follows the same other.
    The garbage collector is off during turns. What a call returns is freed after its time was
    taken, but counts for the CPU time.
    """
    names = list(calls)
    samples = {name: Samples(plan.block) for name in names}
    order = np.random.default_rng(0)
    gc.collect()
    gc.disable()
    try:
        for number in range(-plan.warmup, plan.rounds):
            for index in order.permutation(len(names)):
                name = names[index]
                cpu_seconds, readings = _turn(calls[name], plan.block)
                if number >= 0:
                    samples[name].readings += readings
                    samples[name].cpu_seconds.append(cpu_seconds / plan.block)
            # A contender may leave cycles behind, with its tensors in them.
            gc.collect(0)
    finally:
        gc.enable()
    return samples


def _turn(call: Callable[[], Any], block: int) -> tuple[float, list[tuple[float, float]]]:
    clock = time.perf_counter
    readings = []
    cpu_start = time.process_time()
    for _ in range(block):
        start = clock()
        answer = call()
        end = clock()
        del answer
        readings.append((start, end))
    return time.process_time() - cpu_start, readings


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
