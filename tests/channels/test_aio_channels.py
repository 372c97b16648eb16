"""What every channel for coroutines carries, and how its calls end: servers of plain bytes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
import sys
import threading
import time

import pytest
from channel_calls import answered_at_last, call_async, closing, ids, path
from support.channel_ends import Answer, Message, envelope
from support.event_loops import new_loop
from support.interpreter import run_python
from support.process import held
from support.waiting import until, until_async, within

from triton_fast import errors
from triton_fast._core._wire import StreamResponses
from triton_fast.channels.base import CallOptions
from triton_fast.channels.grpcio.channel_async import AsyncGrpcChannel
from triton_fast.channels.native.channel import native_address
from triton_fast.channels.native.channel_async import AsyncNativeChannel
from triton_fast.channels.native.connector_async import AsyncConnector

KINDS = {"native": AsyncNativeChannel, "grpc": AsyncGrpcChannel}
LARGE = 5 << 20  # goes in pieces


async def saw(server, what: str, count: int = 1) -> bool:
    """Wait, beside the event loop, until the server has seen something; see EchoServer.saw."""
    return await asyncio.to_thread(server.saw, what, count)


@pytest.fixture(params=KINDS)
def make_async(request, echo_server):
    """Return what makes channels of each kind, to the server unless told otherwise."""
    kind = KINDS[request.param]
    return lambda target=None, **settings: kind(target or echo_server.target, **settings)


# --- what is carried ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 16_384, LARGE])
def test_bytes_go_there_and_come_back(run, make_async, size):
    message = (bytes(range(251)) * (size // 251 + 1))[:size]

    async def work():
        async with closing(make_async()) as channel:
            for _ in range(2):
                assert await call_async(channel, "Echo", message) == message

    run(work())


def test_many_tasks_share_a_channel(run, make_async):
    async def work():
        async with closing(make_async()) as channel:
            wrong = []

            async def one(number: int) -> None:
                for n in range(20):
                    message = f"{number}.{n}".encode() * (1 + n * 50)
                    if await call_async(channel, "Echo", message) != message:
                        wrong.append((number, n))

            await asyncio.gather(*(one(number) for number in range(30)))
            assert wrong == []

    run(work())


def test_headers_arrive_as_given(run, make_async):
    headers = (("authorization", "Bearer abc"), ("trace-bin", b"\x00\xff\n"), ("twice", "1"))
    headers += (("twice", "2"),)
    wanted = [["authorization", "Bearer abc"], ["trace-bin", [0, 255, 10]]]
    wanted += [["twice", "1"], ["twice", "2"]]

    async def work():
        async with closing(make_async()) as channel:
            told = json.loads(await call_async(channel, "Headers", headers=headers))
            assert [entry for entry in told if entry in wanted] == wanted

    run(work())


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compression_shrinks_what_is_sent(run, make_async, relay, compression):
    message = bytes(1 << 20)

    async def work():
        async with closing(make_async(relay.target)) as channel:
            assert await call_async(channel, "Echo", message, compression=compression) == message
            assert 0 < relay.bytes_up < len(message) // 50
            assert await call_async(channel, "Echo", message) == message
            assert relay.bytes_up > len(message)

    run(work())


def test_a_message_is_not_kept(run, make_async):
    message = Message(b"x" * 100_000)

    def holders() -> int:
        return sys.getrefcount(message.message)

    async def work():
        async with closing(make_async()) as channel:
            for _ in range(2):
                await channel.call(path("Echo"), message, Answer(), CallOptions())

    before = holders()
    run(work())
    gc.collect()
    after = holders()
    assert after == before


# --- errors ---------------------------------------------------------------------------------------


def test_each_status_has_its_class(run, make_async):
    async def work():
        async with closing(make_async()) as channel:
            for number in errors.StatusCode:
                if number == 0:
                    continue
                message = f"{number}:what the server said".encode()
                with pytest.raises(errors.ServerError) as raised:
                    await call_async(channel, "Status", message, call="Model X")
                error = raised.value
                assert type(error) is errors._BY_STATUS[number]
                assert (error.call, error.target) == ("Model X", channel.target)
                assert error.message == "what the server said"

    run(work())


def test_a_traceback_for_a_message_arrives_whole(run, make_async):
    details = "Zeile 1\nÜbel: " + "ä" * 10_000  # triples in a header

    async def work():
        async with closing(make_async()) as channel:
            with pytest.raises(errors.Internal) as raised:
                await call_async(channel, "Status", b"13:" + details.encode())
            assert raised.value.message == details

    run(work())


@pytest.mark.parametrize("fail_in", ["begin", "feed", "finish"])
def test_what_the_parser_raises_passes_unchanged(run, make_async, fail_in):
    planted = errors.WireError("field 6 is torn")

    async def work():
        async with closing(make_async()) as channel:
            with pytest.raises(errors.WireError) as raised:
                await channel.call(
                    path("Echo"), Message(b"xy"), Answer(fail_in, planted), CallOptions()
                )
            assert raised.value is planted
            assert await call_async(channel, "Echo", b"still usable") == b"still usable"

    run(work())


def test_no_server_there(run, make_async, nowhere):
    async def work():
        async with closing(make_async(nowhere)) as channel:
            with pytest.raises(errors.Unavailable, match="onnect to .*refused") as raised:
                await call_async(channel, "Echo", call="ServerLive")
            assert str(raised.value).startswith(f"ServerLive at {nowhere}: UNAVAILABLE: ")

    run(work())


def test_the_connection_breaks_during_a_call(run, make_async, echo_server, relay):
    async def work():
        async with closing(make_async(relay.target)) as channel:
            await call_async(channel, "Echo")
            holding = asyncio.create_task(call_async(channel, "Hold"))
            assert await saw(echo_server, "held")
            relay.cut()
            with pytest.raises(errors.Unavailable):
                await holding
            await answered_at_last(channel, b"again")

    run(work())


# --- deadlines and cancellation -------------------------------------------------------------------


def test_a_deadline_ends_the_call_and_the_server_is_told(run, make_async, echo_server):
    async def work():
        async with closing(make_async()) as channel:
            for seconds in (0.3, 3, 30):  # until one is long enough for the call to arrive
                with pytest.raises(errors.DeadlineExceeded) as raised:
                    await call_async(channel, "Hold", deadline_ns=within(seconds), call="Model X")
                assert raised.value.call == "Model X"
                if echo_server.counts["held"]:
                    break
            assert await saw(echo_server, "given up")

    run(work())


def test_a_deadline_that_has_passed_sends_nothing(run, make_async, echo_server):
    async def work():
        async with closing(make_async()) as channel:
            await call_async(channel, "Echo")
            with pytest.raises(errors.DeadlineExceeded):
                await call_async(channel, "Size", b"1", deadline_ns=time.monotonic_ns() - 1)
            await call_async(channel, "Echo")
            assert echo_server.calls == ["Echo", "Echo"]

    run(work())


def test_a_deadline_while_nobody_answers(run, make_async):
    async def work(target):
        async with closing(make_async(target)) as channel:
            with pytest.raises(errors.DeadlineExceeded):
                await call_async(channel, "Echo", deadline_ns=within(0.2))

    # A listener that never speaks HTTP/2: the connection is there, and is not.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        run(work(f"127.0.0.1:{listener.getsockname()[1]}"))


@pytest.mark.parametrize("size", [2, LARGE])
def test_cancelling_a_task_cancels_the_call(run, make_async, echo_server, size):
    async def work():
        async with closing(make_async()) as channel:
            await call_async(channel, "Echo")
            answer = Answer()
            message = Message(bytes(size))
            task = asyncio.create_task(channel.call(path("Hold"), message, answer, CallOptions()))
            assert await saw(echo_server, "held")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
            assert await saw(echo_server, "given up")
            assert answer.told == []
            assert await call_async(channel, "Echo", b"y") == b"y"

    run(work())


def test_cancelling_at_any_moment(run, make_async, echo_server):
    """Whatever a call is at, it ends, and the channel is as good as before."""

    async def work():
        async with closing(make_async()) as channel:
            for step in range(60):
                task = asyncio.create_task(call_async(channel, "Echo", bytes(20_000)))
                for _ in range(step % 12):
                    await asyncio.sleep(0)
                if step % 5 == 0:
                    await asyncio.sleep(step * 1e-5)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
            assert await call_async(channel, "Echo", b"y") == b"y"

    run(work())


def test_a_timeout_of_asyncios(run, make_async, echo_server):
    async def work():
        async with closing(make_async()) as channel:

            async def bounded(limit):
                async with limit:
                    await call_async(channel, "Hold")

            limit = asyncio.timeout(None)
            task = asyncio.create_task(bounded(limit))
            assert await saw(echo_server, "held")
            limit.reschedule(0)
            with pytest.raises(TimeoutError):
                await task
            assert await saw(echo_server, "given up")

    run(work())


def test_a_connection_on_which_nothing_comes_is_not_used_again(run, relay):
    async def work():
        async with closing(AsyncNativeChannel(relay.target)) as channel:
            await call_async(channel, "Echo")
            relay.forget()
            with pytest.raises(errors.DeadlineExceeded):
                await call_async(channel, "Echo", deadline_ns=within(0.3))
            answer = await call_async(channel, "Echo", b"again", deadline_ns=within(30))
            assert answer == b"again"
        assert relay.accepted == 2

    run(work())


@pytest.fixture
def clogged(echo_server):
    """Another of this machine's addresses, where nobody is let in on the echo server's port."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.2", echo_server.port))
        listener.listen(0)
        for _ in range(8):
            client = sockets.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield "127.0.0.2"


def test_an_address_that_does_not_answer_is_not_waited_for(run, echo_server, clogged, monkeypatch):
    hosts = [clogged, "127.0.0.1"]

    async def found(self, loop):
        return hosts

    async def work():
        target = f"a.name:{echo_server.port}"
        async with closing(AsyncNativeChannel(target)) as channel:
            assert await call_async(channel, "Echo", b"x", deadline_ns=within(20)) == b"x"
        hosts[:] = ["127.0.0.3", "127.0.0.4"]  # where nobody listens
        async with closing(AsyncNativeChannel(target)) as channel:
            with pytest.raises(errors.Unavailable, match="refused"):
                await call_async(channel, "Echo", deadline_ns=within(20))
        hosts[:] = [clogged, clogged]
        async with closing(AsyncNativeChannel(target)) as channel:
            with pytest.raises(errors.DeadlineExceeded, match="connecting"):
                await call_async(channel, "Echo", deadline_ns=within(0.5))

    monkeypatch.setattr(AsyncConnector, "_hosts", found)
    run(work())


def test_addresses_of_both_families_in_turn(monkeypatch):
    async def found(*_, **__):
        six, four = socket.AF_INET6, socket.AF_INET
        families = [(six, "::1"), (six, "::2"), (four, "127.0.0.1"), (six, "::3")]
        return [(family, 1, 6, "", (address, 1)) for family, address in families]

    async def work():
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(type(loop), "getaddrinfo", found)
        connector = AsyncConnector(None, native_address("a.name:1"), None, (0, 0))
        assert await connector._hosts(loop) == ["::1", "127.0.0.1", "::2", "::3"]

    asyncio.run(work())


# --- closing, and event loops ---------------------------------------------------------------------


@pytest.mark.native
def test_closing_when_a_connection_is_there_that_nobody_has_taken(run, echo_server, monkeypatch):
    """It was made, and who waits for it has yet to be woken."""
    channel = AsyncNativeChannel(echo_server.target)
    make = AsyncConnector.connect

    async def make_and_close(connector, on_change):
        connection = await make(connector, on_change)
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: closers.append(loop.create_task(channel.close())))
        return connection

    closers = []
    monkeypatch.setattr(AsyncConnector, "connect", make_and_close)

    async def work():
        with pytest.raises(errors.ClosedError):
            await call_async(channel, "Echo", b"x")
        assert closers

    run(work())


def test_a_closed_channel_refuses_calls(run, make_async):
    async def work(used):
        channel = make_async()
        if used:
            await call_async(channel, "Echo")
        await channel.close()
        await channel.close()
        with pytest.raises(errors.ClosedError, match=channel.target):
            await call_async(channel, "Echo")
        with pytest.raises(errors.ClosedError):
            channel.open_stream(path("StreamEcho"), StreamResponses(), CallOptions())

    run(work(False))
    run(work(True))


def test_closing_ends_running_calls(run, make_async, echo_server):
    async def work():
        channel = make_async()
        await call_async(channel, "Echo")
        tasks = [asyncio.create_task(call_async(channel, "Hold")) for _ in range(3)]
        cancelled = asyncio.create_task(call_async(channel, "Hold"))
        assert await saw(echo_server, "held", 4)
        cancelled.cancel()
        await channel.close()
        for task in tasks:
            with pytest.raises(errors.ClosedError):
                await task
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert await saw(echo_server, "given up", 4)

    run(work())


def test_one_loop_after_the_other(run, make_async):
    channel = make_async()
    for _ in range(3):
        assert run(call_async(channel, "Echo", b"x")) == b"x"
    run(channel.close())


def test_a_loop_that_ends_during_calls(run, make_async, echo_server):
    """What it leaves behind disturbs no later one."""
    channel = make_async()

    async def leave(left, turn):
        await call_async(channel, "Echo")
        left += [asyncio.create_task(call_async(channel, "Hold")) for _ in range(3)]
        assert await saw(echo_server, "held", 3 * turn)

    for turn in (1, 2, 3):
        left = []
        with asyncio.Runner(loop_factory=lambda: new_loop(run.kind)) as runner:
            runner.run(leave(left, turn))
        assert [task.cancelled() for task in left] == [True] * 3
        assert run(call_async(channel, "Echo", b"x")) == b"x"
    assert run(saw(echo_server, "given up", 9))
    run(channel.close())


def test_a_second_loop_beside_the_first(run, make_async):
    channel = make_async()

    async def work():
        assert await call_async(channel, "Echo", b"x") == b"x"
        raised = []

        def elsewhere():
            for what in (call_async(channel, "Echo"), channel.close()):
                try:
                    asyncio.run(what)
                except Exception as error:
                    raised.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.01)
        assert [type(error) for error in raised] == [errors.LoopError] * 2
        assert "belongs to another event loop" in str(raised[0])
        assert await call_async(channel, "Echo", b"y") == b"y"
        await channel.close()

    run(work())


def test_without_a_loop(make_async):
    channel = make_async()
    coroutine = call_async(channel, "Echo")
    with pytest.raises(errors.LoopError, match="without a running event loop"):
        coroutine.send(None)


def test_loops_of_two_threads(run, make_async):
    """Each with a channel of its own, at the same time."""

    async def work():
        async with closing(make_async()) as channel:
            for _ in range(100):
                assert await call_async(channel, "Echo", b"x") == b"x"

    raised = []

    def elsewhere():
        try:
            asyncio.run(work())
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=elsewhere) for _ in range(2)]
    for thread in threads:
        thread.start()
    run(work())
    for thread in threads:
        thread.join()
    assert raised == []


PROGRAM = """
    import asyncio, sys
    from support.channel_ends import Answer, Message
    from channel_calls import call_async
    from test_aio_channels import KINDS
    from triton_fast._core._wire import StreamResponses
    from triton_fast.channels.base import CallOptions

    channel = KINDS[sys.argv[1]](sys.argv[2])
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["task", "loop"])
def test_a_program_may_end_without_closing(echo_server, kind, way):
    """Also during a call; and says nothing about it."""
    script = (
        PROGRAM
        + """
    async def work():
        await call_async(channel, "Echo")
        if sys.argv[3] == "task":
            task = asyncio.create_task(call_async(channel, "Hold"))
            assert await call_async(channel, "Saw", b"held 1") == b"yes"

    if sys.argv[3] == "loop":
        loop = asyncio.new_event_loop()
        loop.run_until_complete(work())
        loop.close()
    else:
        asyncio.run(work())
    print("over")
    """
    )
    assert run_python(script, kind, echo_server.target, way, timeout=100, quiet=True) == "over\n"


def test_nothing_is_left_open(run, make_async):
    async def cycle():
        async with closing(make_async()) as channel:
            await call_async(channel, "Echo", b"x")
            stream = channel.open_stream(path("StreamEcho"), StreamResponses(), CallOptions())
            await stream.send(Message(envelope("a")), None)
            await stream.receive(None)
            stream.cancel()

    for _ in range(3):
        run(cycle())
    before = held()
    for _ in range(12):
        run(cycle())
    # grpcio closes in the background, and may have made itself a thread or two.
    until(lambda: held() < before + 8)


# --- streams --------------------------------------------------------------------------------------


async def all_ids(stream) -> list[str]:
    found = []
    while answers := await stream.receive(within(20)):
        found += ids(answers)
    return found


async def streamed_at_last(server) -> int:
    """Return how many messages the server has given to grpcio, once it waits for its reader."""
    seen = -1
    while server.counts["streamed"] != seen:
        seen = server.counts["streamed"]
        await asyncio.sleep(0.2)
    return seen


def test_a_conversation(run, make_async):
    async def work():
        async with closing(make_async()) as channel:
            stream = channel.open_stream(path("StreamEcho"), StreamResponses(), CallOptions())
            for number in range(5):
                await stream.send(Message(envelope(f"m{number}")), within(20))
                assert ids(await stream.receive(within(20))) == [f"m{number}"]
            await stream.send(Message(envelope("e", error="it went wrong")), None)
            [answer] = await stream.receive(None)
            assert answer.error_message == "it went wrong"
            assert ids([answer]) == ["e"]
            await stream.half_close()
            await stream.half_close()
            assert await all_ids(stream) == ["half-closed"]
            assert await stream.receive(None) == []
            with pytest.raises(errors.ClosedError):
                await stream.send(Message(envelope("late")), None)
            stream.cancel()
            stream.cancel()

    run(work())


def test_large_messages_of_a_stream(run, make_async):
    message = envelope("x" * LARGE)

    async def work():
        async with closing(make_async()) as channel:
            stream = channel.open_stream(path("StreamEcho"), StreamResponses(), CallOptions())
            await stream.send(Message(message), within(20))
            assert [len(name) for name in ids(await stream.receive(within(20)))] == [LARGE]
            stream.cancel()

    run(work())


def test_a_stream_sends_headers(run, make_async):
    async def work():
        async with closing(make_async()) as channel:
            options = CallOptions(headers=(("authorization", "abc"),))
            stream = channel.open_stream(path("StreamHeaders"), StreamResponses(), options)
            await stream.send(Message(envelope("")), None)
            assert ["authorization", "abc"] in json.loads(ids(await stream.receive(None))[0])
            stream.cancel()

    run(work())


def test_many_streams_and_calls_at_a_time(run, make_async):
    async def work():
        async with closing(make_async()) as channel:

            async def one(number):
                stream = channel.open_stream(path("StreamEcho"), StreamResponses(), CallOptions())
                for n in range(20):
                    await stream.send(Message(envelope(f"{number}.{n}")), None)
                await stream.half_close()
                expected = [*(f"{number}.{n}" for n in range(20)), "half-closed"]
                assert await all_ids(stream) == expected
                assert await call_async(channel, "Echo", b"x") == b"x"

            await asyncio.gather(*(one(number) for number in range(8)))

    run(work())


def test_the_error_of_a_stream(run, make_async):
    async def work():
        async with closing(make_async()) as channel:
            options = CallOptions(call="ModelStreamInfer('m')")
            stream = channel.open_stream(path("StreamStatus"), StreamResponses(), options)
            await stream.send(Message(b"3:no such input"), None)
            for _ in range(2):
                with pytest.raises(errors.InvalidArgument, match="no such input") as raised:
                    await stream.receive(within(20))
            assert raised.value.call == "ModelStreamInfer('m')"
            with pytest.raises((errors.InvalidArgument, errors.ClosedError)):
                await stream.send(Message(b"3:"), None)

    run(work())


def test_a_server_that_ends_the_stream(run, make_async):
    async def work():
        async with closing(make_async()) as channel:
            stream = channel.open_stream(path("StreamOne"), StreamResponses(), CallOptions())
            await stream.send(Message(b"x"), None)
            assert await all_ids(stream) == ["one"]
            with pytest.raises(errors.ClosedError):
                await stream.send(Message(b"x"), None)

    run(work())


def test_a_stream_to_nowhere(run, make_async, nowhere):
    async def work():
        async with closing(make_async(nowhere)) as channel:
            stream = channel.open_stream(
                path("StreamEcho"), StreamResponses(), CallOptions(call="X")
            )
            # Whether the first message is taken before that is known is left to the channel.
            with contextlib.suppress(errors.Unavailable):
                await stream.send(Message(b"x"), None)
            for _ in range(2):
                with pytest.raises(errors.Unavailable, match="X at .*onnect to .*refused"):
                    await stream.receive(None)

    run(work())


def test_deadlines_of_a_stream(run, make_async, echo_server):
    async def work():
        async with closing(make_async()) as channel:
            stream = channel.open_stream(path("StreamHold"), StreamResponses(), CallOptions())
            with pytest.raises(errors.DeadlineExceeded):
                await stream.receive(within(0.1))  # it has not begun
            await stream.send(Message(b"x"), None)
            with pytest.raises(errors.DeadlineExceeded):
                await stream.receive(within(0.1))
            # The call goes on, and nothing is lost.
            assert await saw(echo_server, "held")
            echo_server.let_go()
            assert ids(await stream.receive(within(20))) == ["held"]
            stream.cancel()
            whole = channel.open_stream(
                path("StreamHold"), StreamResponses(), CallOptions(deadline_ns=within(0.3))
            )
            with contextlib.suppress(errors.DeadlineExceeded):
                await whole.send(Message(b"x"), None)
            for _ in range(2):
                with pytest.raises(errors.DeadlineExceeded):
                    await whole.receive(within(20))

    run(work())


def test_a_peer_that_takes_no_messages(run, make_async):
    """The sender waits, and no longer than it may; the call is over then."""

    async def work():
        async with closing(make_async()) as channel:
            stream = channel.open_stream(path("StreamHold"), StreamResponses(), CallOptions())
            await stream.send(Message(b"x"), within(20))
            late = None
            for _ in range(64):  # MiB: more than any window
                try:
                    await stream.send(Message(bytes(1 << 20)), within(0.2))
                except errors.DeadlineExceeded as error:
                    late = error
                    break
            assert late is not None
            with pytest.raises(errors.DeadlineExceeded):
                await stream.receive(None)

    run(work())


def test_cancelling_a_receive_loses_nothing(run, make_async):
    async def work():
        async with closing(make_async()) as channel:
            stream = channel.open_stream(path("StreamCount"), StreamResponses(), CallOptions())
            await stream.send(Message(b"200"), None)
            await stream.half_close()
            found = []
            while True:
                task = asyncio.create_task(stream.receive(None))
                await asyncio.sleep(0 if len(found) % 2 else 0.0005)
                if not task.done():
                    task.cancel()
                try:
                    answers = await task
                except asyncio.CancelledError:
                    answers = await stream.receive(None)
                if not answers:
                    break
                found += ids(answers)
            assert found == [str(number) for number in range(200)]

    run(work())


def test_cancelling_a_receive_in_a_large_message_loses_nothing(run, make_async):
    async def work():
        async with closing(make_async()) as channel:
            stream = channel.open_stream(path("StreamCount"), StreamResponses(), CallOptions())
            await stream.send(Message(f"4 {LARGE}".encode()), None, last=True)
            found, turns = [], 0
            while True:
                task = asyncio.create_task(stream.receive(None))
                for _ in range(turns % 20):
                    await asyncio.sleep(0)
                turns += 1
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    if not (answers := await task):
                        break
                    found += ids(answers)
            assert [name.strip() for name in found] == [str(number) for number in range(4)]

    run(work())


@pytest.mark.parametrize("way", ["cancel", "close", "drop"])
def test_answers_that_nobody_takes(run, make_async, echo_server, way):
    """What reads them ahead, and waits for room, ends as well."""

    async def work():
        tasks = asyncio.all_tasks()
        channel = make_async()
        stream = channel.open_stream(path("StreamCount"), StreamResponses(), CallOptions())
        await stream.send(Message(b"1000 100000"), None)
        await stream.receive(None)
        assert await streamed_at_last(echo_server) < 1000  # what nobody receives is not asked for
        if way == "cancel":
            stream.cancel()
        elif way == "close":
            await channel.close()
        else:
            del stream
            gc.collect()
        assert await saw(echo_server, "stream ended")
        await until_async(lambda: asyncio.all_tasks() == tasks)
        await channel.close()

    run(work())


@pytest.mark.parametrize("way", ["cancel", "close", "task"])
def test_a_stream_that_is_given_up(run, make_async, echo_server, way):
    async def work():
        channel = make_async()
        stream = channel.open_stream(path("StreamHold"), StreamResponses(), CallOptions(call="X"))
        await stream.send(Message(b"x"), None)
        receiving = asyncio.create_task(stream.receive(None))
        assert await saw(echo_server, "held")
        if way == "cancel":
            stream.cancel()
            with pytest.raises(errors.Cancelled, match="X at"):
                await receiving
        elif way == "close":
            await channel.close()
            with pytest.raises(errors.ClosedError):
                await receiving
        else:
            # More than any window, so that it cannot be over; wherever it is by then.
            sending = asyncio.create_task(stream.send(Message(bytes(64 << 20)), None))
            await asyncio.sleep(0.1)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            with pytest.raises(errors.Cancelled):
                await receiving
        with pytest.raises((errors.Cancelled, errors.ClosedError)):
            await stream.send(Message(b"x"), None)
        assert await saw(echo_server, "stream ended")
        await channel.close()

    run(work())


@pytest.mark.parametrize("size", [2, LARGE])
def test_a_send_that_is_cancelled_ends_the_stream(run, make_async, size):
    """Whatever it is at: connecting, rendering the message, or sending it."""

    async def work():
        async with closing(make_async()) as channel:
            for turns in range(8):
                stream = channel.open_stream(
                    path("StreamHold"), StreamResponses(), CallOptions(call="X")
                )
                if turns % 2:
                    await stream.send(Message(b"x"), None)
                sending = asyncio.create_task(stream.send(Message(bytes(size)), None))
                for _ in range(turns // 2 + 1):
                    await asyncio.sleep(0)
                if not sending.cancel():
                    stream.cancel()
                    continue  # it was quick
                with pytest.raises(asyncio.CancelledError):
                    await sending
                for way in (stream.receive(within(20)), stream.send(Message(b"x"), within(20))):
                    with pytest.raises(errors.Cancelled):
                        await way

    run(work())


def test_the_connection_of_a_stream_breaks(run, make_async, echo_server, relay):
    async def work():
        async with closing(make_async(relay.target)) as channel:
            stream = channel.open_stream(path("StreamHold"), StreamResponses(), CallOptions())
            await stream.send(Message(b"x"), None)
            receiving = asyncio.create_task(stream.receive(within(20)))
            assert await saw(echo_server, "held")
            relay.cut()
            with pytest.raises(errors.Unavailable):
                await receiving

    run(work())
