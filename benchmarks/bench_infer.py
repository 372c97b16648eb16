"""One inference, there and back, against the C++ identity backend: by size and by kind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import pytest
from contenders import Addresses, Case, Contender, numbers, present, strings, verify
from sampling import Plan, Samples, alternate

CASES = [
    (numbers(64, "FP32, 64 B"), Plan(20, 20, 2, sets=5)),
    (numbers(4 << 10, "FP32, 4 KiB"), Plan(20, 20, 2, sets=5)),
    (numbers(602_112, "FP32, 602,112 B"), Plan(10, 5, 2, sets=10)),
    (numbers(4 << 20, "FP32, 4 MiB"), Plan(4, 4, 1, sets=8)),
    (numbers(16 << 20, "FP32, 16 MiB"), Plan(3, 4, 1, sets=6)),
    (strings(10_000, 20, "BYTES, 10,000 of 20 B"), Plan(12, 2, 1, sets=5)),
]
PAIRS = [
    pytest.param(case, plan, cls, id=f"{case.group}-{cls.name}")
    for case, plan in CASES
    for cls in present()
    if case.datatype in cls.datatypes
]
Measure = Callable[[Case, Plan], dict[str, Samples]]


@pytest.fixture(scope="session")
def measure(server: Addresses, plan_of: Callable[[Plan], Plan]) -> Measure:
    """Measures all contenders of a group when its first benchmark runs; the others only record."""
    groups: dict[str, dict[str, Samples]] = {}

    def measured(case: Case, plan: Plan) -> dict[str, Samples]:
        if case.group not in groups:
            groups[case.group] = _compete(case, plan_of(plan), server)
        return groups[case.group]

    return measured


def _compete(case: Case, plan: Plan, server: Addresses) -> dict[str, Samples]:
    classes = [cls for cls in present() if case.datatype in cls.datatypes]
    total = {cls.name: Samples(plan.block) for cls in classes}
    for number in range(plan.sets):
        with ExitStack() as stack:
            contenders: list[Contender] = []
            # None is always the first to connect.
            for index in np.random.default_rng(number).permutation(len(classes)):
                contenders.append(classes[index](server, case))
                stack.callback(contenders[-1].close)
            for contender in contenders:
                verify(contender, case, contender.call())
            samples = alternate({each.name: each.call for each in contenders}, plan, number)
            for contender in contenders:
                verify(contender, case, contender.call())
                total[contender.name].add(samples[contender.name])
    return total


@pytest.mark.parametrize(("case", "plan", "cls"), PAIRS)
def bench_infer(
    case: Case,
    plan: Plan,
    cls: type[Contender],
    measure: Measure,
    record: Callable[..., None],
) -> None:
    record(case.group, cls.name, measure(case, plan)[cls.name])
