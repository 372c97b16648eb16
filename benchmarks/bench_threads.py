"""Small inferences from several threads at once, all on one client."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest
from contenders import (
    Addresses,
    Contender,
    CppStub,
    TritonclientGrpc,
    TritonFast,
    TritonFastGrpcio,
    numbers,
    present,
    verify,
)
from sampling import Crew, Plan, Samples, take_turns

THREADS = {"1 thread, 64 B": 1, "4 threads, 64 B": 4, "16 threads, 64 B": 16}
# tritonclient.http must not be used by several threads.
COMPETING = present((TritonFast, TritonFastGrpcio, CppStub, TritonclientGrpc))
Measure = Callable[[str], dict[str, Samples]]


@pytest.fixture(scope="session")
def measure(server: Addresses, smoke: bool) -> Measure:
    groups: dict[str, dict[str, Samples]] = {}

    def measured(group: str) -> dict[str, Samples]:
        if group not in groups:
            groups[group] = _compete(group, server, smoke)
        return groups[group]

    return measured


def _compete(group: str, server: Addresses, smoke: bool) -> dict[str, Samples]:
    case = numbers(64, group)
    total = {cls.name: Samples() for cls in COMPETING}
    # A window is long beside one call, short beside what slows the machine down for a while.
    plan, seconds = (Plan(2, warmup=1), 0.03) if smoke else (Plan(5, warmup=1, sets=4), 0.25)
    for number in range(plan.sets):
        with ExitStack() as stack:
            contenders: list[Contender] = []
            crews: dict[str, Crew] = {}
            for index in np.random.default_rng(number).permutation(len(COMPETING)):
                contender = COMPETING[index](server, case)
                contenders.append(contender)
                stack.callback(contender.close)
                verify(contender, case, contender.call())
                crew = Crew([contender.caller() for _ in range(THREADS[group])])
                stack.callback(crew.close)
                crews[contender.name] = crew
            results = take_turns(
                {name: partial(crew.window, seconds) for name, crew in crews.items()}, plan, number
            )
            for contender in contenders:
                for answer in crews[contender.name].answers:
                    verify(contender, case, answer)
                total[contender.name].add(results[contender.name])
    return total


@pytest.mark.parametrize("cls", COMPETING, ids=lambda cls: cls.name)
@pytest.mark.parametrize("group", THREADS)
def bench_threads(
    group: str, cls: type[Contender], measure: Measure, record: Callable[..., None]
) -> None:
    record(group, cls.name, measure(group)[cls.name], threads=THREADS[group])
