"""One inference, there and back, against the C++ identity backend: by size and by kind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
import pytest
from contenders import (
    BATCH,
    CONTENDERS,
    LARGE,
    SPLIT,
    Addresses,
    Case,
    Contender,
    images,
    labelled_images,
    numbers,
    present,
    rows,
    strings,
    verify,
)
from sampling import Plan, Samples, alternate
from several import SEVERAL

CASES = [
    (numbers(64, "FP32, 64 B"), Plan(20, 20, 2, sets=5), CONTENDERS),
    (numbers(4 << 10, "FP32, 4 KiB"), Plan(20, 20, 2, sets=5), CONTENDERS),
    (numbers(602_112, "FP32, 602,112 B"), Plan(10, 5, 2, sets=10), CONTENDERS),
    (numbers(4 << 20, "FP32, 4 MiB"), Plan(4, 4, 1, sets=8), CONTENDERS),
    (numbers(16 << 20, "FP32, 16 MiB"), Plan(3, 4, 1, sets=6), LARGE),
    (strings(10_000, 20, "BYTES, 10,000 of 20 B"), Plan(12, 2, 1, sets=5), CONTENDERS),
    (rows(8, 16, "8 rows, 512 B"), Plan(20, 10, 2, sets=5), BATCH),
    (images(8, 224, "8 images, 4.8 MB"), Plan(4, 4, 1, sets=6), BATCH),
    (labelled_images(8, 224, "8 images with labels"), Plan(4, 4, 1, sets=6), SEVERAL),
    (images(8, 512, "8 large images, 25 MB"), Plan(2, 2, 1, sets=5), BATCH),
    (images(100, 224, "100 images in batches of 8"), Plan(3, 1, 1, sets=6), SPLIT),
]
PAIRS = [
    pytest.param(case, plan, classes, cls, id=f"{case.group}-{cls.name}")
    for case, plan, classes in CASES
    for cls in present(classes)
    if case.datatype in cls.datatypes
]
Classes = tuple[type[Contender], ...]
Measure = Callable[[Case, Plan, Classes], dict[str, Samples]]


@pytest.fixture(scope="session")
def measure(server: Addresses, plan_of: Callable[[Plan], Plan]) -> Measure:
    """Measures all contenders of a group when its first benchmark runs; the others only record."""
    groups: dict[str, dict[str, Samples]] = {}

    def measured(case: Case, plan: Plan, classes: Classes) -> dict[str, Samples]:
        if case.group not in groups:
            groups[case.group] = _compete(case, plan_of(plan), classes, server)
        return groups[case.group]

    return measured


def _compete(case: Case, plan: Plan, competing: Classes, server: Addresses) -> dict[str, Samples]:
    classes = [cls for cls in present(competing) if case.datatype in cls.datatypes]
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


@pytest.mark.parametrize(("case", "plan", "classes", "cls"), PAIRS)
def bench_infer(
    case: Case,
    plan: Plan,
    classes: Classes,
    cls: type[Contender],
    measure: Measure,
    record: Callable[..., None],
) -> None:
    record(case.group, cls.name, measure(case, plan, classes)[cls.name])
