"""How late a ticker of one millisecond is while large tensors go both ways on its event loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from async_contenders import (
    AsyncContender,
    AsyncTritonFast,
    AsyncTritonFastGrpcio,
    AsyncTritonFastWire,
    TritonclientAio,
    made,
)
from contenders import Addresses, numbers, verify
from loops import TaskCrew, new_runner, ticked_window
from sampling import Plan, Samples, take_turns

GROUP = "1 ms ticker, 16 MiB tensors"
IDLE = "nothing beside the ticker"
TASKS = 4
COMPETING: tuple[type[AsyncContender], ...] = (
    AsyncTritonFast,
    AsyncTritonFastWire,
    AsyncTritonFastGrpcio,
    TritonclientAio,
)
NAMES = (*(cls.name for cls in COMPETING), IDLE)


@pytest.fixture(scope="session")
def measured(server: Addresses, smoke: bool) -> dict[str, Samples]:
    case = numbers(16 << 20, GROUP)
    total = {name: Samples() for name in NAMES}
    plan, seconds = (Plan(1, warmup=0), 0.03) if smoke else (Plan(4, warmup=1, sets=3), 1.0)
    for number in range(plan.sets):
        with new_runner("asyncio") as runner:
            contenders = runner.run(made(COMPETING, server, case, number))
            crews = {each.name: TaskCrew(each.call, TASKS) for each in contenders}
            turns = {
                name: partial(
                    lambda run, crew: run(ticked_window(crew, seconds)),
                    runner.run,
                    crews.get(name),
                )
                for name in NAMES
            }
            for name, samples in take_turns(turns, plan, number).items():
                total[name].add(samples)
            for contender in contenders:
                for answer in crews[contender.name].answers:
                    verify(contender, case, answer)
                crews[contender.name].answers.clear()
                runner.run(contender.aclose())
    return total


@pytest.mark.parametrize("name", NAMES)
def bench_ticker(name: str, measured: dict[str, Samples], record: Callable[..., None]) -> None:
    record(GROUP, name, measured[name], tasks=TASKS if name != IDLE else 0)
