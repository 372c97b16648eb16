"""A program that gives up calls and streams in every way, and says what it has left of them.

    python soak_coroutines.py URL CHANNEL COUNT [PLANTED]

prints one JSON list of measurements as soak_calls.py does. The server has the models identity_fp32,
repeat_int32 and cancellations. PLANTED leaks on purpose, for the test of the test: "tasks".
"""

from __future__ import annotations

import asyncio
import json
import sys

import numpy as np
from soak_calls import MEASUREMENTS, measure

from triton_fast import AsyncClient

AT_A_TIME = 20


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
        self.kept: list[object] = []

    async def one(self, number: int) -> None:
        """Begin something and give it up; what and how depends on its number."""
        kind = number % 10
        if kind < 4:
            await self.cancelled(self.infer(self.large if kind < 2 else self.small), number % 7)
        elif kind == 4:
            await self.cancelled(self.read_all(), number % 7)
        elif kind == 5:
            async with self.client.stream("repeat_int32", self.forever) as answers:
                await anext(answers)
        elif kind == 6:
            answers = self.client.stream("repeat_int32", self.forever)
            await anext(answers)  # and left to the collector
        elif kind == 7:
            async with self.client.open_stream() as stream:
                await stream.send("repeat_int32", self.forever)
        else:
            await self.infer(self.large if kind == 8 else self.small)

    async def infer(self, tensor: np.ndarray) -> None:
        result = await self.client.infer("identity_fp32", {"INPUT0": tensor})
        assert np.array_equal(result["OUTPUT0"], tensor)

    async def read_all(self) -> None:
        async for _ in self.client.stream("repeat_int32", self.forever):
            pass

    async def cancelled(self, coroutine, turns: int) -> None:
        task = asyncio.create_task(coroutine)
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


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
                measurements.append(measure(first) | {"tasks": len(asyncio.all_tasks())})
        await asyncio.sleep(0.5)
        counts = await client.infer("cancellations", {"RESET": np.array([False])})
        for measurement in measurements:
            measurement["running"] = int(counts["RUNNING"][0])
            measurement["cancelled"] = int(counts["CANCELLED"][0])
        for task in soak.kept:
            task.cancel()
    return measurements


if __name__ == "__main__":
    arguments = [*sys.argv[1:], ""]
    found = asyncio.run(main(arguments[0], arguments[1], int(arguments[2]), arguments[3]))
    print(json.dumps(found))
