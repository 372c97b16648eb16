"""Inference from coroutines: many at a time, cancelled ones, large ones, models and batches."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import time

import numpy as np
import pytest
from aio_tools import (
    ONE,
    count_threads,
    counts,
    every_pair,
    native_only,
    reset,
    slow,
    until_running,
)
from support.waiting import until_async

from triton_fast import (
    AsyncClient,
    AsyncModel,
    Cancelled,
    ClosedError,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    InvalidOption,
    InvalidTensor,
    NotFound,
    ServerError,
    Tensor,
    Unimplemented,
)
from triton_fast.client.endpoint import Endpoint  # noqa: F401 - both faces, in one process
from triton_fast.inference.result import Receiver

pytestmark = pytest.mark.server


@contextlib.asynccontextmanager
async def begun(client, witness, number, seconds=600.0):
    """Start calls that take long, and wait until the model has them all."""
    await reset(witness)
    tasks = [asyncio.create_task(client.infer("slow", slow(seconds))) for _ in range(number)]
    await until_running(witness, number)
    yield tasks


# --- many at a time -------------------------------------------------------------------------------


def test_small_and_large_calls_at_the_same_time(aio_run, new_client):
    chance = random.Random(5)
    sizes = [chance.choice([1, 16, 1000, 20_000, 150_000, 1_000_000]) for _ in range(150)]

    async def one(client, number, size):
        values = np.full(size, number, np.float32)
        values[-1] = -number
        out = np.empty(size, np.float32) if number % 3 == 0 else None
        result = await client.infer(
            "identity_cpp",
            {"INPUT0": values},
            request_id=str(number),
            out=None if out is None else {"OUTPUT0": out},
        )
        assert result.id == str(number)
        np.testing.assert_array_equal(result["OUTPUT0"], values)
        if out is not None:
            assert result["OUTPUT0"] is out

    async def work():
        async with new_client() as client:
            await asyncio.gather(*(one(client, n, size) for n, size in enumerate(sizes)))

    aio_run(work())


@pytest.mark.server_may_die
def test_a_slow_call_holds_up_no_other(aio_run, new_client):
    async def work():
        async with new_client() as client:
            await reset(client)
            slow_one = asyncio.create_task(client.infer("slow", slow(600)))
            await until_running(client, 1)
            for _ in range(20):
                await client.infer("identity_fp32", ONE)
            assert not slow_one.done()
            slow_one.cancel()
            with pytest.raises(asyncio.CancelledError):
                await slow_one

    aio_run(work())


@native_only
def test_inputs_of_every_kind_that_are_rewritten(aio_run, new_client):
    """On the loop's threads where that takes a while, and not where it does not."""
    big = np.random.default_rng(1).normal(size=(3000, 1000)).astype(np.float32)
    words = [b"x" * 300_000] * 12
    many = [f"{n}" for n in range(60_000)]
    cases = [
        ("identity_cpp", big[:, 0].copy(), False),
        ("identity_cpp", big.reshape(-1), False),
        ("identity_cpp", big.reshape(-1)[::2], True),
        ("identity_cpp", big.reshape(-1).astype(">f4"), True),
        ("identity_cpp", big.reshape(-1)[:1000:2], False),
        ("identity_cpp_bytes", ["a", "b"], False),
        ("identity_cpp_bytes", words, True),
        ("identity_cpp_bytes", many, True),
        ("identity_cpp_bytes", np.array(many), True),
        ("identity_cpp_bytes", np.array(many, object), True),
    ]

    async def work():
        async with new_client() as client:
            await client.infer("identity_cpp", ONE)  # what is looked up at first
            threads = count_threads()
            for model, values, rewritten in cases:
                before = threads.given
                result = await client.infer(model, {"INPUT0": values})
                expected = np.asarray(values).reshape(-1)
                if expected.dtype.kind in "USO":
                    expected = [v.encode() if isinstance(v, str) else v for v in expected.tolist()]
                np.testing.assert_array_equal(result["OUTPUT0"], expected)
                assert (threads.given > before) is rewritten, (model, type(values), len(values))

    aio_run(work())


@native_only
def test_an_answer_that_is_copied(aio_run, new_client):
    values = np.random.default_rng(2).normal(size=1_500_000).astype(np.float32)

    async def work():
        async with new_client() as client:
            await client.infer("identity_cpp", ONE)
            threads = count_threads()
            out = np.zeros(2 * len(values), np.float32)[::2]
            result = await client.infer("identity_cpp", {"INPUT0": values}, out={"OUTPUT0": out})
            assert result["OUTPUT0"] is out
            np.testing.assert_array_equal(out, values)
            assert threads.given == 1

    aio_run(work())


@native_only
@pytest.mark.parametrize(("count", "beside"), [(1000, False), (100_000, True)])
def test_many_strings_are_decoded_beside_the_loop(aio_run, new_client, count, beside):
    encoded = Tensor(b"\x02\0\0\0ab" * count, "BYTES", (count,))  # nothing to do but to send it

    async def work():
        async with new_client() as client:
            await client.infer("identity_cpp", ONE)
            threads = count_threads()
            result = await client.infer("identity_cpp_bytes", {"INPUT0": encoded})
            assert result["OUTPUT0"].tolist() == [b"ab"] * count
            assert threads.given == beside

    aio_run(work())


@native_only
def test_a_deadline_that_passes_while_the_answer_is_decoded(aio_run, new_client, monkeypatch):
    count = 100_000
    encoded = Tensor(b"\x02\0\0\0ab" * count, "BYTES", (count,))
    decode = Receiver.result
    passed = 0.0

    def slowly(receiver):
        time.sleep(max(0.0, passed - time.monotonic()))
        return decode(receiver)

    async def work():
        nonlocal passed
        async with new_client() as client:
            await client.infer("identity_cpp_bytes", {"INPUT0": encoded})
            monkeypatch.setattr(Receiver, "result", slowly)
            # The answer itself must be here within the deadline.
            passed = time.monotonic() + 2.3
            with pytest.raises(DeadlineExceeded, match="before the result was made"):
                await client.infer("identity_cpp_bytes", {"INPUT0": encoded}, timeout=2)
            monkeypatch.undo()
            await client.infer("identity_cpp_bytes", {"INPUT0": encoded})

    aio_run(work())


# --- cancellation ---------------------------------------------------------------------------------


async def give_up_by_cancelling(client, witness):
    async with begun(client, witness, 3) as tasks:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 3


async def give_up_by_timeout(client, witness):
    async def wait():
        async with asyncio.timeout(None) as limit, begun(client, witness, 1) as tasks:
            limit.reschedule(asyncio.get_running_loop().time())
            await tasks[0]

    with pytest.raises(TimeoutError) as raised:
        await wait()
    assert not isinstance(raised.value, ServerError)


async def give_up_by_group(client, witness):
    async def all_of_them():
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(client.infer("slow", slow(600)))
            await until_running(witness, 2)
            raise ValueError("one of the group")

    await reset(witness)
    with pytest.raises(ExceptionGroup):
        await all_of_them()


async def give_up_by_deadline(client, witness):
    await reset(witness)
    # The model must have it by then.
    with pytest.raises(DeadlineExceeded) as raised:
        await client.infer("slow", slow(600), timeout=2)
    assert raised.value.call == "ModelInfer('slow')"


async def give_up_by_closing(client, witness):
    async with begun(client, witness, 2) as tasks:
        await client.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [ClosedError] * 2


@pytest.mark.server_may_die
@pytest.mark.parametrize(
    ("give_up", "number"),
    [
        pytest.param(give_up_by_cancelling, 3, id="cancel"),
        pytest.param(give_up_by_timeout, 1, id="timeout"),
        pytest.param(give_up_by_group, 2, id="group"),
        pytest.param(give_up_by_deadline, 1, id="deadline"),
        pytest.param(give_up_by_closing, 2, id="close"),
    ],
)
def test_the_model_sees_a_call_given_up(aio_run, new_client, give_up, number):
    async def work():
        async with new_client() as witness, new_client() as client:
            await give_up(client, witness)

            async def seen():
                return await counts(witness) == (number, 0)

            await until_async(seen)
            if give_up is not give_up_by_closing:
                assert (await client.infer("identity_fp32", ONE))["OUTPUT0"].shape == (3,)

    aio_run(work())


@every_pair
def test_cancelling_at_any_moment(aio_run, aio_channel, identity_server):
    """Whatever a call is at, it ends, its memory may go, and the client is as good as before."""
    chance = random.Random(11)

    async def one(client, step):
        values = np.full(chance.choice([10, 20_000, 1_000_000]), step, np.float32)
        if step % 4 == 1:
            values = values[::2]
        out = {"OUTPUT0": np.empty_like(values)} if step % 3 == 0 else None
        task = asyncio.create_task(client.infer("identity_cpp", {"INPUT0": values}, out=out))
        for _ in range(step % 9):
            await asyncio.sleep(0)
        if step % 2:
            await asyncio.sleep(chance.random() * 0.01)
        task.cancel()
        del values, out
        try:
            await task
        except asyncio.CancelledError:
            return True
        return False

    async def work():
        async with AsyncClient(
            identity_server.url, channel=aio_channel, shared_memory=False
        ) as client:
            cancelled = 0
            for step in range(120):
                cancelled += await one(client, step)
            assert cancelled  # how many is up to the machine
            gc.collect()
            values = np.arange(1000, dtype=np.float32)
            for _ in range(20):
                result = await client.infer("identity_cpp", {"INPUT0": values})
                np.testing.assert_array_equal(result["OUTPUT0"], values)

    aio_run(work())


def test_a_server_that_cancels_is_no_cancelled_task(aio_run, aio_channel, identity_server):
    async def work():
        async with AsyncClient(
            identity_server.url, channel=aio_channel, shared_memory=False
        ) as client:
            task = asyncio.create_task(client.infer("gone", ONE))
            with pytest.raises(Cancelled) as raised:
                await task
            assert not task.cancelled()
            assert not isinstance(raised.value, asyncio.CancelledError)

    aio_run(work())


# --- errors ---------------------------------------------------------------------------------------


def test_errors_say_what_and_where(aio_run, new_client, aio_server):
    async def work():
        async with new_client() as client:
            with pytest.raises(NotFound, match=r"ModelInfer\('nope'\) at .*: NOT_FOUND") as raised:
                await client.infer("nope", ONE)
            assert raised.value.target == aio_server.grpc_url
            with pytest.raises(InvalidTensor, match="no input 'WRONG'"):
                await client.infer("identity_fp32", {"WRONG": ONE["INPUT0"]})
            with pytest.raises(InvalidTensor, match="input 'INPUT0': "):
                await client.infer("identity_fp32", {"INPUT0": object()})
            with pytest.raises(Internal, match="on purpose"):
                await client.infer("failing", {"FAIL_MESSAGE": ["on purpose"]})
            assert (await client.infer("identity_fp32", ONE)).model_name == "identity_fp32"

    aio_run(work())


# --- models ---------------------------------------------------------------------------------------


def test_a_model(aio_run, new_client):
    left = np.ones((2, 16), np.float32)

    async def work():
        async with new_client() as client:
            model = client.model("add_sub", outputs=["OUTPUT0"])
            assert isinstance(model, AsyncModel)
            assert (model.name, model.version) == ("add_sub", "")
            assert "add_sub" in repr(model)
            signature = await model.signature()
            assert signature.max_batch_size == 8
            for result in (
                await model({"INPUT0": left, "INPUT1": left}),
                await model(INPUT0=left, INPUT1=left),
                await model({"INPUT0": left}, INPUT1=left, request_id="1"),
            ):
                assert list(result) == ["OUTPUT0"]
                assert (result["OUTPUT0"] == 2).all()
            with pytest.raises(InvalidOption, match="input 'INPUT0' was given twice"):
                await model({"INPUT0": left}, INPUT0=left)
            for inputs, message in (
                ({"INPUT0": left}, "also takes 'INPUT1'"),
                ({"INPUT0": left, "INPUT2": left}, "no input 'INPUT2'"),
                ({"INPUT0": left, "INPUT1": left.astype(np.float64)}, "is FP32, and .* FP64"),
            ):
                with pytest.raises(InvalidTensor, match=message):
                    await model(inputs)
            result = await model(
                INPUT0=np.ones((30, 16)).astype(np.float32),
                split=True,
                INPUT1=np.ones((30, 16)).astype(np.float32),
            )
            assert result["OUTPUT0"].shape == (30, 16)
            with pytest.raises(NotFound):
                await client.model("nope")(x=left)

    aio_run(work())


def test_a_model_is_asked_for_once(aio_run, new_client, monkeypatch):
    """By all who call it first, at the same time; also if the one who asks gives up."""
    asked = []

    async def work():
        async with new_client() as client:
            original = client._endpoint.exchange

            told = asyncio.Event()

            async def exchange(method, fields, options):
                asked.append(method)
                await told.wait()
                return await original(method, fields, options)

            monkeypatch.setattr(client._endpoint, "exchange", exchange)
            model = client.model("identity_fp32")
            first = asyncio.create_task(model(ONE))
            others = [asyncio.create_task(model(ONE)) for _ in range(20)]
            late = asyncio.create_task(model(ONE, timeout=0.1))
            while not asked:
                await asyncio.sleep(0)
            first.cancel()
            with pytest.raises(DeadlineExceeded, match="signature"):
                await late
            told.set()
            for result in await asyncio.gather(*others):
                np.testing.assert_array_equal(result["OUTPUT0"], ONE["INPUT0"])
            assert first.cancelled()

    aio_run(work())
    assert sorted(asked) == ["ModelConfig", "ModelMetadata", "ModelMetadata"]


# --- batches --------------------------------------------------------------------------------------


def pair(rows):
    rng = np.random.default_rng(rows)
    return {name: rng.standard_normal((rows, 16), np.float32) for name in ("INPUT0", "INPUT1")}


@pytest.mark.parametrize("rows", [1, 8, 9, 61])  # the model takes 8
def test_any_number_of_rows(aio_run, new_client, rows):
    inputs = pair(rows)

    async def work():
        async with new_client() as client:
            result = await client.infer("add_sub", inputs, split=True, request_id="whole")
            np.testing.assert_array_equal(result["OUTPUT0"], inputs["INPUT0"] + inputs["INPUT1"])
            np.testing.assert_array_equal(result["OUTPUT1"], inputs["INPUT0"] - inputs["INPUT1"])
            assert (result.model_name, result.id) == ("add_sub", "whole")
            samples = {name: list(batch) for name, batch in inputs.items()}
            again = await client.infer("add_sub", samples, split=True)
            np.testing.assert_array_equal(again["OUTPUT0"], result["OUTPUT0"])

    aio_run(work())


@pytest.mark.server_may_die
def test_a_piece_that_fails_is_named_and_none_is_left_running(aio_run, new_client):
    rows = np.ones((4, 3), np.float32)
    delays = np.array([[0], [-1], [0.3], [-1]], np.float32)  # the model refuses -1
    out = np.zeros((4, 3), np.float32)

    async def work():
        async with new_client() as client:
            await reset(client)
            with pytest.raises(InvalidArgument, match=r"piece 1 of 4 \(rows 1 to 1\)") as raised:
                await client.infer(
                    "queued", {"INPUT0": rows, "DELAY": delays}, split=True, out={"OUTPUT0": out}
                )
            assert raised.value.call == "ModelInfer('queued')"
            out[:] = 7
            # If one went on, its answer would come after the model had made it.
            await until_running(client, 0)
            for _ in range(5):
                await client.infer("queued", {"INPUT0": rows[:1], "DELAY": delays[:1]})
            assert (out == 7).all()

    aio_run(work())


@pytest.mark.server_may_die
@pytest.mark.parametrize(
    "delays",
    [
        pytest.param([600, 600, 600, 600, 600, 600], id="first"),
        pytest.param([0, 600, 600, 600, 600, 600], id="others"),
        pytest.param([0, -1, 600, 600, 600, 600], id="one_failed"),
    ],
)
def test_cancelling_a_split_call_cancels_its_pieces(aio_run, new_client, delays, monkeypatch):
    """While it waits for the first, which says what the outputs are like, or for the others."""
    rows = np.ones((6, 3), np.float32)
    inputs = {"INPUT0": rows, "DELAY": np.array(delays, np.float32).reshape(6, 1)}

    async def work():
        async with new_client() as client:
            await reset(client)
            failed = asyncio.Event()
            infer = client._endpoint.infer

            async def one_fails_first(prepared, piece, *more):
                # The model takes them one by one, in any order.
                if -1 in delays and piece.get("DELAY", 0) > 0:
                    await failed.wait()
                try:
                    return await infer(prepared, piece, *more)
                except InvalidArgument:
                    failed.set()
                    raise

            monkeypatch.setattr(client._endpoint, "infer", one_fails_first)
            task = asyncio.create_task(client.infer("queued", inputs, split=True))
            await until_running(client, 1)
            admission = client._endpoint._admission
            # One runs, and others may be in the model's queue.
            while admission.calls != {600: 1, 0: 4 - delays.count(-1)}[delays[0]]:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            monkeypatch.undo()
            await until_running(client, 0)
            # Nor does one go on that waited for it: it would hold these up.
            for _ in range(6):
                await client.infer("queued", {"INPUT0": rows[:1], "DELAY": np.zeros((1, 1), "f4")})
            assert (await counts(client))[1] == 0

    aio_run(work())


# --- management -----------------------------------------------------------------------------------


def test_management(aio_run, new_client):
    async def work():
        async with new_client() as client:
            assert await client.is_live() is True
            assert await client.is_ready() is True
            assert await client.is_model_ready("add_sub") is True
            assert await client.is_model_ready("no such model") is False
            assert (await client.server_metadata()).name == "triton"
            metadata = await client.model_metadata("identity_mixed")
            assert [tensor.name for tensor in metadata.inputs] == ["INPUT0", "INPUT1", "INPUT2"]
            assert (await client.model_config("add_sub")).max_batch_size == 8
            with pytest.raises(NotFound, match="nope"):
                await client.model_metadata("nope")
            with pytest.raises(InvalidOption, match="a model's name must be a str, got 3"):
                await client.model_config(3)
            # From now on calls are held against what was said.
            with pytest.raises(InvalidTensor, match="no input 'WRONG'"):
                await client.infer("identity_mixed", {"WRONG": ONE["INPUT0"]})

    aio_run(work())


def test_health_without_a_server(aio_run, aio_channel):
    async def work():
        async with AsyncClient("127.0.0.1:9", channel=aio_channel, timeout=5) as client:
            assert await client.is_live() is False
            assert await client.is_ready() is False
            assert await client.is_model_ready("m") is False
            assert not await client.health()

    aio_run(work())


def test_the_first_management_call_does_not_hold_up_the_loop(aio_run, new_client, monkeypatch):
    """protobuf and the messages are loaded beside it."""
    from triton_fast.protocol import messages

    monkeypatch.setattr(messages, "_loaded", {})

    async def work():
        async with new_client() as client:
            await client.infer("identity_fp32", ONE)
            threads = count_threads()
            assert await client.is_live()
            assert threads.given == 1
            assert await client.is_live()
            assert threads.given == 1

    aio_run(work())


def test_what_a_server_does_not_have(aio_run, new_client):
    async def work():
        async with new_client() as client:
            with pytest.raises((Unimplemented, ServerError)):
                await client._endpoint.exchange(
                    "CudaSharedMemoryStatus",
                    {"name": "nope"},
                    await client._endpoint.options("CudaSharedMemoryStatus"),
                )

    aio_run(work())
