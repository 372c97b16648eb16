"""Connections take turns on an event loop, and leave it to others in between."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter

import pytest

from triton_fast.channels.native import loop_budget
from triton_fast.channels.native.connection_async import AsyncConnection
from triton_fast.channels.native.loop_budget import LoopBudget

CONNECTIONS = 8
STEP_S = 0.0015  # two of them are more than a round's share


class Clock:
    """Stands for the module `time`: nothing but a connection's steps takes any."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def budget_clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(loop_budget, "time", clock)
    return clock


class Busy:
    """What a connection asks of a multiplexer, with a socket that has always something to do.

    Its step takes a while, and is written down.
    """

    usable = True
    broken = False
    received = 0

    def __init__(self, clock: Clock, steps: list[Busy], seconds: float, *, sends: bool) -> None:
        self._clock = clock
        self.ends = socket.socketpair()
        if not sends:
            self.ends[1].send(b"x")  # nobody reads it
        self.descriptor = self.ends[0].fileno()
        self.wants_write = sends
        self._steps = steps
        self._seconds = seconds

    def receive(self):
        self._step()
        return []

    def flush(self):
        if self.wants_write:
            self._step()

    def _step(self):
        self._steps.append(self)
        self._clock.now += self._seconds

    def news(self):
        return []

    def fail(self, reason):
        self.broken = True

    def hang_up(self):
        for end in self.ends:
            end.close()


async def steps_by_round(
    clock: Clock, rounds: int, seconds: float, *, sends: bool
) -> list[list[Busy]]:
    """Return who had a turn in each round of the loop, of connections that are always busy."""
    loop = asyncio.get_running_loop()
    budget = LoopBudget(loop)
    steps: list[Busy] = []
    connections = [
        AsyncConnection(
            loop, Busy(clock, steps, seconds, sends=sends), budget, (0, 0), lambda: None
        )
        for _ in range(CONNECTIONS)
    ]
    if sends:
        for connection in connections:
            connection.begin(1)
    seen = []
    for _ in range(rounds):
        seen.append(steps[:])
        steps.clear()
        await asyncio.sleep(0)
    for connection in connections:
        connection.hang_up()
    return seen


@pytest.mark.parametrize("sends", [False, True], ids=["receive", "send"])
def test_long_steps_are_spread_over_rounds_and_everyone_has_turns(run, budget_clock, sends):
    rounds = run(steps_by_round(budget_clock, 100, STEP_S, sends=sends))
    assert max(map(len, rounds)) <= 2
    turns = Counter(busy for steps in rounds for busy in steps)
    assert len(turns) == CONNECTIONS
    assert max(turns.values()) <= 2 * min(turns.values())


@pytest.mark.parametrize("sends", [False, True], ids=["receive", "send"])
def test_short_steps_are_all_taken_at_once(run, budget_clock, sends):
    rounds = run(steps_by_round(budget_clock, 100, 0, sends=sends))
    assert max(map(len, rounds)) >= CONNECTIONS


def test_a_connection_that_is_closed_takes_no_turn(run, budget_clock):
    async def hung_up_while_waiting():
        loop = asyncio.get_running_loop()
        budget = LoopBudget(loop)
        steps: list[Busy] = []
        connections = [
            AsyncConnection(
                loop, Busy(budget_clock, steps, STEP_S, sends=False), budget, (0, 0), lambda: None
            )
            for _ in range(CONNECTIONS)
        ]
        while not steps:
            await asyncio.sleep(0)
        for connection in connections:
            connection.hang_up()
        taken = len(steps)
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(steps) == taken <= 2

    run(hung_up_while_waiting())
