"""The native channel and threads: many on one channel, few connections, the interpreter's end."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time

import pytest
from channel_calls import path
from support.channel_ends import Answer, Ending, Message
from support.interpreter import environment
from support.waiting import until, until_blocked, within

from triton_fast import errors
from triton_fast.channels.base import CallOptions
from triton_fast.channels.native import channel as native
from triton_fast.channels.native.call_threads import _MOST_THREADS
from triton_fast.channels.native.channel import NativeChannel

pytestmark = pytest.mark.native

NO_OPTIONS = CallOptions()


@pytest.fixture
def native_channel(echo_server):
    channel = NativeChannel(echo_server.target)
    yield channel
    assert call(channel, "Echo", b"usable") == b"usable"
    channel.close()


@pytest.fixture
def narrow(echo_server, monkeypatch):
    """Make a channel of two connections, and have both of them busy."""
    monkeypatch.setattr(native, "MOST_CONNECTIONS", 2)
    channel = NativeChannel(echo_server.target)
    busy = [start(channel, "Hold") for _ in range(2)]
    assert echo_server.saw("held", 2)
    yield channel, busy
    channel.close()


def call(channel, method, message=b"", options=NO_OPTIONS):
    answer = Answer()
    channel.call(path(method), Message(message), answer, options)
    return answer.bytes


def start(channel, method, message=b"", options=NO_OPTIONS):
    answer, ending = Answer(), Ending()
    outgoing = Message(message)
    return channel.start(path(method), outgoing, answer, options, ending), ending, answer


def in_threads(count, work):
    """Run work(0), work(1), … at once; return what went wrong."""
    wrong = []

    def run(number):
        try:
            work(number)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def test_thirty_two_threads_wait_at_the_same_time(native_channel, echo_server):
    def work(number):
        assert call(native_channel, "Hold", b"", CallOptions(within(60))) == b"held"

    letting_go = threading.Thread(
        target=lambda: echo_server.saw("held", 32) and echo_server.let_go()
    )
    letting_go.start()
    assert in_threads(32, work) == []
    letting_go.join()


def test_thirty_two_threads_each_get_their_own_answer(native_channel):
    def work(number):
        for turn in range(60):
            size = 1_500_000 if (number + turn) % 20 == 0 else 10 + turn
            message = bytes([number]) * size
            assert call(native_channel, "Echo", message) == message
            if turn % 7 == 0:
                with pytest.raises(errors.NotFound, match=f"no {number} {turn}"):
                    call(native_channel, "Status", f"5:no {number} {turn}".encode())
            if turn % 9 == 0:
                _, ending, answer = start(native_channel, "Echo", message)
                assert ending.wait() is None
                assert answer.bytes == message

    assert in_threads(32, work) == []


def test_more_threads_than_connections(echo_server, monkeypatch):
    monkeypatch.setattr(native, "MOST_CONNECTIONS", 2)
    channel = NativeChannel(echo_server.target)

    def work(number):
        for turn in range(40):
            message = b"%d %d" % (number, turn)
            assert call(channel, "Echo", message, CallOptions(within(30))) == message

    assert in_threads(16, work) == []
    channel.close()


def test_deadlines_hold_while_connections_are_busy(narrow, echo_server):
    channel, busy = narrow
    with pytest.raises(errors.DeadlineExceeded, match="waiting for a connection"):
        call(channel, "Echo", b"x", CallOptions(within(0.5)))
    echo_server.let_go()
    assert call(channel, "Echo", b"x", CallOptions(within(30))) == b"x"
    for _, ending, answer in busy:
        assert ending.wait() is None
        assert answer.bytes == b"held"


def until_threads_are_blocked():
    """Wait until the threads for calls that nobody waits for wait themselves."""
    for thread in threading.enumerate():
        if thread.name == "triton_fast":
            until_blocked(thread)


def test_cancelling_while_connections_are_busy(narrow):
    channel, _ = narrow
    waiting, ending, _ = start(channel, "Echo", b"x")
    until_threads_are_blocked()
    waiting.cancel()
    assert isinstance(ending.wait(), errors.Cancelled)


def test_closing_while_connections_are_busy(narrow):
    channel, busy = narrow
    waiting = [start(channel, "Echo", b"x") for _ in range(4)]
    blocked = []
    thread = threading.Thread(
        target=lambda: blocked.extend(in_threads(4, lambda _: call(channel, "Echo")))
    )
    thread.start()
    until_threads_are_blocked()
    until_blocked(thread)
    channel.close()
    for _, ending, _ in [*busy, *waiting]:
        assert isinstance(ending.wait(), errors.ClosedError)
    thread.join()
    assert [type(error) for error in blocked] == [errors.ClosedError] * 4


@pytest.fixture
def crowded(echo_server):
    """Make a channel whose threads are all busy with calls that nobody waits for."""
    channel = NativeChannel(echo_server.target)
    running = [start(channel, "Hold") for _ in range(_MOST_THREADS)]
    assert echo_server.saw("held", _MOST_THREADS)
    yield channel
    for sleeping, _, _ in running:
        sleeping.cancel()
    for _, ending, _ in running:
        assert isinstance(ending.wait(), errors.Cancelled)
    assert call(channel, "Echo", b"usable") == b"usable"
    _, ending, answer = start(channel, "Echo", b"usable")
    assert ending.wait() is None
    assert answer.bytes == b"usable"
    channel.close()


def test_deadlines_hold_while_threads_are_busy(crowded):
    started = time.monotonic()
    seconds = [0.5, 0.9, 0.3, 0.7]
    endings = [start(crowded, "Echo", b"x", CallOptions(within(s)))[1] for s in seconds]
    took = {}
    for limit, ending in sorted(zip(seconds, endings, strict=True)):
        assert isinstance(ending.wait(), errors.DeadlineExceeded)
        took[limit] = time.monotonic() - started
    assert all(limit - 0.01 < t for limit, t in took.items()), took


def test_cancelling_while_threads_are_busy(crowded):
    waiting = [
        start(crowded, "Echo", b"x", CallOptions(deadline)) for deadline in (None, within(90))
    ]
    for call, ending, _ in reversed(waiting):
        call.cancel()
        call.cancel()
        assert isinstance(ending.wait(), errors.Cancelled)


def test_turns_come_when_threads_are_free(echo_server):
    channel = NativeChannel(echo_server.target)
    count = 3 * _MOST_THREADS
    begun = [start(channel, "Hold", b"", CallOptions(within(100))) for _ in range(count)]
    for turn in (1, 2, 3):
        assert echo_server.saw("held", turn * _MOST_THREADS)
        assert call(channel, "Echo", b"x") == b"x"  # whoever waits has a thread
        assert echo_server.counts["held"] == turn * _MOST_THREADS
        echo_server.let_go()
    assert [ending.wait() for _, ending, _ in begun] == [None] * count
    assert {answer.bytes for _, _, answer in begun} == {b"held"}
    channel.close()


def test_starting_against_closing(echo_server):
    """Each call ends once, whichever comes first."""
    for _ in range(100):
        channel = NativeChannel(echo_server.target)
        endings = []
        go = threading.Barrier(3)

        def work(channel=channel, endings=endings, go=go):
            go.wait()
            for _ in range(5):
                try:
                    endings.append(start(channel, "Echo", b"x")[1])
                except errors.ClosedError:
                    return

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        go.wait()
        channel.close()
        for thread in threads:
            thread.join()
        for ending in endings:
            error = ending.wait()
            assert error is None or isinstance(error, errors.ClosedError)
            assert len(ending.errors) == 1


# The end of the interpreter -----------------------------------------------------------------------

BEGIN = """
    import os, sys, threading, time
    from support.channel_ends import Answer, Ending, Message
    from triton_fast import errors
    from triton_fast.channels.base import CallOptions
    from triton_fast.channels.native.channel import NativeChannel

    channel = NativeChannel(sys.argv[1])

    def call(method="Echo", message=b"x" * 1000):
        answer = Answer()
        channel.call("/test.Echo/" + method, Message(message), answer, CallOptions())

    def start(method="Echo", message=b"x" * 1000):
        return channel.start("/test.Echo/" + method, Message(message), Answer(), CallOptions(),
                             Ending())

    def forever(work):
        while True:  # until it is no more; an error would be printed
            work()

    def daemons(work, count=4):
        for _ in range(count):
            threading.Thread(target=forever, args=(work,), daemon=True).start()

    call()
"""
ENDS = {
    "calls": "daemons(call)",
    "large calls": "daemons(lambda: call(message=bytes(3_000_000)))",
    "waiting": "daemons(lambda: call('Hold'))",
    "started": "pending = [start('Hold') for _ in range(40)]",
    "starting": "daemons(lambda: (start(), time.sleep(0.001)))",
    "new connections": """daemons(lambda: NativeChannel(sys.argv[1]).call(
        "/test.Echo/Echo", Message(b"x"), Answer(), CallOptions()))""",
    "another thread": """threading.Thread(target=lambda: (time.sleep(0.3), call())).start()""",
    "in a cycle": "channel.itself = [channel, start('Hold')]",
}


STATUSES = (0, 7)


@pytest.mark.parametrize("ending", list(ENDS))
def test_the_interpreter_ends_with_calls_running(echo_server, ending):
    """No crash, no hang, not a word, and its exit status: no call is ended for it to fail."""
    script = textwrap.dedent(BEGIN) + textwrap.dedent(ENDS[ending]) + "\ntime.sleep(0.2)\n"
    programs = [
        subprocess.Popen(
            [sys.executable, "-X", "dev", "-c", f"{script}sys.exit({status})", echo_server.target],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for status in STATUSES
    ]
    for program, status in zip(programs, STATUSES, strict=True):
        try:
            output, _ = program.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            program.kill()
            program.communicate()
            raise
        assert (program.returncode, output.decode()) == (status, "")


def test_idle_connections_are_closed_after_a_while(monkeypatch, relay):
    """Without a call that would notice."""
    monkeypatch.setattr(native, "_IDLE_NS", 3 * 10**8)
    channel = NativeChannel(relay.target)
    call(channel, "Echo")
    until(lambda: relay.ended == 1)
    assert call(channel, "Echo", b"again") == b"again"
    assert relay.accepted == 2
    channel.close()


def test_a_connection_on_which_nothing_comes_is_not_used_again(relay):
    """A router has forgotten it, say; calls that end sooner than any ping would never notice."""
    channel = NativeChannel(relay.target)
    call(channel, "Echo")
    relay.forget()
    with pytest.raises(errors.DeadlineExceeded):
        call(channel, "Echo", options=CallOptions(within(0.3)))
    assert call(channel, "Echo", b"again", CallOptions(within(30))) == b"again"
    assert relay.accepted == 2
    channel.close()
