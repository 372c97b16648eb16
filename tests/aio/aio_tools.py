"""What the tests of the clients of coroutines share: loops and channels, counts, and waiting."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.waiting import until_async


def _pair(kind: str, channel: str):
    marks = [pytest.mark.native] if channel == "native" else []
    return pytest.param((kind, channel), id=f"{kind}-{channel}", marks=marks)


# A client's own code knows neither the loop's kind nor the channel's: each comes once. The tests
# of the channels have every channel on every loop.
PAIRS = [_pair("asyncio", "native"), _pair("uvloop", "grpc")]
# For tests of what is up to both.
every_pair = pytest.mark.parametrize(
    "loop_and_channel",
    [*PAIRS, _pair("asyncio", "grpc"), _pair("uvloop", "native")],
    indirect=True,
)
# For tests of what no channel has a part in, or of what only the native one does.
native_only = pytest.mark.parametrize("loop_and_channel", PAIRS[:1], indirect=True)


ONE = {"INPUT0": np.array([0.5, 3, 1], np.float32)}


def slow(seconds: float) -> dict[str, np.ndarray]:
    """Return inputs of the model `slow`, which takes so long over them."""
    return {**ONE, "DELAY": np.array([seconds], np.float32)}


class Threads(ThreadPoolExecutor):
    """A loop's own threads, which count what they are given."""

    def __init__(self) -> None:
        super().__init__(4)
        self.given = 0

    def submit(self, *arguments, **options):
        self.given += 1
        return super().submit(*arguments, **options)


def count_threads() -> Threads:
    threads = Threads()
    asyncio.get_running_loop().set_default_executor(threads)
    return threads


async def counts(client, *, reset=False) -> tuple[int, int]:
    """Return how many requests the models have seen cancelled, and how many they have."""
    found = await client.infer("cancellations", {"RESET": np.array([reset])})
    return found["CANCELLED"].item(), found["RUNNING"].item()


async def until_running(client, number: int) -> None:
    """Wait until the models have as many requests."""

    async def as_many():
        return (await counts(client))[1] == number

    await until_async(as_many)


async def reset(client) -> None:
    """Begin counting anew, once no model has anything to do."""
    await until_running(client, 0)
    await counts(client, reset=True)
