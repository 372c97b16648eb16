"""Inferences from several tasks at once, all on one client and one event loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
from async_contenders import LARGE, SMALL, AsyncContender, made
from contenders import Addresses, numbers, verify
from loops import LOOPS, TaskCrew, new_runner
from sampling import Plan, Samples, take_turns

BYTES = 602_112


@dataclass(frozen=True)
class Crowd:
    """So many tasks, on one kind of loop, and what each sends."""

    tasks: int
    byte_size: int
    loop: str = "asyncio"

    @property
    def group(self) -> str:
        loop = "" if self.loop == "asyncio" else f"{self.loop}, "
        return f"{loop}{self.tasks} task{'s' * (self.tasks > 1)}, {self.byte_size:,} B"

    @property
    def competing(self) -> tuple[type[AsyncContender], ...]:
        return LARGE if self.byte_size == BYTES else SMALL


CROWDS = [
    *(Crowd(tasks, byte_size) for byte_size in (64, BYTES) for tasks in (1, 16, 64, 256)),
    *(Crowd(*each, loop) for loop in LOOPS[1:] for each in ((1, 64), (64, 64), (16, BYTES))),
]
Measure = Callable[[Crowd], dict[str, Samples]]


@pytest.fixture(scope="session")
def measure(server: Addresses, smoke: bool) -> Measure:
    groups: dict[str, dict[str, Samples]] = {}

    def measured(crowd: Crowd) -> dict[str, Samples]:
        if crowd.group not in groups:
            groups[crowd.group] = _compete(crowd, server, smoke)
        return groups[crowd.group]

    return measured


def _compete(crowd: Crowd, server: Addresses, smoke: bool) -> dict[str, Samples]:
    case = numbers(crowd.byte_size, crowd.group)
    total = {cls.name: Samples() for cls in crowd.competing}
    plan = Plan(2, warmup=0) if smoke else Plan(4, warmup=1, sets=3)
    # Long beside the time in which all tasks have had an answer.
    seconds = 0.03 if smoke else 0.5 if crowd.tasks * crowd.byte_size > 50e6 else 0.25
    for number in range(plan.sets):
        with new_runner(crowd.loop) as runner:
            contenders = runner.run(made(crowd.competing, server, case, number))
            crews = {each.name: TaskCrew(each.call, crowd.tasks) for each in contenders}
            turns = {
                name: partial(lambda run, crew: run(crew.window(seconds)), runner.run, crew)
                for name, crew in crews.items()
            }
            for name, samples in take_turns(turns, plan, number).items():
                total[name].add(samples)
            for contender in contenders:
                for answer in crews[contender.name].answers:
                    verify(contender, case, answer)
                crews[contender.name].answers.clear()
                runner.run(contender.aclose())
    return total


@pytest.mark.parametrize(
    ("crowd", "cls"),
    [
        pytest.param(crowd, cls, id=f"{crowd.group}-{cls.name}")
        for crowd in CROWDS
        for cls in crowd.competing
    ],
)
def bench_tasks(
    crowd: Crowd, cls: type[AsyncContender], measure: Measure, record: Callable[..., None]
) -> None:
    record(crowd.group, cls.name, measure(crowd)[cls.name], tasks=crowd.tasks)
