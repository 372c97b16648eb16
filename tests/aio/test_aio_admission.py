"""How many calls and bytes are on their way at a time: in order, fair, and given up cleanly."""

from __future__ import annotations

import asyncio
import random
import time

import numpy as np
import pytest

from triton_fast import AsyncClient, DeadlineExceeded
from triton_fast.channels.base import CallOptions
from triton_fast.client.admission import Admission

NO_OPTIONS = CallOptions()


def soon(seconds: float) -> CallOptions:
    return CallOptions(deadline_ns=time.monotonic_ns() + round(seconds * 1e9), call="X")


async def admit(admission: Admission, byte_size: int, options: CallOptions = NO_OPTIONS) -> None:
    if not admission.enter(byte_size):
        await admission.wait(byte_size, options, "host:1")


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_in_the_order_in_which_they_come(aio_run):
    async def work():
        admission = Admission(2, 1000)
        order = []

        async def one(number):
            await admit(admission, 1)
            order.append(number)
            await asyncio.sleep(0.001)
            admission.leave(1)

        await asyncio.gather(*(one(number) for number in range(50)))
        assert order == list(range(50))
        assert (admission.calls, admission.byte_size) == (0, 0)

    aio_run(work())


def test_never_more_than_allowed(aio_run):
    chance = random.Random(3)
    sizes = [chance.choice([0, 1, 10, 60, 100]) for _ in range(300)]

    async def work():
        admission = Admission(5, 100)
        most = [0, 0]
        inside = []

        async def one(size):
            await admit(admission, size)
            inside.append(size)

        tasks = [asyncio.create_task(one(size)) for size in sizes]
        for _ in sizes:  # one leaves at a time, any of those that are in
            await settle()
            assert (admission.calls, admission.byte_size) == (len(inside), sum(inside))
            most = [max(most[0], admission.calls), max(most[1], admission.byte_size)]
            admission.leave(inside.pop(chance.randrange(len(inside))))
        await asyncio.gather(*tasks)
        assert most == [5, 100]
        assert (admission.calls, admission.byte_size) == (0, 0)

    aio_run(work())


def test_a_large_one_is_not_starved(aio_run):
    """Small ones that come later wait behind it; one above the limit goes alone."""

    async def work():
        admission = Admission(100, 100)
        await admit(admission, 60)
        large = asyncio.create_task(admit(admission, 500))
        await settle()
        small = [asyncio.create_task(admit(admission, 1)) for _ in range(3)]
        await settle()
        assert not large.done()
        assert not any(task.done() for task in small)
        admission.leave(60)
        await large
        await settle()
        assert not any(task.done() for task in small)
        admission.leave(500)
        await asyncio.gather(*small)
        assert (admission.calls, admission.byte_size) == (3, 3)

    aio_run(work())


def test_a_deadline_ends_the_wait(aio_run):
    async def work():
        admission = Admission(1, 100)
        await admit(admission, 10)
        with pytest.raises(
            DeadlineExceeded, match="1 calls with 10 bytes .*max_in_flight"
        ) as raised:
            await admit(admission, 1, soon(0.05))
        assert (raised.value.call, raised.value.target) == ("X", "host:1")
        # Whoever came after it is next.
        late = asyncio.create_task(admit(admission, 90, soon(0.05)))
        next_one = asyncio.create_task(admit(admission, 1))
        with pytest.raises(DeadlineExceeded):
            await late
        admission.leave(10)
        await next_one
        assert admission.calls == 1

    aio_run(work())


def test_cancelling_those_that_wait(aio_run):
    """At every moment, also in the one in which they are let in."""

    async def work():
        for moment in range(4):
            admission = Admission(1, 100)
            await admit(admission, 1)
            waiting = [asyncio.create_task(admit(admission, 1)) for _ in range(3)]
            await settle()
            if moment == 0:
                waiting[0].cancel()
                admission.leave(1)
            elif moment == 1:
                admission.leave(1)
                waiting[0].cancel()
            elif moment == 2:
                admission.leave(1)
                await asyncio.sleep(0)
                waiting[0].cancel()
            else:
                waiting[1].cancel()
                admission.leave(1)
            await settle()
            for task in waiting:
                if task.done() and not task.cancelled():
                    admission.leave(1)
                    await settle()
            results = await asyncio.gather(*waiting, return_exceptions=True)
            cancelled = sum(isinstance(result, asyncio.CancelledError) for result in results)
            assert cancelled <= 1
            for _ in range(admission.calls):
                admission.leave(1)
            assert (admission.calls, admission.byte_size) == (0, 0)
            assert admission.enter(100)

    aio_run(work())


@pytest.mark.server
@pytest.mark.server_may_die
def test_a_clients_limits(aio_run, aio_server, aio_channel):
    """Calls wait their turn, and none is lost; a deadline counts while they wait too."""
    inputs = {"INPUT0": np.ones(3, np.float32), "DELAY": np.array([0.03], np.float32)}
    longer = inputs | {"DELAY": np.array([30], np.float32)}

    async def work():
        settings = {"channel": aio_channel, "timeout": 60, "shared_memory": False}
        async with (
            AsyncClient(aio_server.grpc_url, max_in_flight=3, **settings) as few,
            AsyncClient(aio_server.grpc_url, max_in_flight_bytes=40, **settings) as small,
        ):
            for client, limit in ((few, 3), (small, 2)):
                admission = client._endpoint._admission
                most = 0
                tasks = [asyncio.create_task(client.infer("slow", inputs)) for _ in range(8)]
                while not all(task.done() for task in tasks):
                    await asyncio.sleep(0.001)
                    most = max(most, admission.calls)
                for task in tasks:
                    assert (task.result()["OUTPUT0"] == 1).all()
                assert most == limit
                assert (admission.calls, admission.byte_size) == (0, 0)
            late = [few.infer("slow", longer, timeout=0.3) for _ in range(8)]
            for error in await asyncio.gather(*late, return_exceptions=True):
                assert isinstance(error, DeadlineExceeded)
            assert few._endpoint._admission.calls == 0

    aio_run(work())
