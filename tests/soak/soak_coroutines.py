"""A program that gives up calls and streams in every way, and says what it has left of them.

    python soak_coroutines.py URL CHANNEL COUNT [PLANTED]

prints one JSON list of measurements as soak_calls.py does. The server has the models identity_fp32,
repeat_int32 and cancellations. PLANTED leaks on purpose, for the test of the test: "tasks".
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import numpy as np
from soak_calls import MEASUREMENTS, measure
from support.process import resident_of_its_own

from triton_fast import AsyncClient, DeadlineExceeded, Unavailable

AT_A_TIME = 20
# Triton 2.51 may crash when streams are cancelled, the more so the more there are at a time, and at
# the moment when they begin or send an answer. The test starts it anew; here a call is refused, or
# not answered in time.
FEW = 3
CALM = 0.01
# How long the server may take to be there again, or to see what was given up.
PATIENCE = 100.0


class Soak:
    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.small = np.arange(16, dtype=np.float32)
        self.large = np.arange(150_528, dtype=np.float32)
        self.forever = {
            "IN": np.arange(100, dtype=np.int32),
            "DELAY": np.full(100, 50, np.uint32),
            "WAIT": np.zeros(1, np.uint32),
        }
        self.few = asyncio.Semaphore(FEW)
        self.refused = 0
        self.kept: list[object] = []

    async def one(self, number: int) -> None:
        """Begin something and give it up; what and how depends on its number."""
        try:
            await self.give_up(number)
        except (Unavailable, DeadlineExceeded):
            self.refused += 1
            await self.until_ready()

    async def until_ready(self) -> None:
        end = time.monotonic() + PATIENCE
        while not await self.client.is_ready(timeout=5):
            assert time.monotonic() < end, "the server does not come back"
            await asyncio.sleep(0.1)

    async def give_up(self, number: int) -> None:
        kind = number % 10
        if kind < 4:
            await self.cancelled(self.infer(self.large if kind < 2 else self.small), number % 7)
        elif kind < 8:
            async with self.few:
                await self.stream(kind)
        else:
            await self.infer(self.large if kind == 8 else self.small)

    async def stream(self, kind: int) -> None:
        if kind == 4:
            await self.cancelled(self.read_all(), 0, 2 * CALM)
        elif kind == 5:
            async with self.client.stream("repeat_int32", self.forever) as answers:
                await anext(answers)
                await asyncio.sleep(CALM)
        elif kind == 6:
            answers = self.client.stream("repeat_int32", self.forever)
            await anext(answers)
            await asyncio.sleep(CALM)  # and left to the collector
        else:
            async with self.client.open_stream() as stream:
                await stream.send("repeat_int32", self.forever)
                await asyncio.sleep(CALM)

    async def infer(self, tensor: np.ndarray) -> None:
        result = await self.client.infer("identity_fp32", {"INPUT0": tensor})
        assert np.array_equal(result["OUTPUT0"], tensor)

    async def read_all(self) -> None:
        async for _ in self.client.stream("repeat_int32", self.forever):
            pass

    async def cancelled(self, coroutine, turns: int, seconds: float = 0) -> None:
        task = asyncio.create_task(coroutine)
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def measure_here(calls: int) -> dict[str, float]:
    measured = measure(calls)
    # Regions of shared memory come when slots are in quarantine, 16 MiB at a time, and go again.
    measured["resident"] = resident_of_its_own()
    return measured | {"tasks": len(asyncio.all_tasks())}


async def main(url: str, channel: str, count: int, planted: str) -> list[dict[str, float]]:
    measurements = []
    async with AsyncClient(url, channel=channel, timeout=60) as client:
        soak = Soak(client)
        every = max(count // MEASUREMENTS, AT_A_TIME)
        for first in range(-every, count, AT_A_TIME):  # what is below zero warms up
            await asyncio.gather(*(soak.one(first + i) for i in range(AT_A_TIME)))
            if planted:
                soak.kept += [asyncio.create_task(asyncio.sleep(3600)) for _ in range(AT_A_TIME)]
            if first >= 0 and first % every < AT_A_TIME:
                await asyncio.sleep(0.1)  # for what the collector gave up
                measurements.append(measure_here(first))
        await soak.until_ready()
        end = time.monotonic() + PATIENCE
        running = 1
        while running and time.monotonic() < end:
            await asyncio.sleep(0.05)
            counts = await client.infer("cancellations", {"RESET": np.array([False])})
            running = int(counts["RUNNING"][0])
        for measurement in measurements:
            measurement["running"] = running
            measurement["refused"] = soak.refused
        for task in soak.kept:
            task.cancel()
    return measurements


if __name__ == "__main__":
    arguments = [*sys.argv[1:], ""]
    found = asyncio.run(main(arguments[0], arguments[1], int(arguments[2]), arguments[3]))
    print(json.dumps(found))
