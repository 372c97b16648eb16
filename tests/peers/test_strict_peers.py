"""What nginx and grpcio's server have not seen: nothing is lost of what they refuse to take.

Both say how many calls they take at a time on a connection, and nginx how many in all, which by
default are a thousand.
"""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from triton_fast import AsyncClient, Client, TritonFastError

pytestmark = pytest.mark.native

CALLS = 200
THREADS = 16
TASKS = 40


@pytest.fixture(scope="module", params=["nginx", "ten at a time", "one at a time"])
def strict(request, start_proxy, start_server):
    """Return the address of a server that takes no more than it says."""
    if request.param == "nginx":
        return start_proxy("nginx", start_server().target, requests=20, streams=5).target
    return start_server(max_concurrent_streams=10 if "ten" in request.param else 1).target


def inputs(number):
    return {"INPUT0": np.full(4, number, np.float32)}


def infer(client, number):
    return client.infer("m", inputs(number))["INPUT0"].tolist()


def submit(client, number):
    return client.submit("m", inputs(number)).result(60)["INPUT0"].tolist()


def stream(client, number):
    first, second = (one["INPUT0"].tolist() for one in client.stream("m", inputs(number)))
    return first if first == second else (first, second)


async def infer_async(client, number):
    return (await client.infer("m", inputs(number)))["INPUT0"].tolist()


async def stream_async(client, number):
    first, second = [one["INPUT0"].tolist() async for one in client.stream("m", inputs(number))]
    return first if first == second else (first, second)


def made_by_threads(url, act):
    numbers, found = iter(range(CALLS)), []

    def work(client):
        for number in numbers:
            try:
                found.append((number, act(client, number)))
            except TritonFastError as error:
                found.append((number, error))

    with Client(url, channel="native", shared_memory=False, timeout=60) as client:
        threads = [threading.Thread(target=work, args=(client,)) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return found


def made_by_tasks(url, act):
    numbers, found = iter(range(CALLS)), []

    async def work(client):
        for number in numbers:
            try:
                found.append((number, await act(client, number)))
            except TritonFastError as error:
                found.append((number, error))

    async def working():
        async with AsyncClient(url, channel="native", shared_memory=False, timeout=60) as client:
            await asyncio.gather(*(work(client) for _ in range(TASKS)))

    asyncio.run(working())
    return found


@pytest.mark.parametrize("act", [infer, submit, stream, infer_async, stream_async])
def test_nothing_is_lost(strict, act):
    made = made_by_tasks if asyncio.iscoroutinefunction(act) else made_by_threads
    found = sorted(made(strict, act), key=lambda pair: pair[0])
    assert found == [(number, [number] * 4) for number in range(CALLS)]
