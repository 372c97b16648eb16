"""Streams of the channels for threads: what they carry, and how they end."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from functools import partial

import pytest
from channel_calls import call, ids, path
from support.channel_ends import Message, envelope, received
from support.interpreter import run_python
from support.process import threads
from support.waiting import until, until_blocked, within

from triton_fast import errors
from triton_fast._core._wire import StreamResponses
from triton_fast.channels.base import CallOptions
from triton_fast.channels.grpcio.channel import GrpcChannel
from triton_fast.channels.grpcio.stream import GrpcStream
from triton_fast.channels.native.channel import NativeChannel

KINDS = {"native": NativeChannel, "grpc": GrpcChannel}
LARGE = 5 << 20


@pytest.fixture(params=KINDS)
def make_channel(request, echo_server):
    """Return what makes channels of each kind, to the server unless told otherwise."""
    channels = []

    def make(target=None):
        channels.append(KINDS[request.param](target or echo_server.target))
        return channels[-1]

    yield make
    for channel in channels:
        channel.close()


@pytest.fixture(params=[False, True], ids=["more", "last"])
def last(request) -> bool:
    """Say whether the first message is the last one, too: channels may go another way then."""
    return request.param


def all_ids(stream) -> list[str]:
    found = []
    while answers := received(stream, within(20)):
        found += ids(answers)
    return found


def streamed_at_last(server) -> int:
    """Return how many messages the server has given to grpcio, once it waits for its reader."""
    seen = -1
    while server.counts["streamed"] != seen:
        seen = server.counts["streamed"]
        time.sleep(0.2)
    return seen


def test_a_conversation(make_channel):
    stream = make_channel().open_stream(path("StreamEcho"), StreamResponses(), CallOptions())
    for number in range(5):
        stream.send(Message(envelope(f"m{number}")), within(20))
        assert ids(received(stream, within(20))) == [f"m{number}"]
    stream.send(Message(envelope("e", error="it went wrong")))
    [answer] = received(stream)
    assert answer.error_message == "it went wrong"
    assert ids([answer]) == ["e"]
    stream.half_close()
    stream.half_close()
    assert all_ids(stream) == ["half-closed"]
    assert received(stream) == []
    with pytest.raises(errors.ClosedError):
        stream.send(Message(envelope("late")))
    stream.cancel()
    stream.cancel()


def test_the_last_message(make_channel):
    stream = make_channel().open_stream(path("StreamEcho"), StreamResponses(), CallOptions())
    stream.send(Message(envelope("first")))
    stream.send(Message(envelope("last")), last=True)
    assert all_ids(stream) == ["first", "last", "half-closed"]


def test_large_messages(make_channel):
    stream = make_channel().open_stream(path("StreamEcho"), StreamResponses(), CallOptions())
    for _ in range(3):
        stream.send(Message(envelope("x" * LARGE)), within(20))
        assert [len(name) for name in ids(received(stream, within(20)))] == [LARGE]
    stream.cancel()


def test_headers(make_channel, last):
    options = CallOptions(headers=(("authorization", "abc"),))
    stream = make_channel().open_stream(path("StreamHeaders"), StreamResponses(), options)
    stream.send(Message(envelope("")), last=last)
    told = []
    while len(told) < 1:
        told += ids(received(stream, within(20)))
    assert ["authorization", "abc"] in json.loads(told[0])
    stream.cancel()


def test_one_thread_sends_and_another_receives(make_channel):
    stream = make_channel().open_stream(path("StreamEcho"), StreamResponses(), CallOptions())
    found = []
    receiver = threading.Thread(target=lambda: found.extend(all_ids(stream)))
    receiver.start()
    for number in range(500):
        stream.send(Message(envelope(str(number))))
    stream.half_close()
    receiver.join(60)
    assert found == [*map(str, range(500)), "half-closed"]


def test_several_streams_and_calls(make_channel):
    channel = make_channel()
    wrong = []

    def work(number):
        stream = channel.open_stream(path("StreamEcho"), StreamResponses(), CallOptions())
        for n in range(30):
            stream.send(Message(envelope(f"{number}.{n}")))
        stream.half_close()
        if all_ids(stream) != [*(f"{number}.{n}" for n in range(30)), "half-closed"]:
            wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    assert call(channel, "Echo", b"x") == b"x"
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_the_error_of_a_stream(make_channel, last):
    options = CallOptions(call="ModelStreamInfer('m')")
    stream = make_channel().open_stream(path("StreamStatus"), StreamResponses(), options)
    stream.send(Message(b"3:no such input"), last=last)
    for _ in range(2):
        with pytest.raises(errors.InvalidArgument, match="no such input") as raised:
            received(stream, within(20))
    assert raised.value.call == "ModelStreamInfer('m')"
    with pytest.raises((errors.InvalidArgument, errors.ClosedError)):
        stream.send(Message(b"3:"))


def test_a_server_that_ends_the_stream(make_channel):
    stream = make_channel().open_stream(path("StreamOne"), StreamResponses(), CallOptions())
    stream.send(Message(b"x"))
    assert all_ids(stream) == ["one"]
    with pytest.raises(errors.ClosedError):
        stream.send(Message(b"x"))


def test_what_is_no_message(make_channel, last):
    stream = make_channel().open_stream(path("StreamEcho"), StreamResponses(), CallOptions())
    stream.send(Message(b"\xff\xff\xff"), last=last)
    with pytest.raises(errors.WireError):
        received(stream, within(20))
    stream.cancel()


def test_a_stream_to_nowhere(make_channel, nowhere, last):
    stream = make_channel(nowhere).open_stream(
        path("StreamEcho"), StreamResponses(), CallOptions(call="X")
    )
    failed = 0
    receive = partial(received, stream)
    for way in (lambda: stream.send(Message(b"x"), last=last), receive, receive):
        try:
            way()
        except errors.Unavailable as error:
            failed += str(error).startswith(f"X at {nowhere}")
    assert failed >= 2  # grpcio takes the first message before it knows


def test_deadlines(make_channel, echo_server, last):
    channel = make_channel()
    stream = channel.open_stream(path("StreamHold"), StreamResponses(), CallOptions())
    stream.send(Message(b"x"), last=last)
    with pytest.raises(errors.DeadlineExceeded):
        received(stream, within(0.1))
    # The call goes on, and nothing is lost.
    assert echo_server.saw("held")
    echo_server.let_go()
    assert ids(received(stream, within(20))) == ["held"]
    stream.cancel()
    whole = channel.open_stream(
        path("StreamHold"), StreamResponses(), CallOptions(deadline_ns=within(0.3))
    )
    with contextlib.suppress(errors.DeadlineExceeded):
        whole.send(Message(b"x"), last=last)
    for _ in range(2):
        with pytest.raises(errors.DeadlineExceeded):
            received(whole, within(20))


def test_a_peer_that_takes_no_messages(make_channel):
    stream = make_channel().open_stream(path("StreamHold"), StreamResponses(), CallOptions())
    stream.send(Message(b"x"), within(20))
    late = None
    for _ in range(64):  # MiB: more than any window
        try:
            stream.send(Message(bytes(1 << 20)), within(0.2))
        except errors.DeadlineExceeded as error:
            late = error
            break
    assert late is not None
    with pytest.raises(errors.ServerError):
        received(stream, within(20))


@pytest.mark.parametrize("way", ["cancel", "close"])
def test_a_stream_that_is_given_up(make_channel, echo_server, way, last):
    channel = make_channel()
    stream = channel.open_stream(path("StreamHold"), StreamResponses(), CallOptions(call="X"))
    stream.send(Message(b"x"), last=last)
    raised = []

    def receive():
        try:
            received(stream)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=receive)
    thread.start()
    assert echo_server.saw("held")
    until_blocked(thread)
    (stream.cancel if way == "cancel" else channel.close)()
    thread.join(30)
    assert type(raised[0]) is (errors.Cancelled if way == "cancel" else errors.ClosedError)
    with pytest.raises((errors.Cancelled, errors.ClosedError)):
        stream.send(Message(b"x"))
    assert echo_server.saw("stream ended")


def test_a_closed_channel_opens_no_stream(make_channel):
    channel = make_channel()
    stream = channel.open_stream(path("StreamEcho"), StreamResponses(), CallOptions())
    channel.close()
    with pytest.raises(errors.ClosedError):
        stream.send(Message(b"x"))
    with pytest.raises(errors.ClosedError):
        channel.open_stream(path("StreamEcho"), StreamResponses(), CallOptions())


def test_the_connection_breaks(make_channel, echo_server, relay, last):
    stream = make_channel(relay.target).open_stream(
        path("StreamHold"), StreamResponses(), CallOptions()
    )
    stream.send(Message(b"x"), last=last)
    assert echo_server.saw("held")
    receiving = threading.current_thread()

    def cut():
        until_blocked(receiving)
        relay.cut()

    threading.Thread(target=cut).start()
    with pytest.raises(errors.Unavailable):
        received(stream, within(60))


def readers() -> int:
    """Count the threads of the grpcio channel that read ahead."""
    return sum(thread.name == "triton_fast stream" for thread in threading.enumerate())


@pytest.mark.parametrize("way", ["cancel", "close"])
def test_answers_that_nobody_takes(make_channel, echo_server, way, last):
    """What has read them ahead, and waits for room, ends as well."""
    channel = make_channel()
    stream = channel.open_stream(path("StreamCount"), StreamResponses(), CallOptions())
    stream.send(Message(b"1000 100000"), last=last)
    received(stream, within(20))
    assert streamed_at_last(echo_server) < 1000  # what nobody receives is not asked for
    giving_up = threading.Thread(target=stream.cancel if way == "cancel" else channel.close)
    giving_up.start()
    giving_up.join(30)
    assert not giving_up.is_alive()
    assert echo_server.saw("stream ended")
    until(lambda: readers() == 0)
    with pytest.raises((errors.Cancelled, errors.ClosedError)):
        all_ids(stream)


def test_the_thread_that_reads_may_close_the_channel(echo_server, last, monkeypatch):
    """As a finaliser does that happens to run on it."""
    channel = GrpcChannel(echo_server.target)
    closed = threading.Event()
    has_enough = GrpcStream._has_enough

    def closing(stream):
        channel.close()
        closed.set()
        return has_enough(stream)

    monkeypatch.setattr(GrpcStream, "_has_enough", closing)
    stream = channel.open_stream(path("StreamCount"), StreamResponses(), CallOptions())
    stream.send(Message(b"1000 100000"), last=last)
    assert closed.wait(30)
    assert echo_server.saw("stream ended")
    with pytest.raises(errors.ClosedError):
        all_ids(stream)


def test_nothing_is_left_open(make_channel):
    channel = make_channel()

    def cycle(way):
        stream = channel.open_stream(path("StreamEcho"), StreamResponses(), CallOptions())
        stream.send(Message(envelope("a")), last=way >= 2)
        if way % 2:
            stream.half_close()
            assert all_ids(stream) == ["a", "half-closed"]
        else:
            received(stream, within(20))
            stream.cancel()

    for way in range(4):
        cycle(way)
    before = len(threads())
    for n in range(40):
        cycle(n % 4)
    # grpcio's threads end in the background, and it may have made itself one or two to keep.
    until(lambda: len(threads()) < before + 8)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_of_those_given_up(echo_server, kind, last):
    script = """
    import sys
    from support.channel_ends import Message, received
    from support.process import resident
    from support.waiting import within
    from test_channel_streams import KINDS
    from triton_fast._core._wire import StreamResponses
    from triton_fast.channels.base import CallOptions

    def give_up(count):
        for number in range(count):
            stream = channel.open_stream("/test.Echo/StreamCount", StreamResponses(), CallOptions())
            stream.send(Message(b"20 10"), last=sys.argv[3] == "last")
            if number % 2:
                received(stream, within(20))
            stream.cancel()

    channel = KINDS[sys.argv[1]](sys.argv[2])
    give_up(200)
    before = resident()
    give_up(500)
    print(resident() - before)
    channel.close()
    """
    grown = int(
        run_python(script, kind, echo_server.target, "last" if last else "more", timeout=100)
    )
    assert grown < 5 << 20  # and not 500 times 18


PROGRAM = """
    import os, signal, sys, threading, time
    from support.channel_ends import Answer, Message, received
    from support.waiting import until_blocked
    from channel_calls import ids
    from test_channel_streams import KINDS, all_ids
    from triton_fast import errors
    from triton_fast.channels.grpcio import fork as grpc_fork
    from triton_fast._core._wire import StreamResponses
    from triton_fast.channels.base import CallOptions

    kind = KINDS[sys.argv[1]]
    channel = kind(sys.argv[2])
    stream = channel.open_stream("/test.Echo/StreamHold", StreamResponses(), CallOptions())
    last = len(sys.argv) > 3 and sys.argv[-1] == "last"
    stream.send(Message(b"x"), last=last)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_may_end_with_streams_open(echo_server, kind, last):
    script = PROGRAM + "    print('over')\n"
    assert (
        run_python(script, kind, echo_server.target, "last" if last else "", quiet=True) == "over\n"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["receive", "send", "last"])
def test_ctrl_c(echo_server, kind, way):
    script = (
        PROGRAM
        + """
    def interrupt():
        # Only of a stream that has reached the server does that see the end.
        channel.call("/test.Echo/Saw", Message(b"held 1"), Answer(), CallOptions())
        until_blocked(threading.main_thread())
        os.kill(os.getpid(), signal.SIGINT)

    try:
        threading.Thread(target=interrupt).start()
        while sys.argv[3] == "send":
            stream.send(Message(bytes(1 << 20)))
        received(stream)
    except KeyboardInterrupt:
        print("interrupted")
    channel.close()
    """
    )
    assert run_python(script, kind, echo_server.target, way) == "interrupted\n"
    assert echo_server.saw("stream ended")


@pytest.mark.parametrize("kind", KINDS)
def test_forked_children(echo_server, kind, last):
    """A stream is the parent's; a child that grpcio was forked around in mid-stream has none."""
    script = (
        PROGRAM
        + """
    receiving = threading.Thread(target=lambda: received(stream, None), daemon=True)
    receiving.start()
    until_blocked(receiving)
    grpc_fork._FORK_PATIENCE_S = 0.2  # for the stream, which goes on
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        status = 1
        try:
            for way in (lambda: stream.send(Message(b"x")), lambda: received(stream),
                        stream.half_close):
                try:
                    way()
                except errors.ClosedError:
                    continue
                raise AssertionError("used")
            stream.cancel()
            mine = kind(sys.argv[2])
            echo = mine.open_stream("/test.Echo/StreamOne", StreamResponses(), CallOptions())
            try:
                echo.send(Message(b"x"), last=last)
                assert all_ids(echo) == ["one"]
            except errors.FailedPrecondition:
                assert sys.argv[1] == "grpc"
            mine.close()
            status = 0
        except BaseException as error:
            print(type(error), error, flush=True)
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    print("done")
    """
    )
    more = "last" if last else ""
    assert run_python(script, kind, echo_server.target, more, timeout=100) == "done\n"
