"""Small inferences from several threads at once, all on one client."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

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
from sampling import Crew, Throughput, alternate_windows

THREADS = {"1 thread, 64 B": 1, "4 threads, 64 B": 4, "16 threads, 64 B": 16}
# tritonclient.http must not be used by several threads.
COMPETING = present((TritonFast, TritonFastGrpcio, CppStub, TritonclientGrpc))
Measure = Callable[[str], dict[str, Throughput]]


@pytest.fixture(scope="session")
def measure(server: Addresses, smoke: bool) -> Measure:
    groups: dict[str, dict[str, Throughput]] = {}

    def measured(group: str) -> dict[str, Throughput]:
        if group not in groups:
            groups[group] = _compete(group, server, smoke)
        return groups[group]

    return measured


def _compete(group: str, server: Addresses, smoke: bool) -> dict[str, Throughput]:
    case = numbers(64, group)
    total = {cls.name: Throughput() for cls in COMPETING}
    # A window is long beside one call, short beside what slows the machine down for a while.
    sets, rounds, seconds = (1, 2, 0.03) if smoke else (4, 5, 0.25)
    for number in range(sets):
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
            results = alternate_windows(crews, seconds, rounds, number)
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
    result = measure(group)[cls.name]
    record(
        group,
        cls.name,
        result.samples,
        threads=THREADS[group],
        calls_per_second=result.calls_per_second,
    )
