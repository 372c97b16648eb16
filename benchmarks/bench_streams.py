"""Many small answers to one request, and the time to the first: a decoupled model."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
from contenders import Addresses
from loops import new_runner
from report import ANSWERS, FIRST
from sampling import Plan, Samples, Turn, take_turns
from stream_contenders import STREAMING, StreamContender

MANY = "stream, 10,000 answers"
ONE = "stream, time to the first answer"
PLANS = {MANY: Plan(6, 1, 1, sets=4), ONE: Plan(20, 20, 2, sets=5)}
Measure = Callable[[str], dict[str, Samples]]


def _many(contender: StreamContender, count: int) -> Turn:
    """Take many answers. The reading is the time that one took."""
    cpu_start = time.process_time()
    asked = contender.ask(np.array([count], np.int32))
    cpu_seconds = time.process_time() - cpu_start
    asked.verify(contender.name, count)
    elapsed = asked.end - asked.start
    figures = {ANSWERS: count / elapsed, FIRST: asked.first - asked.start}
    return Turn([(0.0, elapsed / count)], cpu_seconds / count, figures)


def _one(contender: StreamContender, block: int) -> Turn:
    """Take one answer, so many times."""
    cpu_start = time.process_time()
    number = np.array([1], np.int32)
    asked = [contender.ask(number) for _ in range(block)]
    cpu_seconds = time.process_time() - cpu_start
    for each in asked:
        each.verify(contender.name, 1)
    return Turn([(each.start, each.first) for each in asked], cpu_seconds / block)


@pytest.fixture(scope="session")
def measure(server: Addresses, smoke: bool) -> Measure:
    groups: dict[str, dict[str, Samples]] = {}

    def measured(group: str) -> dict[str, Samples]:
        if group not in groups:
            groups[group] = _compete(group, server, smoke)
        return groups[group]

    return measured


def _compete(group: str, server: Addresses, smoke: bool) -> dict[str, Samples]:
    plan = Plan(2, 1, 0) if smoke else PLANS[group]
    total = {cls.name: Samples(plan.block) for cls in STREAMING}
    ask = partial(_many, count=100 if smoke else 10_000)
    if group == ONE:
        ask = partial(_one, block=plan.block)
    for number in range(plan.sets):
        with new_runner("asyncio") as runner, ExitStack() as stack:
            contenders: list[StreamContender] = []
            for index in np.random.default_rng(number).permutation(len(STREAMING)):
                contender = STREAMING[index](server, runner.get_loop())
                contenders.append(contender)
                stack.callback(contender.close)
                contender.ask(np.array([3], np.int32)).verify(contender.name, 3)
            turns = {each.name: partial(ask, each) for each in contenders}
            for name, samples in take_turns(turns, plan, number).items():
                total[name].add(samples)
    return total


@pytest.mark.parametrize("cls", STREAMING, ids=lambda cls: cls.name)
@pytest.mark.parametrize("group", PLANS)
def bench_streams(
    group: str, cls: type[StreamContender], measure: Measure, record: Callable[..., None]
) -> None:
    record(group, cls.name, measure(group)[cls.name])
