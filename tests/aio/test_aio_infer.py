"""Inference from coroutines: many at a time, cancelled ones, large ones, models and batches."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

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
from triton_fast.client.endpoint import Connection  # noqa: F401 - both faces, in one process
from triton_fast.inference.result import Receiver

pytestmark = pytest.mark.server

ONE = {"INPUT0": np.array([0.5, 3, 1], np.float32)}


@pytest.fixture
def new_client(aio_server, channel):
    """Return what makes clients; over the wire unless told otherwise."""

    def make(**settings) -> AsyncClient:
        settings = {"channel": channel, "timeout": 60, "shared_memory": False, **settings}
        return AsyncClient(aio_server.grpc_url, **settings)

    return make


def slow(seconds: float) -> dict[str, np.ndarray]:
    return {"INPUT0": ONE["INPUT0"], "DELAY": np.array([seconds], np.float32)}


async def counts(client, *, reset=False) -> tuple[int, int]:
    """Return how many requests the models have seen cancelled, and how many they have."""
    found = await client.infer("cancellations", {"RESET": np.array([reset])})
    return found["CANCELLED"].item(), found["RUNNING"].item()


async def until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < end, f"still not so after {seconds} s"
        await asyncio.sleep(0.01)


async def reset(client) -> None:
    async def idle():
        return (await counts(client))[1] == 0

    await until(idle)
    await counts(client, reset=True)


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


# --- many at a time -------------------------------------------------------------------------------


def test_small_and_large_calls_at_the_same_time(run, new_client):
    random.seed(5)
    sizes = [random.choice([1, 16, 1000, 20_000, 150_000, 1_000_000]) for _ in range(150)]

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

    run(work())


def test_a_slow_call_holds_up_no_other(run, new_client):
    async def work():
        async with new_client() as client:
            slow_one = asyncio.create_task(client.infer("slow", slow(1)))
            await asyncio.sleep(0.1)
            began = time.monotonic()
            for _ in range(20):
                await client.infer("identity_fp32", ONE)
            assert time.monotonic() - began < 0.85
            assert not slow_one.done()
            await slow_one

    run(work())


def test_inputs_of_every_kind_that_are_rewritten(run, new_client):
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
        async with new_client(channel="native") as client:
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

    run(work())


def test_an_answer_that_is_copied(run, new_client):
    values = np.random.default_rng(2).normal(size=1_500_000).astype(np.float32)

    async def work():
        async with new_client(channel="native") as client:
            await client.infer("identity_cpp", ONE)
            threads = count_threads()
            out = np.zeros(2 * len(values), np.float32)[::2]
            result = await client.infer("identity_cpp", {"INPUT0": values}, out={"OUTPUT0": out})
            assert result["OUTPUT0"] is out
            np.testing.assert_array_equal(out, values)
            assert threads.given == 1

    run(work())


@pytest.mark.parametrize(("count", "beside"), [(1000, False), (100_000, True)])
def test_many_strings_are_decoded_beside_the_loop(run, new_client, count, beside):
    encoded = Tensor(b"\x02\0\0\0ab" * count, "BYTES", (count,))  # nothing to do but to send it

    async def work():
        async with new_client(channel="native") as client:
            await client.infer("identity_cpp", ONE)
            threads = count_threads()
            result = await client.infer("identity_cpp_bytes", {"INPUT0": encoded})
            assert result["OUTPUT0"].tolist() == [b"ab"] * count
            assert threads.given == beside

    run(work())


def test_a_deadline_that_passes_while_the_answer_is_decoded(run, new_client, monkeypatch):
    count = 100_000
    encoded = Tensor(b"\x02\0\0\0ab" * count, "BYTES", (count,))
    decode = Receiver.result

    def slowly(receiver):
        time.sleep(1.5)
        return decode(receiver)

    async def work():
        async with new_client(channel="native") as client:
            await client.infer("identity_cpp_bytes", {"INPUT0": encoded})
            monkeypatch.setattr(Receiver, "result", slowly)
            with pytest.raises(DeadlineExceeded, match="before the result was made"):
                await client.infer("identity_cpp_bytes", {"INPUT0": encoded}, timeout=1)
            monkeypatch.undo()
            await client.infer("identity_cpp_bytes", {"INPUT0": encoded})

    run(work())


# --- cancellation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["cancel", "timeout", "group", "deadline", "close"])
def test_the_model_sees_a_call_given_up(run, new_client, way):
    async def give_up(client):
        if way == "cancel":
            tasks = [asyncio.create_task(client.infer("slow", slow(30))) for _ in range(3)]
            await asyncio.sleep(0.3)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [asyncio.CancelledError] * 3
            return 3
        if way == "timeout":
            with pytest.raises(TimeoutError) as raised:
                await asyncio.wait_for(client.infer("slow", slow(30)), 0.3)
            assert not isinstance(raised.value, ServerError)
            return 1
        if way == "group":

            async def fails():
                await asyncio.sleep(0.3)
                raise ValueError("one of the group")

            async def all_of_them():
                async with asyncio.TaskGroup() as group:
                    for _ in range(2):
                        group.create_task(client.infer("slow", slow(30)))
                    group.create_task(fails())

            with pytest.raises(ExceptionGroup):
                await all_of_them()
            return 2
        if way == "deadline":
            with pytest.raises(DeadlineExceeded) as raised:
                await client.infer("slow", slow(30), timeout=0.3)
            assert raised.value.call == "ModelInfer('slow')"
            return 1
        tasks = [asyncio.create_task(client.infer("slow", slow(30))) for _ in range(2)]
        await asyncio.sleep(0.3)
        await client.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [ClosedError] * 2
        return 2

    async def work():
        async with new_client() as witness, new_client() as client:
            await reset(witness)
            expected = await give_up(client)

            async def seen():
                return await counts(witness) == (expected, 0)

            await until(seen)
            if way != "close":
                assert (await client.infer("identity_fp32", ONE))["OUTPUT0"].shape == (3,)

    run(work())


def test_cancelling_at_any_moment(run, channel, identity_server):
    """Whatever a call is at, it ends, its memory may go, and the client is as good as before."""
    random.seed(11)

    async def one(client, step):
        values = np.full(random.choice([10, 20_000, 1_000_000]), step, np.float32)
        if step % 4 == 1:
            values = values[::2]
        out = {"OUTPUT0": np.empty_like(values)} if step % 3 == 0 else None
        task = asyncio.create_task(client.infer("identity_cpp", {"INPUT0": values}, out=out))
        for _ in range(step % 9):
            await asyncio.sleep(0)
        if step % 2:
            await asyncio.sleep(random.random() * 0.01)
        task.cancel()
        del values, out
        try:
            await task
        except asyncio.CancelledError:
            return True
        return False

    async def work():
        async with AsyncClient(identity_server.url, channel=channel, shared_memory=False) as client:
            cancelled = 0
            for step in range(120):
                cancelled += await one(client, step)
            assert cancelled > 60
            gc.collect()
            values = np.arange(1000, dtype=np.float32)
            for _ in range(20):
                result = await client.infer("identity_cpp", {"INPUT0": values})
                np.testing.assert_array_equal(result["OUTPUT0"], values)

    run(work())


def test_a_server_that_cancels_is_no_cancelled_task(run, new_client):
    async def work():
        async with new_client() as client:
            tasks = [asyncio.create_task(client.infer("slow", slow(30), timeout=0.4))]
            for task in tasks:
                with pytest.raises(ServerError):
                    await task
                assert not task.cancelled()
            assert not issubclass(Cancelled, asyncio.CancelledError)

    run(work())


# --- errors ---------------------------------------------------------------------------------------


def test_errors_say_what_and_where(run, new_client, aio_server):
    async def work():
        async with new_client() as client:
            with pytest.raises(NotFound, match=r"ModelInfer\('nope'\) at .*: NOT_FOUND") as raised:
                await client.infer("nope", ONE)
            assert raised.value.target == aio_server.grpc_url
            with pytest.raises(InvalidArgument, match="WRONG"):
                await client.infer("identity_fp32", {"WRONG": ONE["INPUT0"]})
            with pytest.raises(InvalidTensor, match="input 'INPUT0': "):
                await client.infer("identity_fp32", {"INPUT0": object()})
            with pytest.raises((Internal, ServerError)):
                await client.infer("failing", ONE)
            assert (await client.infer("identity_fp32", ONE)).model_name == "identity_fp32"

    run(work())


# --- models ---------------------------------------------------------------------------------------


def test_a_model(run, new_client):
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

    run(work())


def test_a_model_is_asked_for_once(run, new_client, monkeypatch):
    """By all who call it first, at the same time; also if the one who asks gives up."""
    asked = []

    async def work():
        async with new_client() as client:
            original = client._connection.exchange

            async def exchange(method, fields, options):
                asked.append(method)
                await asyncio.sleep(0.2)
                return await original(method, fields, options)

            monkeypatch.setattr(client._connection, "exchange", exchange)
            model = client.model("identity_fp32")
            first = asyncio.create_task(model(ONE))
            others = [asyncio.create_task(model(ONE)) for _ in range(20)]
            late = asyncio.create_task(model(ONE, timeout=0.1))
            await asyncio.sleep(0.05)
            first.cancel()
            with pytest.raises(DeadlineExceeded, match="signature"):
                await late
            for result in await asyncio.gather(*others):
                np.testing.assert_array_equal(result["OUTPUT0"], ONE["INPUT0"])
            assert first.cancelled()

    run(work())
    assert sorted(asked) == ["ModelConfig", "ModelMetadata", "ModelMetadata"]


# --- batches --------------------------------------------------------------------------------------


def pair(rows):
    rng = np.random.default_rng(rows)
    return {name: rng.standard_normal((rows, 16), np.float32) for name in ("INPUT0", "INPUT1")}


@pytest.mark.parametrize("rows", [1, 8, 9, 61])  # the model takes 8
def test_any_number_of_rows(run, new_client, rows):
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

    run(work())


def test_a_piece_that_fails_is_named_and_none_is_left_running(run, new_client):
    rows = np.ones((4, 3), np.float32)
    delays = np.array([[0], [-1], [0.3], [0.3]], np.float32)  # the model refuses -1
    out = np.zeros((4, 3), np.float32)

    async def work():
        async with new_client() as client:
            with pytest.raises(InvalidArgument, match=r"piece 1 of 4 \(rows 1 to 1\)") as raised:
                await client.infer(
                    "queued", {"INPUT0": rows, "DELAY": delays}, split=True, out={"OUTPUT0": out}
                )
            assert raised.value.call == "ModelInfer('queued')"
            out[:] = 7
            await asyncio.sleep(0.4)
            assert (out == 7).all()

    run(work())


def test_cancelling_a_split_call_cancels_its_pieces(run, new_client):
    rows = np.ones((6, 3), np.float32)
    delays = np.full((6, 1), 30, np.float32)

    async def work():
        async with new_client() as client:
            await reset(client)
            call = client.infer("queued", {"INPUT0": rows, "DELAY": delays}, split=True)
            task = asyncio.create_task(call)
            await asyncio.sleep(0.4)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

            async def idle():
                return (await counts(client))[1] == 0

            await until(idle)

    run(work())


# --- management -----------------------------------------------------------------------------------


def test_management(run, new_client):
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
            with pytest.raises(InvalidOption, match="a model's name is a str, not 3"):
                await client.model_config(3)
            # From now on calls are held against what was said.
            with pytest.raises(InvalidTensor, match="no input 'WRONG'"):
                await client.infer("identity_mixed", {"WRONG": ONE["INPUT0"]})

    run(work())


def test_health_without_a_server(run, channel):
    async def work():
        async with AsyncClient("127.0.0.1:9", channel=channel, timeout=5) as client:
            assert await client.is_live() is False
            assert await client.is_ready() is False
            assert await client.is_model_ready("m") is False
            assert not await client.health()

    run(work())


def test_the_first_management_call_does_not_hold_up_the_loop(run, new_client, monkeypatch):
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

    run(work())


def test_what_a_server_does_not_have(run, new_client):
    async def work():
        async with new_client() as client:
            with pytest.raises((Unimplemented, ServerError)):
                await client._connection.exchange(
                    "CudaSharedMemoryStatus",
                    {"name": "nope"},
                    await client._connection.options("CudaSharedMemoryStatus"),
                )

    run(work())
