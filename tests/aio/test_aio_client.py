"""An AsyncClient's life: loops, closing, headers, forks, and the limits of what is in flight."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import numpy as np
import pytest
from aio_tools import ONE, every_pair, native_only, reset, until_running
from support import interpreter
from support.event_loops import new_loop
from support.process import segments

from triton_fast import (
    AsyncClient,
    ClosedError,
    DeadlineExceeded,
    InvalidOption,
    LoopError,
    TritonFastError,
)

pytestmark = pytest.mark.server


async def echo(client, **options):
    return (await client.infer("identity_fp32", ONE, **options))["OUTPUT0"].tolist()


# --- loops ----------------------------------------------------------------------------------------


@every_pair
def test_made_without_a_loop_and_used_in_one_after_the_other(aio_run, new_client):
    client = new_client()
    for _ in range(3):
        assert aio_run(echo(client)) == [0.5, 3, 1]
    aio_run(client.close())
    assert "closed" in repr(client)


def test_a_second_loop_beside_the_first(aio_run, new_client):
    client = new_client(max_in_flight=1)
    raised = []

    def elsewhere():
        model = client.model("identity_fp32")
        for what in (
            lambda: echo(client),
            client.is_live,
            lambda: client.empty(3, np.float32),
            lambda: model(ONE),
            client.close,
        ):
            try:
                asyncio.run(what())
            except TritonFastError as error:
                raised.append(error)

    async def work():
        await echo(client)
        # The limit is reached: whoever comes from elsewhere must not wait for it.
        admission = client._endpoint._admission
        assert admission.enter(1)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.01)
        admission.leave(1)
        assert [type(error) for error in raised] == [LoopError] * 5
        assert "belongs to another event loop" in str(raised[0])
        assert await echo(client) == [0.5, 3, 1]
        await client.close()

    aio_run(work())


@every_pair
def test_loops_that_are_never_closed(loop_and_channel, new_client):
    """As in a program that makes one for each `run_until_complete`."""
    client = new_client()
    model = client.model("identity_fp32")
    large = {"INPUT0": np.ones(1 << 18, np.float32)}
    loops = [new_loop(loop_and_channel[0]) for _ in range(3)]

    async def work():
        assert await echo(client) == [0.5, 3, 1]
        assert (await model(ONE))["OUTPUT0"].tolist() == [0.5, 3, 1]
        assert (await client.infer("identity_fp32", large))["OUTPUT0"].sum() == 1 << 18
        assert len([answer async for answer in client.stream("identity_fp32", ONE)]) == 1

    try:
        for loop in [*loops, *loops]:
            loop.run_until_complete(work())
        loops[0].run_until_complete(client.close())
    finally:
        for loop in loops:
            loop.close()


@pytest.mark.server_may_die
@every_pair
def test_calls_that_a_loop_has_left_that_runs_again(loop_and_channel, aio_server, new_client):
    client = new_client(max_in_flight=2)
    delay = np.array([20], np.float32)
    left, other = (new_loop(loop_and_channel[0]) for _ in range(2))
    tasks = []

    async def leave():
        async with AsyncClient(aio_server.grpc_url) as witness:
            await reset(witness)  # or what others have left would count
            for _ in range(2):
                call = client.infer("slow", {**ONE, "DELAY": delay})
                tasks.append(asyncio.ensure_future(call))
            await until_running(witness, 2)

    async def their_ends():
        return await asyncio.gather(*tasks, return_exceptions=True)

    try:
        left.run_until_complete(leave())
        assert other.run_until_complete(echo(client)) == [0.5, 3, 1]
        ends = left.run_until_complete(asyncio.wait_for(their_ends(), 10))
        assert [isinstance(end, TritonFastError) for end in ends] == [True] * 2, ends
        assert left.run_until_complete(echo(client)) == [0.5, 3, 1]
        left.run_until_complete(client.close())
    finally:
        left.close()
        other.close()


@native_only  # grpcio's own tasks would be left in the first loop
def test_a_stream_stays_in_its_loop(aio_run, new_client):
    client = new_client()
    streams = []

    async def begin():
        streams.append(client.open_stream())
        await streams[0].send("identity_fp32", ONE)
        assert (await streams[0].receive())["OUTPUT0"].tolist() == [0.5, 3, 1]

    async def go_on():
        with pytest.raises(LoopError, match="the stream belongs to another event loop"):
            await streams[0].send("identity_fp32", ONE)
        with pytest.raises(LoopError, match="the stream belongs to another event loop"):
            await streams[0].receive()
        await streams[0].aclose()
        assert await echo(client) == [0.5, 3, 1]
        await client.close()

    aio_run(begin())
    aio_run(go_on())


@pytest.mark.server_may_die
@native_only
def test_closing_what_a_closed_loop_has_left(loop_and_channel, aio_run, aio_server, new_client):
    client = new_client()
    tasks = []

    async def leave():
        async with AsyncClient(aio_server.grpc_url) as witness:
            await reset(witness)
            call = client.infer("slow", {**ONE, "DELAY": np.array([3], np.float32)})
            tasks.append(asyncio.ensure_future(call))
            await until_running(witness, 1)

    with contextlib.closing(new_loop(loop_and_channel[0])) as loop:
        loop.run_until_complete(leave())
        tasks[0]._log_destroy_pending = False  # that is the point here
    aio_run(client.close())


def test_without_a_loop(new_client):
    coroutine = echo(new_client())
    with pytest.raises(LoopError, match="without a running event loop"):
        coroutine.send(None)


@pytest.mark.server_may_die
@pytest.mark.parametrize(
    "loop_and_channel",  # grpcio complains of such calls in the loop that comes next
    [("asyncio", "native"), ("uvloop", "native")],
    ids=["asyncio", "uvloop"],
    indirect=True,
)
@pytest.mark.native
def test_calls_that_a_closed_loop_has_left_do_not_count(aio_run, aio_server):
    client = AsyncClient(aio_server.grpc_url, max_in_flight=2, channel="native")
    delay = np.array([3], np.float32)  # the server is at them as long, for nobody

    async def leave():
        async with AsyncClient(aio_server.grpc_url) as witness:
            await reset(witness)
            calls = [client.infer("slow", {**ONE, "DELAY": delay}) for _ in range(2)]
            tasks.extend(map(asyncio.ensure_future, calls))
            await until_running(witness, 2)

    tasks = []
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(leave())
        for task in tasks:
            task._log_destroy_pending = False  # that is the point here
    assert aio_run(echo(client, timeout=20)) == [0.5, 3, 1]
    aio_run(client.close())
    for task in tasks:
        task.get_coro().close()


# --- closing --------------------------------------------------------------------------------------


def test_a_closed_client_refuses_calls(aio_run, new_client):
    async def work(used):
        client = new_client()
        model = client.model("identity_fp32")
        if used:
            await echo(client)
        await client.close()
        await client.close()
        for call in (
            echo(client),
            model(ONE),
            client.is_live(),
            client.empty(3, np.float32),
            client.shared_memory.registered(),
            client.infer("add_sub", {}, split=True),
        ):
            with pytest.raises(ClosedError, match=client.url):
                await call

    aio_run(work(False))
    aio_run(work(True))


@pytest.mark.server_may_die
def test_closing_lets_nobody_wait(aio_run, new_client):
    """Neither those that run, nor those that wait to be let in."""
    delay = np.array([600], np.float32)

    async def work():
        async with new_client() as witness:
            await reset(witness)
            client = new_client(max_in_flight=2)
            tasks = [
                asyncio.create_task(client.infer("slow", {**ONE, "DELAY": delay})) for _ in range(5)
            ]
            await until_running(witness, 2)
            await client.close()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(result) for result in results] == [ClosedError] * 5

    aio_run(work(), timeout=40)  # which is less than a call's own


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timeout": -1}, "timeout"),
        ({"channel": "http"}, "channel must be"),
        ({"headers": {"a b": "x"}}, "name of header 1"),
        ({"header_hook": 3}, "header_hook must be callable"),
        ({"compression": "zip"}, "compression must be"),
        ({"shared_memory": "yes"}, "shared_memory must be"),
        ({"max_in_flight": 0}, "max_in_flight must be"),
        ({"max_in_flight": 1.5}, "max_in_flight must be"),
        ({"max_in_flight_bytes": -1}, "max_in_flight_bytes must be"),
        ({"max_in_flight_bytes": True}, "max_in_flight_bytes must be"),
    ],
)
def test_arguments_that_make_no_sense(settings, message):
    with pytest.raises(InvalidOption, match=message):
        AsyncClient("localhost:8001", **settings)


# --- headers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["function", "coroutine", "none"])
def test_a_hook_for_headers(aio_run, new_client, kind):
    called = []

    def plain(call):
        called.append(call)
        return None if kind == "none" else {"x-token": str(len(called))}

    async def coroutine(call):
        await asyncio.sleep(0)
        return plain(call)

    hook = coroutine if kind == "coroutine" else plain

    async def work():
        async with new_client(header_hook=hook, headers={"x-own": "1"}) as client:
            await echo(client, headers={"x-call": "1"})
            assert await client.is_live()
            await client.model("identity_fp32")(ONE)
            assert await client.health()
            options = await client._endpoint.options("X", headers={"x-call": "1"})
            tokens = [] if kind == "none" else [("x-token", str(len(called)))]
            assert list(options.headers) == [("x-own", "1"), *tokens, ("x-call", "1")]

    aio_run(work())
    assert called[:3] == [
        "ModelInfer('identity_fp32')",
        "ServerLive",
        "ModelInfer('identity_fp32')",
    ]


def test_a_hook_that_fails_or_takes_too_long(aio_run, new_client):
    class NoTokenError(Exception):
        pass

    async def hook(call):
        if "Live" in call:
            raise NoTokenError(call)
        if "Ready" in call:
            raise TimeoutError("its own")
        await asyncio.sleep(600)

    async def work():
        async with new_client(header_hook=hook) as client:
            with pytest.raises(NoTokenError, match="ServerLive"):
                await client.is_live()
            with pytest.raises(TimeoutError, match="its own"):
                await client.is_ready()
            with pytest.raises(DeadlineExceeded, match="header hook"):
                await echo(client, timeout=0.2)

    aio_run(work())


def test_a_hook_that_is_refused(aio_run, new_client):
    async def work():
        async with new_client(header_hook=lambda call: {"a b": call}) as client:
            with pytest.raises(InvalidOption, match="name of header 1 .* ' '"):
                await echo(client)

    aio_run(work())


# --- other programs -------------------------------------------------------------------------------

PRELUDE = """
    import asyncio, multiprocessing, os, signal, sys, threading, time
    import numpy as np
    from triton_fast import AsyncClient, Client, FailedPrecondition

    url, channel, shared = sys.argv[1], sys.argv[2], sys.argv[3] == "shared"
    BIG = np.arange(300_000, dtype=np.float32)

    def new_client():
        return AsyncClient(url, channel=channel, timeout=50, shared_memory=shared)

    async def echo(client, model="identity_cpp"):
        for _ in range(2):
            result = await client.infer(model, {"INPUT0": BIG})
            assert (result["OUTPUT0"] == BIG).all()
"""


def run_python(script: str, *arguments: str) -> str:
    """Run a program of these, which must complain of nothing; return what it says."""
    return interpreter.run_python(PRELUDE + script, *arguments, timeout=100, quiet=True)


@pytest.mark.parametrize("memory", ["wire", "shared"])
def test_a_forked_child_uses_the_client_in_a_loop_of_its_own(aio_server, aio_channel, memory):
    script = """
    client = new_client()

    def child():
        signal.alarm(50)
        asyncio.run(echo(client))
        asyncio.run(client.close())

    def fork():
        pid = os.fork()
        if not pid:
            status = 1
            try:
                child()
                status = 0
            except BaseException as error:
                print(type(error).__name__, error, flush=True)
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0

    fork()  # before the first call
    asyncio.run(echo(client))
    fork()  # between two loops

    async def main():
        await echo(client)
        fork()  # in one
        await echo(client)
        # And as multiprocessing does it, where nobody closes it.
        in_child = lambda: asyncio.run(echo(client))
        child = multiprocessing.get_context("fork").Process(target=in_child)
        child.start()
        await asyncio.to_thread(child.join)
        assert child.exitcode == 0, child.exitcode
        await echo(client)
        await client.close()

    asyncio.run(main())
    print("done")
    """
    assert run_python(script, aio_server.grpc_url, aio_channel, memory) == "done\n"


# Shared memory comes with a channel of its own, and with all that a client on the wire has.
@pytest.mark.parametrize(
    "way",
    ["idle", *(pytest.param(w, marks=pytest.mark.server_may_die) for w in ("task", "thread"))],
)
def test_a_program_may_end_without_closing(aio_server, aio_channel, way):
    script = """
    client = new_client()
    slow = {"INPUT0": BIG[:3], "DELAY": np.array([600], np.float32)}
    question = {"RESET": np.array([False])}

    def wait_for(running):
        with Client(url, timeout=50) as witness:
            while witness.infer("cancellations", question)["RUNNING"].item() != running:
                time.sleep(0.01)

    async def main():
        await echo(client)
        if sys.argv[4] == "task":
            tasks.append(asyncio.create_task(client.infer("slow", slow)))
            await asyncio.to_thread(wait_for, 1)
        elif sys.argv[4] == "thread":
            await client.infer("slow", slow)

    tasks = []
    wait_for(0)
    if sys.argv[4] == "thread":
        threading.Thread(target=asyncio.run, args=(main(),), daemon=True).start()
        wait_for(1)
    else:
        asyncio.run(main())
    print(os.getpid())
    """
    number = int(run_python(script, aio_server.grpc_url, aio_channel, "shared", way))
    assert not segments(number)


def test_programs_of_threads_load_no_asyncio():
    script = """
    import sys
    from triton_fast import Client
    Client("localhost:8001").close()
    assert "asyncio" not in sys.modules
    """
    interpreter.run_python(script)
