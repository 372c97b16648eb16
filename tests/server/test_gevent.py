"""Greenlets: where gevent has patched a program's sockets, one that waits leaves the others alone.

Each program here is patched as a whole, and so runs by itself.
"""

from __future__ import annotations

import textwrap

import pytest
from support.interpreter import run_python
from support.required import need

pytestmark = pytest.mark.server

PATCHED = """
    from gevent import monkey
    monkey.patch_all()
"""

BEGIN = """
    import asyncio, gc, os, signal, sys, time, warnings
    import gevent, numpy as np
    from support.model_calls import ENDLESS, ONE, counts, outs, repeat, reset, slow
    from triton_fast import (
        AsyncClient, Cancelled, Client, ClosedError, DeadlineExceeded, FailedPrecondition,
        InvalidOption,
    )
    from triton_fast._core._wire import live_counts

    url, channel = sys.argv[1:]

    def until(condition):
        with gevent.Timeout(60):
            while not condition():
                gevent.sleep(0.005)

    def side_by_side(*works):
        \"\"\"Run each in a greenlet, and see that all have begun before one has ended.\"\"\"
        here, most = [], []

        def one(work):
            here.append(work)
            most.append(len(here))
            try:
                return work()
            finally:
                here.remove(work)

        greenlets = [gevent.spawn(one, work) for work in works]
        gevent.joinall(greenlets, raise_error=True, timeout=60)
        assert max(most) == len(works), most
        return [greenlet.value for greenlet in greenlets]

    def nothing_is_left():
        gc.collect()
        assert not any(live_counts().values()), live_counts()
"""


@pytest.fixture(autouse=True)
def gevent():
    need("gevent")


def run(script, *arguments, patched=PATCHED):
    """Run a program, which must complain of nothing; return what it says."""
    program = textwrap.dedent(patched) + textwrap.dedent(BEGIN) + textwrap.dedent(script)
    return run_python(program, *arguments, timeout=100, quiet=True)


def test_greenlets_wait_side_by_side(server, channel):
    script = """
    image = np.ones((8, 512, 512), np.float32)

    with Client(url, channel=channel, timeout=60) as client:
        def infer():
            assert client.infer("slow", slow(0.05))["OUTPUT0"] == 1

        def submit():
            assert client.submit("slow", slow(0.05)).result()["OUTPUT0"] == 1

        def stream():
            answers = client.stream("repeat_int32", repeat([1, 2], [20, 20]))
            assert outs(answers) == [1, 2]

        side_by_side(*[infer] * 6)
        side_by_side(*[submit] * 6)
        side_by_side(*[stream] * 6)

        with client.open_stream() as shared:
            def share():
                assert outs(shared.stream("repeat_int32", repeat([1, 2], [20, 20]))) == [1, 2]

            side_by_side(*[share] * 6)

        def sequence():
            with client.sequence("accumulate_oldest") as steps:
                for total in (1, 2):
                    assert steps.infer({"INPUT": np.int32([1])})["OUTPUT"] == total

        def split():
            rows = np.ones((20, 3), np.float32)
            assert client.infer("identity_batched", {"INPUT0": rows}, split=True)["OUTPUT0"].all()

        def large():  # with a region that is registered meanwhile
            assert client.infer("identity_rank3", {"INPUT0": image})["OUTPUT0"].all()

        side_by_side(sequence, split, large, large, client.health, client.is_ready)
    nothing_is_left()

    # Of shared memory there is enough for one, and the others wait until its arrays are gone.
    with Client(
        url, channel=channel, timeout=60, shared_memory=True, shared_memory_limit=16 << 20
    ) as client:
        def hold():
            result = client.infer("identity_rank3", {"INPUT0": image})
            gevent.sleep(0.01)
            assert result["OUTPUT0"].all()

        hold()  # what its output takes is known from now on
        side_by_side(*[hold] * 4)
    nothing_is_left()

    # A client that is dropped in the hub, which cannot wait, has its regions taken back, too.
    warnings.simplefilter("ignore", ResourceWarning)
    with Client(url, channel="native", timeout=60) as watch:
        before = set(watch.shared_memory.registered())
        client = Client(url, channel=channel, timeout=60)
        large()
        assert set(watch.shared_memory.registered()) > before
        timer = gevent.get_hub().loop.timer(0)
        timer.start(lambda: globals().pop("client"))
        until(lambda: set(watch.shared_memory.registered()) == before)
    """
    run(script, server.grpc_url, channel)


@pytest.mark.server_may_die
def test_what_ends_a_greenlet_ends_its_call(server, channel):
    script = """
    class Enough(Exception):
        pass

    def caught(work):
        \"\"\"Return what a greenlet was ended with, without its frames, which hold answers.\"\"\"
        try:
            return work()
        except (gevent.GreenletExit, Enough, ClosedError) as error:
            return type(error)

    client = Client(url, channel=channel, timeout=60)
    # Asked on another connection: nothing that is waited for here may hold it up.
    watch = Client(url, channel="native")
    reset(watch)

    def infer():
        client.infer("slow", slow(600))

    def submit():
        client.submit("slow", slow(600)).result()

    def read():
        with client.stream("repeat_int32", ENDLESS) as answers:
            outs(answers)

    def begin(*works):
        greenlets = [gevent.spawn(caught, work) for work in works]
        until(lambda: counts(watch)[1] == len(works))
        return greenlets

    # Killed, with or without an error, and when this returns nothing is borrowed any more.
    for work in (infer, read):
        for error in (gevent.GreenletExit, Enough):
            (greenlet,) = begin(work)
            greenlet.kill(error, timeout=30)
            assert greenlet.value is error
            nothing_is_left()
            until(lambda: counts(watch)[1] == 0)
    assert counts(watch)[0] == 4

    # By gevent's timeouts, and by ours.
    for work in (infer, read):
        try:
            with gevent.Timeout(0.05):
                work()
        except gevent.Timeout:
            print("timed out")
    try:
        client.infer("slow", slow(600), timeout=0.1)
    except DeadlineExceeded:
        pass

    # Who reads what others share gives up nothing but their own wait.
    with client.open_stream() as shared:
        answers = shared.stream("repeat_int32", repeat([1, 2], [0, 500]))
        assert next(answers)["OUT"] == 1
        try:
            with gevent.Timeout(0.05):
                next(answers)
        except gevent.Timeout:
            assert outs(answers) == [2]

    # Ctrl-C is the main greenlet's; gevent would say so, too. Where grpcio reads for the channel in
    # a greenlet, that one may have it, and grpcio never reads again.
    gevent.get_hub().NOT_ERROR += (KeyboardInterrupt,)

    def interrupt():
        until(lambda: counts(watch)[1] == 1)
        gevent.get_hub().threadpool.spawn(os.kill, os.getpid(), signal.SIGINT)

    until(lambda: counts(watch)[1] == 0)
    if channel == "native":
        gevent.spawn(interrupt)
        try:
            infer()
        except KeyboardInterrupt:
            print("interrupted")
    until(lambda: counts(watch)[1] == 0)

    # A future is cancelled as ever.
    future = client.submit("slow", slow(600))
    until(lambda: counts(watch)[1] == 1)
    assert future.cancel()
    until(lambda: counts(watch)[1] == 0)

    # More wait than gevent's own pool has threads, and others still come to pass.
    greenlets = begin(*[read] * 12)
    assert client.infer("identity_fp32", ONE)["OUTPUT0"] == 1
    greenlets += [gevent.spawn(caught, work) for work in [infer] * 11 + [submit]]
    until(lambda: counts(watch)[1] == 12 + 8)  # so many the model takes at a time
    assert client.infer("identity_fp32", ONE)["OUTPUT0"] == 1

    # Closing ends them all.
    client.close()
    gevent.joinall(greenlets, timeout=30)
    assert [greenlet.value for greenlet in greenlets] == [ClosedError] * 24
    nothing_is_left()
    """
    told = ["timed", "out"] * 2 + ["interrupted"] * (channel == "native")
    assert run(script, server.grpc_url, channel).split() == told


@pytest.mark.native
@pytest.mark.server_may_die
def test_calls_wait_for_a_connection_as_greenlets(server):
    script = """
    from triton_fast.channels.native import channel_gevent

    channel_gevent.MOST_CONNECTIONS = 1
    with Client(url, channel=channel, timeout=60) as client:
        greenlet = gevent.spawn(client.infer, "slow", slow(600))
        gevent.sleep(0)
        try:
            client.infer("identity_fp32", ONE, timeout=0.1)
        except DeadlineExceeded as error:
            print(error.message)
        waiting = gevent.spawn(client.infer, "identity_fp32", ONE)
        gevent.sleep(0)
        waiting.kill(timeout=30)
        later = client.submit("identity_fp32", ONE)
        greenlet.kill(timeout=30)
        assert later.result()["OUTPUT0"] == 1
        del later
    nothing_is_left()
    """
    said = run(script, server.grpc_url, "native")
    assert said == "the deadline passed while waiting for a connection\n"


@pytest.mark.native
def test_a_forked_child_has_greenlets_of_calls_that_are_the_parents(server):
    script = """
    client = Client(url, channel=channel, timeout=60)

    def infer():
        try:
            return client.infer("slow", slow(1))["OUTPUT0"].item()
        except ClosedError as error:
            return str(error)

    greenlet = gevent.spawn(infer)
    gevent.sleep(0.1)
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        assert client.infer("identity_fp32", ONE)["OUTPUT0"] == 1
        print("child:", greenlet.get())
        client.close()
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    print("parent:", greenlet.get())
    client.close()
    """
    assert run(script, server.grpc_url, "native").splitlines() == [
        "child: the call is the parent process's; make one in this process",
        "parent: 1.0",
    ]


def test_grpcio_has_to_know_of_gevent(server):
    """By us if nobody has used it; otherwise it stands still, so that calls are refused."""
    script = """
    with Client(url, channel=channel, timeout=60) as client:
        def live():
            try:
                return client.is_live()
            except FailedPrecondition as error:
                return error.message

        print(live())
        if live() is True:
            print(gevent.get_hub().threadpool.apply(live))
    try:
        AsyncClient(url, channel=channel)
    except InvalidOption as error:
        print(error)
    """
    no_asyncio = "this client uses grpcio, and grpcio's asyncio does not run where gevent has"
    first = f"import grpc\n{textwrap.dedent(PATCHED)}"
    said = run(script, server.grpc_url, "grpc", patched=first).splitlines()
    assert "call grpc.experimental.gevent.init_gevent() right after monkey.patch_all()" in said[0]
    assert said[1].startswith(no_asyncio)
    told = f"{first}\nfrom grpc.experimental.gevent import init_gevent\ninit_gevent()\n"
    said = run(script, server.grpc_url, "grpc", patched=told).splitlines()
    assert said[0] == "True"
    assert "grpcio can be used in one thread" in said[1]
    assert said[2].startswith(no_asyncio)


@pytest.mark.native
def test_tasks_wait_beside_greenlets(server):
    script = """
    async def infer():
        async with AsyncClient(url, channel=channel, timeout=60) as client:
            calls = [client.infer("slow", slow(0.05)) for _ in range(6)]
            return [result["OUTPUT0"].item() for result in await asyncio.gather(*calls)]

    def read():
        with Client(url, channel=channel, timeout=60) as client:
            return outs(client.stream("repeat_int32", repeat([1, 2], [20, 20])))

    print(side_by_side(lambda: asyncio.run(infer()), read))
    """
    assert run(script, server.grpc_url, "native") == f"{[[1.0] * 6, [1, 2]]}\n"


@pytest.mark.native
def test_where_threads_are_threads_they_are_used(server):
    """With half of it patched, a greenlet that waits would hold a lock that others block for."""
    script = """
    from triton_fast.channels.native.channel import NativeChannel

    with Client(url, channel=channel, timeout=60) as client:
        assert type(client._endpoint._channel) is NativeChannel
        assert client.submit("identity_fp32", ONE).result()["OUTPUT0"] == 1
    """
    run(
        script,
        server.grpc_url,
        "native",
        patched="from gevent import monkey\nmonkey.patch_all(thread=False)\n",
    )


def test_without_gevent_nothing_of_it_is_loaded(server, channel):
    script = """
    import sys
    from support.model_calls import ONE, outs, repeat
    from triton_fast import Client

    url, channel = sys.argv[1:]
    with Client(url, channel=channel, timeout=60) as client:
        client.infer("identity_fp32", ONE)
        client.submit("identity_fp32", ONE).result()
        outs(client.stream("repeat_int32", repeat([1])))
    print([name for name in sys.modules if "gevent" in name or "greenlet" in name])
    """
    assert run_python(script, server.grpc_url, channel) in {
        "[]\n",
        "['grpc.experimental.gevent']\n",
    }
