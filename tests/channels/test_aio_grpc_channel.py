"""What only grpc.aio does: TLS, headers that it refuses, forks, loops that leave it behind."""

from __future__ import annotations

import asyncio
import sys

import pytest
from channel_calls import answered_at_last, call_async, closing
from echo_server import EchoServer
from support.forked_children import run_forking
from support.interpreter import run_and_hear

from triton_fast import errors
from triton_fast.channels.grpcio.channel_async import AsyncGrpcChannel
from triton_fast.options.tls import TLS


def test_tls(run, tls_server, authority):
    root, _ = authority

    async def work():
        target = f"localhost:{tls_server.port}"
        async with closing(AsyncGrpcChannel(target, tls=TLS(root_certificates=root))) as channel:
            assert await call_async(channel, "Echo", b"x") == b"x"
        async with closing(AsyncGrpcChannel(target)) as channel:
            with pytest.raises(errors.Unavailable, match="whether it expects TLS"):
                await call_async(channel, "Echo")

    run(work())


@pytest.mark.parametrize(
    "header", [("authorization", "secret\n"), ("Secret", "x"), ("authorization", 5), ("a-bin", "x")]
)
def test_a_header_that_cannot_be_sent_is_refused_without_its_value(run, echo_server, header):
    async def work():
        async with closing(AsyncGrpcChannel(echo_server.target)) as channel:
            with pytest.raises(errors.InvalidOption) as raised:
                await call_async(channel, "Echo", headers=(header,), call="ModelInfer")
            assert "ModelInfer" in str(raised.value)
            assert header[0] in str(raised.value)
            assert "secret" not in f"{raised.value!r} {raised.value.__cause__!r}"
            assert await call_async(channel, "Echo", b"still usable") == b"still usable"

    run(work())


def test_no_grpcio(run, echo_server, monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)

    async def work():
        async with closing(AsyncGrpcChannel(echo_server.target)) as channel:
            with pytest.raises(errors.MissingDependency, match="pip install grpcio"):
                await call_async(channel, "Echo")

    run(work())


def test_a_server_that_is_restarted_is_found_again(run, tmp_path):
    target = f"unix:{tmp_path}/socket"  # a port might be another's by then

    async def work():
        first = EchoServer(target)
        async with closing(AsyncGrpcChannel(target)) as channel:
            await call_async(channel, "Echo")
            await asyncio.to_thread(first.stop)
            with pytest.raises(errors.Unavailable):
                await call_async(channel, "Echo")
            second = EchoServer(target)
            try:
                await answered_at_last(channel, b"x")
            finally:
                await asyncio.to_thread(second.stop)

    run(work())


# Forks. A child that hangs ends by itself after a while.

FORK = """
    import asyncio, os, signal, sys, threading, time
    from support.channel_ends import Answer, Message
    from support.forked_children import fork, join
    from channel_calls import call_async
    from triton_fast import errors
    from triton_fast.channels.grpcio import fork as grpc_fork
    from triton_fast.channels.grpcio.channel_async import AsyncGrpcChannel
    from triton_fast.channels.grpcio.channel import GrpcChannel
    from triton_fast.channels.base import CallOptions

    # What a fork waits for is over soon, unless the machine is busy.
    grpc_fork._FORK_PATIENCE_S = 40
    grpc_fork._LAST_STEPS_S = 40
    target = sys.argv[1]
    channel = AsyncGrpcChannel(target)

    async def soon(channel, method="Echo", message=b"x"):
        deadline_ns = time.monotonic_ns() + 40 * 10**9
        return await call_async(channel, method, message, deadline_ns=deadline_ns)

    async def in_child():
        try:
            await soon(channel)
        except errors.ClosedError as error:
            assert "forked from" in str(error), error
        else:
            raise AssertionError("called")
        mine = AsyncGrpcChannel(target)
        for _ in range(3):
            assert await soon(mine) == b"x"
        await mine.close()

    def child():
        asyncio.run(in_child())

    def refused():
        async def work():
            try:
                await soon(AsyncGrpcChannel(target))
            except errors.FailedPrecondition as error:
                assert "spawn" in str(error), error
            else:
                raise AssertionError("called")
        asyncio.run(work())
"""


def run_forks(script: str, target: str) -> tuple[str, str]:
    return run_forking(
        lambda: run_and_hear(FORK + script + "\n    print('done')\n", target, timeout=100)
    )


def run_fork(script: str, target: str) -> None:
    output, complaints = run_forks(script, target)
    assert output == "done\n"
    assert complaints == ""


def test_a_fork_between_two_loops(echo_server):
    script = """
    for _ in range(5):
        asyncio.run(soon(channel))
        join([fork(child)])
    """
    run_fork(script, echo_server.target)


def test_a_fork_in_the_loop(echo_server):
    script = """
    async def main():
        for _ in range(5):
            await soon(channel)
            join([fork(child)])
        await soon(channel)
        await channel.close()
    asyncio.run(main())
    """
    run_fork(script, echo_server.target)


def test_a_fork_on_another_thread(echo_server):
    """Also while tasks are calling: the fork waits for them, and they for the fork."""
    script = """
    async def main():
        await soon(channel)
        over = False
        async def busy():
            while not over:
                assert await soon(channel) == b"x"
        tasks = [asyncio.create_task(busy()) for _ in range(3)]
        for _ in range(5):
            pid = await asyncio.to_thread(fork, child)
            await asyncio.to_thread(join, [pid])
        over = True
        await asyncio.gather(*tasks)
        await channel.close()
    asyncio.run(main())
    """
    run_fork(script, echo_server.target)


def test_a_fork_waits_until_the_loop_has_left_grpcio(echo_server):
    """The last of grpcio's asyncio may go when the loop's thread collects a call that is over.

    Which takes it a while, with a lock that the child needs.
    """
    script = """
    import socket

    loops_thread = threading.get_ident()
    close = socket.socket.close

    def lingering(one):  # grpcio's last step, when its own thread has ended
        close(one)
        if grpc_fork.gate.forks and threading.get_ident() == loops_thread:
            lingered.append(time.sleep(0.5))

    lingered = []
    socket.socket.close = lingering

    async def main():
        await soon(channel)
        kept = channel._channel  # as a call keeps it
        forking = asyncio.create_task(asyncio.to_thread(fork, child))
        while channel._channel is not None:
            await asyncio.sleep(0)
        del kept
        await asyncio.to_thread(join, [await forking])
        assert lingered
        await soon(channel)
        await channel.close()
    asyncio.run(main())
    """
    run_fork(script, echo_server.target)


def test_a_fork_during_a_call_costs_the_child_grpcio(echo_server):
    script = """
    async def main():
        await soon(channel)
        held = asyncio.create_task(soon(channel, "Hold"))
        assert await soon(channel, "Saw", b"held 1") == b"yes"
        status = os.waitpid(fork(refused), 0)[1]
        # grpcio's own threads crash some of these children, whatever they do.
        assert status in (0, signal.SIGSEGV, signal.SIGABRT), status
        await soon(channel, "LetGo")
        assert await held == b"held"
        await channel.close()
    asyncio.run(main())
    """
    output, _ = run_forks(script, echo_server.target)
    assert output == "done\n"


def test_a_fork_while_others_use_grpc_aio(echo_server):
    """Which cannot be taken down for them; threads' calls go on in the child."""
    script = """
    import grpc

    def both():
        refused()
        answer = Answer()
        mine = GrpcChannel(target)
        mine.call("/test.Echo/Echo", Message(b"x"), answer, CallOptions())
        assert answer.bytes == b"x"
        mine.close()

    grpc_fork._LAST_STEPS_S = 0.1  # they take none

    async def main():
        await soon(channel)
        others = grpc.aio.insecure_channel(target)
        assert await others.unary_unary("/test.Echo/Echo")(b"x") == b"x"
        join([fork(both)])
        assert await others.unary_unary("/test.Echo/Echo")(b"x") == b"x"
        await others.close()
        await channel.close()
    asyncio.run(main())
    """
    output, complaints = run_forks(script, echo_server.target)
    assert output == "done\n"
    assert all("skipping fork() handlers" in line for line in complaints.splitlines())
