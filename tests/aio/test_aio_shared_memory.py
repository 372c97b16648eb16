"""Shared memory from coroutines: who writes where, what waits, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
import pytest
from aio_tools import count_threads, every_pair, reset, until_running
from support.process import segments
from support.sharing import BIG, array, figures, in_slot, pool

from triton_fast import (
    AlreadyExists,
    AsyncClient,
    ClosedError,
    DeadlineExceeded,
    Internal,
    InvalidOption,
    InvalidTensor,
    ResourceExhausted,
    SharedMemoryRegion,
)

pytestmark = pytest.mark.server

MIB = 1 << 20


@pytest.fixture
def open_client(aio_server, aio_channel):
    """Return what opens clients; when they are closed, nothing of theirs is left."""

    @contextlib.asynccontextmanager
    async def open_client(**settings):
        settings = {"channel": aio_channel, "shared_memory": True, "timeout": 60, **settings}
        client = AsyncClient(aio_server.grpc_url, **settings)
        try:
            yield client
        finally:
            await client.close()
        assert not segments()
        async with AsyncClient(aio_server.grpc_url, shared_memory=False) as witness:
            assert not await witness.shared_memory.registered()

    return open_client


async def forgotten(client):
    """Have the server let go of all regions, as soon as it has no call at them any more."""
    async with asyncio.timeout(60):
        for name in await client.shared_memory.registered():
            while True:
                try:
                    await client.shared_memory.unregister(name)
                except Internal as error:
                    assert "in use" in str(error)  # noqa: PT017 - what else it says is a fault
                else:
                    break


async def echo(client, data, **options):
    result = await client.infer("identity_cpp", {"INPUT0": data}, **options)
    return result["OUTPUT0"]


def test_inputs_and_outputs_go_through_slots(aio_run, open_client, placements):
    async def work():
        async with open_client() as client:
            for seed in range(5):
                data = array(seed)
                answer = await echo(client, data)
                np.testing.assert_array_equal(answer, data)
                assert answer.flags.writeable
                # The first answer says how large the next ones will be.
                assert in_slot(client, answer) == (seed > 0)
            del answer

    aio_run(work())
    assert [len(placement.slots) for placement in placements] == [1, 2, 2, 2, 2]


def test_only_what_takes_long_leaves_the_loop(aio_run, open_client):
    async def work():
        async with open_client() as client:
            threads = count_threads()
            await echo(client, array(0))
            assert threads.given == 1  # the region was registered
            for seed in range(5):
                await echo(client, array(seed))
            assert threads.given == 1
            large = array(1, 5 * MIB // 4)
            np.testing.assert_array_equal(await echo(client, large), large)
            assert threads.given == 2  # that was copied
            mine = await client.empty(5 * MIB // 4, np.float32)
            assert in_slot(client, mine)
            mine[:] = large
            before = threads.given
            np.testing.assert_array_equal(await echo(client, mine), large)
            assert threads.given == before
            del mine

    aio_run(work())


@every_pair
def test_many_at_a_time(aio_run, open_client):
    async def one(client, seed):
        data = array(seed, 1000 * (1 + seed % 7) ** 3)
        np.testing.assert_array_equal(await echo(client, data), data)

    async def work():
        async with open_client() as client:
            await asyncio.gather(*(one(client, seed) for seed in range(60)))
            await asyncio.gather(*(one(client, seed) for seed in range(60)))
            assert figures(client)["leased"] == 0

    aio_run(work())


def test_arrays_of_the_callers_in_shared_memory(aio_run, open_client, placements):
    async def work():
        async with open_client() as client:
            sent = await client.empty((BIG,), np.float32)
            received = await client.empty(BIG, "f4")
            assert in_slot(client, sent)
            assert in_slot(client, received)
            for seed in range(3):
                sent[:] = array(seed)
                answer = await echo(client, sent, out={"OUTPUT0": received})
                assert answer is received
                np.testing.assert_array_equal(received, sent)
            with pytest.raises(InvalidTensor):
                await client.empty(3, object)
            with pytest.raises(InvalidTensor):
                await client.empty((-1,), "f4")
            del sent, received, answer

    aio_run(work())
    assert [len(placement.slots) for placement in placements] == [1, 2, 2]


def test_split_through_slots(aio_run, open_client):
    rows = np.random.default_rng(4).normal(size=(20, 16)).astype(np.float32)

    async def work():
        async with open_client() as client:
            for batch in (rows, list(rows)):
                result = await client.infer(
                    "add_sub", {"INPUT0": batch, "INPUT1": batch}, split=True
                )
                np.testing.assert_array_equal(result["OUTPUT0"], rows + rows)
            del result

    aio_run(work())


@pytest.mark.server_may_die
@pytest.mark.parametrize("way", ["cancel", "deadline"])
def test_slots_of_a_call_that_was_given_up_are_not_leased_again(aio_run, open_client, way):
    """The server may write to them when nobody waits any more."""
    late = {"INPUT0": array(99), "LATE": np.array([0], np.float32)}

    async def work():
        async with open_client() as client:

            async def done():
                options = await client._endpoint.options("ModelStatistics")
                told = await client._endpoint.exchange("ModelStatistics", {"name": "late"}, options)
                counts = told.model_stats[0].inference_stats
                return counts.success.count + counts.fail.count

            await client.infer("late", late)  # which tells how large its output is
            before = await done()
            # This model does not look whether anybody waits, and writes when its time has come.
            late["LATE"] = np.array([4], np.float32)
            if way == "cancel":
                task = asyncio.create_task(client.infer("late", late))
                while pool(client)._arenas.figures()["leased"] != 2:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)  # in which the server begins
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                with pytest.raises(DeadlineExceeded):
                    await client.infer("late", late, timeout=0.5)
            assert figures(client)["quarantined"] == 2
            kept = [await echo(client, array(seed)) for seed in range(8)]
            async with asyncio.timeout(60):
                while await done() == before:
                    await asyncio.sleep(0.05)
            await forgotten(client)  # a moment after it has counted the call
            for seed, answer in enumerate(kept):
                np.testing.assert_array_equal(answer, array(seed))
            del kept, answer

    aio_run(work())


def test_cancelling_while_a_region_is_registered(aio_run, open_client):
    async def work():
        async with open_client() as client:
            for turns in range(12):
                task = asyncio.create_task(client.empty(BIG * (turns + 1), np.float32))
                for _ in range(turns):
                    await asyncio.sleep(0.0003)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                del task
            np.testing.assert_array_equal(await echo(client, array(2)), array(2))
            async with asyncio.timeout(30):  # a thread may still be at one
                while figures(client)["leased"]:
                    await asyncio.sleep(0.01)

    aio_run(work())


def test_calls_wait_for_slots_where_there_must_be_some(aio_run, open_client):
    """Without a thread each, and whoever gives up leaves nothing."""

    async def one(client, seed):
        np.testing.assert_array_equal(await echo(client, array(seed)), array(seed))

    async def work():
        async with open_client(shared_memory_limit=4 * MIB) as client:
            await one(client, 0)  # from now on a call takes a slot for the answer too
            held = [await client.empty(BIG, np.float32) for _ in range(3)]
            waiting = [asyncio.create_task(one(client, seed)) for seed in range(20)]
            empty = asyncio.create_task(client.empty(2 * BIG, np.float32))
            late = asyncio.create_task(client.empty(2 * BIG, np.float32))
            # They wait: one that comes after them does so in vain.
            with pytest.raises(DeadlineExceeded, match="no shared memory came free"):
                await client.infer("identity_cpp", {"INPUT0": array(1)}, timeout=1)
            late.cancel()
            with pytest.raises(asyncio.CancelledError):
                await late
            with pytest.raises(ResourceExhausted, match="shared_memory_limit"):
                await client.infer("identity_cpp", {"INPUT0": array(1, 5 * BIG)})
            # A thread that waits for all of them is not one for each.
            await asyncio.wait_for(asyncio.to_thread(int), 20)
            held.clear()
            await asyncio.gather(*waiting)
            array_of_two = await empty
            assert in_slot(client, array_of_two)
            del array_of_two, empty

    aio_run(work())


def test_a_loop_ends_while_calls_wait_for_slots(aio_server, aio_channel):
    """No thread keeps it that waits for what will never come."""

    async def work():
        client = AsyncClient(
            aio_server.grpc_url,
            channel=aio_channel,
            shared_memory=True,
            shared_memory_limit=2 * MIB,
        )
        held = [await client.empty(BIG, np.float32) for _ in range(2)]
        tasks = [asyncio.create_task(client.empty(BIG, np.float32)) for _ in range(3)]
        while not client._endpoint._shared._waiting:  # for those that wait, on a thread
            await asyncio.sleep(0)
        return client, held, tasks

    # If a thread kept it, this would never come back.
    client, held, _ = asyncio.run(work())
    assert len(held) == 2

    async def again():
        with pytest.raises(DeadlineExceeded, match="no shared memory came free"):
            await client.infer("identity_cpp", {"INPUT0": array(1)}, timeout=1)
        held.clear()
        np.testing.assert_array_equal(await echo(client, array(1)), array(1))
        await client.close()

    asyncio.run(again())


def test_where_it_is_not_required_the_wire_is_used(aio_run, open_client):
    async def work():
        async with open_client(shared_memory="auto", shared_memory_limit=2 * MIB) as client:
            kept = []
            for seed in range(6):
                kept.append(await echo(client, array(seed)))
                np.testing.assert_array_equal(kept[-1], array(seed))
            assert not in_slot(client, kept[-1])
            assert not in_slot(client, await client.empty(2 * BIG, np.float32))
            kept.clear()

    aio_run(work())


@pytest.mark.server_may_die
def test_closing(aio_run, open_client, aio_server):
    """Also while calls are running and waiting; arrays stay as they are."""

    async def work():
        delay = np.array([600], np.float32)
        async with (
            open_client() as client,
            AsyncClient(aio_server.grpc_url, shared_memory=False) as witness,
        ):
            await reset(witness)
            await client.infer("slow", {"INPUT0": array(1), "DELAY": np.zeros(1, np.float32)})
            data = array(1)
            mine = await client.empty(BIG, np.float32)
            mine[:] = data
            answer = await echo(client, mine)
            answer = await echo(client, mine)
            assert in_slot(client, answer)
            calls = [
                asyncio.create_task(client.infer("slow", {"INPUT0": data, "DELAY": delay}))
                for _ in range(3)
            ]
            await until_running(witness, 3)
            await client.close()
            for call in calls:
                with pytest.raises(ClosedError):
                    await call
            np.testing.assert_array_equal(mine, data)
            np.testing.assert_array_equal(answer, data)
            with pytest.raises(ClosedError):
                await client.empty(3, np.float32)

    aio_run(work())


def test_a_hook_is_asked_for_the_headers_of_closing(aio_run, open_client):
    called = []

    async def hook(call):
        await asyncio.sleep(0)
        called.append(call)
        return {"x-token": "1"}

    async def work():
        async with open_client(header_hook=hook) as client:
            await echo(client, array(1))

    aio_run(work())
    assert called == ["ModelInfer('identity_cpp')", "close"]


def test_a_hook_that_fails_at_the_end(aio_run, aio_server, aio_channel):
    """The error is told, and all is given back nevertheless."""

    def hook(call):
        if call == "close":
            raise ValueError("no token")

    async def work():
        client = AsyncClient(
            aio_server.grpc_url, channel=aio_channel, shared_memory=True, header_hook=hook
        )
        await echo(client, array(1))
        with pytest.raises(ValueError, match="no token"):
            await client.close()
        async with AsyncClient(aio_server.grpc_url, shared_memory=False) as witness:
            assert not await witness.shared_memory.registered()

    aio_run(work())


def test_one_loop_after_the_other(aio_server, aio_channel):
    client = AsyncClient(aio_server.grpc_url, channel=aio_channel, shared_memory=True)
    for seed in range(3):
        answer = asyncio.run(echo(client, array(seed)))
        np.testing.assert_array_equal(answer, array(seed))
    asyncio.run(client.close())


# --- by hand --------------------------------------------------------------------------------------


def test_regions_by_hand(aio_run, open_client):
    async def work():
        async with open_client(shared_memory=False) as client:
            with SharedMemoryRegion.create(2 * 4 * BIG) as region:
                await region.register(client)
                with pytest.raises(AlreadyExists):
                    await region.register(client)
                [known] = (await client.shared_memory.registered()).values()
                assert (known.name, known.byte_size) == (region.name, region.byte_size)
                assert await client.shared_memory.stale() == []
                data = array(7)
                region.array((BIG,), np.float32)[:] = data
                result = await client.infer(
                    "identity_cpp",
                    {"INPUT0": region.tensor((BIG,), np.float32)},
                    outputs=[region.output("OUTPUT0", 4 * BIG, 4 * BIG)],
                )
                assert result.shared_memory["OUTPUT0"].shape == (BIG,)
                np.testing.assert_array_equal(region.array((BIG,), np.float32, 4 * BIG), data)
                await region.unregister(client)
                assert await client.shared_memory.registered() == {}
                await client.shared_memory.unregister("nobody knows it")
                for name in ("register", "unregister"):
                    arguments = ("", "/key", 1) if name == "register" else ("",)
                    with pytest.raises(InvalidOption, match="name must be a str that is not empty"):
                        await getattr(client.shared_memory, name)(*arguments)

    aio_run(work())


@every_pair
def test_a_first_call_that_is_cancelled_leaves_nothing(aio_run, open_client):
    """Wherever its region was on its way."""

    async def work():
        for delay in (0, 0.001, 0.003, 0.01, 0.02):
            async with open_client() as client:
                task = asyncio.ensure_future(client.infer("identity_cpp", {"INPUT0": BIG}))
                await asyncio.sleep(delay)
                task.cancel()
                await asyncio.wait((task,))

    aio_run(work())
