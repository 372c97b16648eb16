"""Who reads a stream when, and who is woken: threads, then tasks, on a channel that the test plays.

Both faces are to do the same; what cannot be shown on a real server, because it is about who comes
first, is shown here.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque

import numpy as np
import pytest
from stream_messages import message
from support.waiting import until, until_async

from triton_fast import (
    Cancelled,
    ClosedError,
    DeadlineExceeded,
    Internal,
    ResourceExhausted,
    Unavailable,
)
from triton_fast.channels import waiting as thread_waiting
from triton_fast.channels.base import CallOptions
from triton_fast.inference.request import prepare_streamed
from triton_fast.inference.tensor import input_tensor
from triton_fast.protocol.grpc.codec import GRPC
from triton_fast.protocol.messages import message_class
from triton_fast.streaming import stream_state
from triton_fast.streaming.stream import Stream
from triton_fast.streaming.stream_async import AsyncStream
from triton_fast.streaming.stream_state import PATIENCE_NS

# How long what must happen may take on a busy machine, in seconds.
LONG = 60.0
SHORT_NS = 2_000_000
ONE = {"x": np.zeros(1, np.float32)}
OPTIONS = CallOptions(call="ModelStreamInfer")
# What an answer of the tests counts for.
SIZE = 1024 + 8


class Channel:
    """A channel's stream: what it receives is put in by the test."""

    def __init__(self):
        self.ids = []  # of the requests, as they were sent
        self.incoming = deque()  # lists of answers, or exceptions
        self.receives = 0  # how many are waiting, or have been
        self.cancelled = False
        self.half_closed = False
        self.send_failure = None
        self.interruption = None  # raised when messages have been taken

    def note(self, outgoing, last):
        if self.send_failure is not None:
            raise self.send_failure
        assert not self.half_closed
        request = message_class("ModelInferRequest").FromString(outgoing.render())
        assert request.parameters["triton_enable_empty_final_response"].bool_param
        self.ids.append(request.id)
        self.half_closed = last

    def next(self):
        found = self.incoming.popleft()
        if isinstance(found, BaseException):
            raise found
        return found


class ThreadChannel(Channel):
    def __init__(self):
        super().__init__()
        self.changed = threading.Condition()

    def send(self, outgoing, deadline_ns=None, *, last=False):
        self.note(outgoing, last)

    def half_close(self):
        self.half_closed = True

    def put(self, *found):
        with self.changed:
            self.incoming.extend(found)
            self.changed.notify_all()

    def receive(self, into, deadline_ns=None):
        with self.changed:
            self.receives += 1
            while not self.incoming:
                if self.cancelled:
                    raise Cancelled("the call was cancelled")
                left = None if deadline_ns is None else (deadline_ns - time.monotonic_ns()) * 1e-9
                if left is not None and left <= 0:
                    raise DeadlineExceeded("the deadline passed before there was an answer")
                self.changed.wait(left)
            into.extend(self.next())
        if self.interruption is not None:
            interruption, self.interruption = self.interruption, None
            raise interruption

    def cancel(self):
        with self.changed:
            self.cancelled = True
            self.changed.notify_all()


@pytest.fixture
def played_channel():
    channel = ThreadChannel()
    yield channel
    channel.incoming.clear()


def tensors(_prepared, inputs, _options):
    return [input_tensor(name, value) for name, value in inputs.items()]


def explain(*_):
    raise AssertionError("nothing is refused here")


def forget(stream):
    """Let go of what nobody has read: pytest keeps the stream for a while."""
    vars(stream._state._demux).clear()
    stream._state.inbox.clear()
    stream._state.failure = ClosedError("the stream was closed")


@pytest.fixture
def stream(played_channel):
    with Stream(played_channel, OPTIONS, "host:1", tensors, 10 * SIZE, GRPC, explain) as stream:
        yield stream
    forget(stream)


class Waiting(threading.Thread):
    """A thread that asks for an answer, or for whatever else."""

    def __init__(self, work):
        super().__init__()
        self.work = work
        self.start()

    def run(self):
        try:
            self.found = self.work()
        except Exception as error:
            self.found = error

    def result(self):
        self.join(LONG)
        assert not self.is_alive()
        return self.found


def one_reads(channel, stream, first, second):
    """Return two threads that ask for answers: one reads, and the other waits for it."""
    reader = Waiting(lambda: next(first))
    until(lambda: channel.receives == 1)
    other = Waiting(lambda: next(second))
    until(lambda: stream._waiters)
    return reader, other


class Clock:
    """Stands for the module `time` where patience is measured: it goes on when the test says so."""

    def __init__(self):
        self.now = 10**15
        self.looks = 0

    def monotonic_ns(self):
        self.looks += 1
        return self.now


def value(result):
    return result["y"].item()


# Threads ------------------------------------------------------------------------------------------


def test_one_thread_reads_for_all(played_channel, stream):
    made = [stream.stream("m", ONE) for _ in range(8)]
    waiting = [Waiting(lambda one=one: next(one)) for one in made]
    until(lambda: len(stream._waiters) == 7)
    assert played_channel.receives == 1
    # One after the other, and none to the one who reads.
    for number in range(7, 0, -1):
        played_channel.put([message(played_channel.ids[number], number)])
    assert [value(one.result()) for one in waiting[1:]] == list(range(1, 8))
    played_channel.put([message(played_channel.ids[0], 0)])
    assert value(waiting[0].result()) == 0


def test_another_thread_goes_on_reading(played_channel, stream):
    """When the one who read has its answer, has no more time, or has met an error."""
    first, second = stream.stream("m", ONE, timeout=0.3), stream.stream("m", ONE)
    reader = Waiting(lambda: next(first))
    until(lambda: played_channel.receives == 1)
    other = Waiting(lambda: next(second))
    assert isinstance(reader.result(), DeadlineExceeded)
    until(lambda: played_channel.receives == 2)
    played_channel.put([message(played_channel.ids[0], 1), message(played_channel.ids[1], 2)])
    assert value(other.result()) == 2
    assert value(next(first)) == 1  # late: it is there for who asks again


def test_a_reader_that_is_interrupted_leaves_its_turn(played_channel, stream):
    first, second = stream.stream("m", ONE), stream.stream("m", ONE)
    reader, other = one_reads(played_channel, stream, first, second)
    played_channel.put(ZeroDivisionError())  # as a signal's handler may raise anything
    assert isinstance(reader.result(), ZeroDivisionError)
    played_channel.put([message(played_channel.ids[0], 1), message(played_channel.ids[1], 2)])
    assert value(other.result()) == 2
    assert value(next(first)) == 1


def test_an_interruption_when_answers_have_arrived(played_channel, stream):
    """A signal's handler raises when the channel has handed them over: the next reader has them."""
    first, second = stream.stream("m", ONE), stream.stream("m", ONE)
    played_channel.interruption = ZeroDivisionError()
    reader, other = one_reads(played_channel, stream, first, second)
    played_channel.put([message(played_channel.ids[0], 1), message(played_channel.ids[1], 2)])
    assert isinstance(reader.result(), ZeroDivisionError)
    assert value(other.result()) == 2
    assert repr(first) == "<ResponseStream of ModelStreamInfer('m'); unread: 1>"
    assert value(next(first)) == 1
    assert played_channel.receives == 1


def test_an_interruption_while_answers_are_handed_out(played_channel, stream, monkeypatch):
    """Some are lost, so all requests end: none is to wait for ever, or to miss one in silence."""
    first, second = stream.stream("m", ONE), stream.stream("m", ONE)
    deliver = stream._state.deliver

    def interrupted(answers):
        deliver(answers[:1])
        raise ZeroDivisionError

    monkeypatch.setattr(stream._state, "deliver", interrupted)
    reader, other = one_reads(played_channel, stream, first, second)
    played_channel.put([message(played_channel.ids[1], 2), message(played_channel.ids[0], 1)])
    assert isinstance(reader.result(), ZeroDivisionError)
    assert value(other.result()) == 2
    for one in (first, second):
        with pytest.raises(Cancelled, match="interrupted"):
            next(one)
    assert played_channel.cancelled
    with pytest.raises(Cancelled, match="interrupted"):
        stream.send("m", ONE)


@pytest.fixture
def only_woken(monkeypatch):
    """Have nobody look by itself: who waits is woken, or the test finds that it is not."""
    monkeypatch.setattr(thread_waiting, "LOOK_S", 100 * LONG)
    monkeypatch.setattr(stream_state, "PATIENCE_NS", round(100e9 * LONG))


def starved(channel, stream):
    """Return a request of which twelve answers are unread, and one that waits for room for its."""
    unread, other = stream.stream("m", ONE), stream.stream("m", ONE)
    channel.put([message(channel.ids[0], number) for number in range(12)])
    channel.put([message(channel.ids[1], 99)])
    waiting = Waiting(lambda: next(other))
    until(lambda: stream._waiters)
    assert stream._state.starved
    return unread, waiting


def test_who_waits_for_room_is_woken(played_channel, stream, only_woken):
    unread, waiting = starved(played_channel, stream)
    # Twelve are unread, and there is room for fewer than ten: it takes three.
    for number in range(3):
        assert len(stream._waiters) == 1
        assert played_channel.receives == 1
        assert value(next(unread)) == number
    assert value(waiting.result()) == 99
    assert played_channel.receives == 2
    assert value(next(unread)) == 3


def test_who_waits_for_room_is_woken_by_those_who_receive_by_hand(
    played_channel, stream, only_woken
):
    other = stream.stream("m", ONE)
    stream.send("m", ONE)
    played_channel.put([message(played_channel.ids[1], number) for number in range(12)])
    played_channel.put([message(played_channel.ids[0], 99)])
    waiting = Waiting(lambda: next(other))
    until(lambda: stream._waiters)
    for number in range(3):
        assert value(stream.receive()) == number
    assert value(waiting.result()) == 99


def test_who_waits_for_room_is_woken_when_a_request_is_dropped(played_channel, stream, only_woken):
    unread, waiting = starved(played_channel, stream)
    unread.close()
    assert value(waiting.result()) == 99


def test_patience_ends_and_begins_anew(played_channel, stream, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stream_state, "time", clock)
    monkeypatch.setattr(thread_waiting, "LOOK_S", 0.001)

    def looked_again():
        looks = clock.looks
        until(lambda: clock.looks >= looks + 3 or not waiting.is_alive())

    unread, waiting = starved(played_channel, stream)
    clock.now += PATIENCE_NS - 1
    looked_again()
    assert waiting.is_alive()
    clock.now += 1
    error = waiting.result()
    assert isinstance(error, ResourceExhausted)
    assert f"{12 * SIZE} bytes of answers" in str(error)
    # While others read, or read for it, it has all the patience there is.
    played_channel.incoming.clear()
    other = stream.stream("m", ONE)
    waiting = Waiting(lambda: next(other))
    until(lambda: stream._waiters)
    clock.now += PATIENCE_NS - 1
    looked_again()
    for _ in range(3):
        next(unread)
    until(lambda: played_channel.receives == 2)
    clock.now += PATIENCE_NS - 1
    played_channel.put([message(played_channel.ids[0], 12) for _ in range(3)])
    until(lambda: stream._state.starved)
    looked_again()
    clock.now += PATIENCE_NS - 1
    looked_again()
    assert waiting.is_alive()
    unread.close()
    played_channel.put([message(played_channel.ids[2], 99)])
    assert value(waiting.result()) == 99


def test_the_end_wakes_all(played_channel, stream):
    made = [stream.stream("m", ONE) for _ in range(5)]
    stream.send("m", ONE)
    waiting = [Waiting(lambda one=one: next(one)) for one in made]
    waiting.append(Waiting(stream.receive))
    until(lambda: len(stream._waiters) == 5)
    played_channel.put([])
    for one in waiting:
        assert isinstance(one.result(), Unavailable)
    assert stream.receive() is None
    with pytest.raises(StopIteration):
        next(made[0])
    # It may be raised any number of times, and keeps to the last.
    for _ in range(3):
        with pytest.raises(Unavailable) as caught:
            stream.send("m", ONE)
    assert len(caught.traceback) < 6


def test_a_request_that_is_not_sent(played_channel, stream):
    before = stream.stream("m", ONE)
    played_channel.send_failure = Unavailable("the connection broke")
    with pytest.raises(Unavailable):
        stream.stream("m", ONE)
    played_channel.put([message(played_channel.ids[0], 1, final=True)])
    assert [value(one) for one in before] == [1]  # what has come may be read
    played_channel.send_failure = DeadlineExceeded("not in time")
    with pytest.raises(DeadlineExceeded):
        stream.send("m", ONE)
    assert stream.receive() is None
    played_channel.send_failure = None
    with pytest.raises(DeadlineExceeded):  # a part of it may be on its way
        stream.send("m", ONE)


def test_requests_of_their_own_see_the_end(played_channel):
    with Stream(played_channel, OPTIONS, "host:1", tensors, 10 * SIZE, GRPC, explain) as alone:
        prepared = prepare_streamed(GRPC, "m", "", None, None, 0, None)
        made = alone._make(prepared, ONE, "", last=True)
        assert played_channel.half_closed
        played_channel.put([message(played_channel.ids[0], 1, final=True)], [])
        assert [value(one) for one in made] == [1]
        assert played_channel.receives == 2  # the end too, so that the connection can be used again
        with pytest.raises(ClosedError):
            alone.send("m", ONE)
    forget(alone)


# Refusals, whose explanation takes a call ---------------------------------------------------------


class Explaining:
    """What finds out more about refusals; it does as it is told."""

    def __init__(self):
        self.asked = []
        self.does = lambda: None

    def __call__(self, error, prepared, tensors, options):
        self.asked.append((error.message, prepared.model_name, tensors[0].payload, options))
        self.does()

    async def later(self, *arguments):
        self(*arguments)
        await asyncio.sleep(self.takes)

    takes = 0


def refused(channel, times=1):
    channel.put([message(one, error="no", final=True) for one in channel.ids[-times:]])


def test_a_refusal_is_told_though_its_explanation_is_interrupted(played_channel):
    found = Explaining()
    with Stream(played_channel, OPTIONS, "host:1", tensors, 10 * SIZE, GRPC, found) as stream:

        def interrupt():
            found.does = lambda: None
            raise KeyboardInterrupt

        made = stream.stream("m", ONE)
        refused(played_channel)
        found.does = interrupt
        with pytest.raises(KeyboardInterrupt):
            next(made)
        with pytest.raises(Internal, match="no"):
            next(made)
        with pytest.raises(StopIteration):
            next(made)
        stream.send("m", ONE)
        refused(played_channel)
        found.does = interrupt
        with pytest.raises(KeyboardInterrupt):
            stream.receive()
        with pytest.raises(Internal, match="no"):
            stream.receive()
        assert stream.receive() is None
        assert [about[:3] for about in found.asked] == [("no", "m", None)] * 4


def test_an_explanation_has_no_longer_than_who_waits(played_channel, monkeypatch):
    """And where one took long, there are no more."""
    found = Explaining()
    with Stream(played_channel, OPTIONS, "host:1", tensors, 10 * SIZE, GRPC, found) as stream:
        began = time.monotonic_ns()
        stream.send("m", ONE)
        made = stream.stream("m", ONE, timeout=5)
        refused(played_channel, 2)
        with pytest.raises(Internal):
            stream.receive(timeout=7)
        monkeypatch.setattr(stream_state, "_SLOW_NS", 0)
        with pytest.raises(Internal):
            next(made)
        by = [options.deadline_ns - began for *_, options in found.asked]
        assert 7e9 <= by[0] < 7e9 + LONG * 1e9
        assert 5e9 <= by[1] < 5e9 + LONG * 1e9
        stream.send("m", ONE)
        refused(played_channel)
        with pytest.raises(Internal):
            stream.receive()
        assert len(found.asked) == 2


# Tasks --------------------------------------------------------------------------------------------


class TaskChannel(Channel):
    def __init__(self):
        super().__init__()
        self.event = asyncio.Event()

    async def send(self, outgoing, deadline_ns=None, *, last=False):
        self.note(outgoing, last)  # which may raise, as for threads

    def put(self, *found):
        self.incoming.extend(found)
        self.event.set()

    async def receive(self, deadline_ns=None):
        self.receives += 1
        while not self.incoming:
            self.event.clear()
            await self.event.wait()
        return self.next()

    def cancel(self):
        self.cancelled = True


def on_a_loop(test, explain=explain):
    """Have a test run as a task, with a channel and a stream."""

    def run():
        async def main():
            channel = TaskChannel()

            async def opening():
                return channel, OPTIONS

            async def inputs(*arguments):
                return tensors(*arguments)

            async with AsyncStream(opening, "host:1", inputs, 10 * SIZE, GRPC, explain) as stream:
                await asyncio.wait_for(test(channel, stream), LONG)

        asyncio.run(main())

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


async def asked(stream):
    """Return a request that has been sent."""
    made = stream.stream("m", ONE)
    await made._send()
    return made


@on_a_loop
async def test_one_task_reads_for_all(played_channel, stream):
    made = [await asked(stream) for _ in range(8)]
    waiting = [asyncio.ensure_future(anext(one)) for one in made]
    await until_async(lambda: len(stream._waiters) == 7)
    assert played_channel.receives == 1
    for number in range(7, 0, -1):
        played_channel.put([message(played_channel.ids[number], number)])
    assert [value(await one) for one in waiting[1:]] == list(range(1, 8))
    waiting[0].cancel()
    played_channel.put([message(played_channel.ids[1], 1)])
    assert value(await anext(made[1])) == 1


@on_a_loop
async def test_a_tasks_request_that_is_not_sent(played_channel, stream):
    before = await asked(stream)
    played_channel.send_failure = Unavailable("the connection broke")
    with pytest.raises(Unavailable):
        await stream.send("m", ONE)
    played_channel.put([message(played_channel.ids[0], 1, final=True)])
    assert [value(one) async for one in before] == [1]
    played_channel.send_failure = DeadlineExceeded("not in time")
    with pytest.raises(DeadlineExceeded):
        await stream.send("m", ONE)
    played_channel.send_failure = None
    with pytest.raises(DeadlineExceeded):  # a part of it may be on its way
        await stream.send("m", ONE)
    assert played_channel.cancelled


async def waking(channel, stream):
    unread, other = await asked(stream), await asked(stream)
    channel.put([message(channel.ids[0], number) for number in range(12)])
    channel.put([message(channel.ids[1], 99)])
    waiting = asyncio.ensure_future(anext(other))
    await until_async(lambda: stream._waiters)
    for number in range(3):
        assert not any(waiter.done() for waiter in stream._waiters)
        assert channel.receives == 1
        assert value(await anext(unread)) == number
    assert value(await waiting) == 99
    assert channel.receives == 2


def test_a_task_that_waits_for_room_is_woken(only_woken):
    on_a_loop(waking)()


async def patience(channel, stream, clock):
    async def looked_again():
        looks = clock.looks
        await until_async(lambda: clock.looks >= looks + 3 or waiting.done())

    unread, other = await asked(stream), await asked(stream)
    channel.put([message(channel.ids[0], number) for number in range(12)])
    waiting = asyncio.ensure_future(anext(other))
    await until_async(lambda: stream._waiters)
    clock.now += SHORT_NS - 1
    await looked_again()
    assert not waiting.done()
    clock.now += 1
    with pytest.raises(ResourceExhausted, match=f"{12 * SIZE} bytes of answers"):
        await waiting
    waiting = asyncio.ensure_future(anext(other))
    await until_async(lambda: stream._waiters)
    clock.now += SHORT_NS - 1
    for _ in range(3):
        await anext(unread)
    await until_async(lambda: channel.receives == 2)
    clock.now += SHORT_NS - 1
    channel.put([message(channel.ids[0], 12) for _ in range(3)])
    await until_async(lambda: stream._waiters or waiting.done())
    clock.now += SHORT_NS - 1
    await looked_again()
    assert not waiting.done()
    await unread.aclose()
    channel.put([message(channel.ids[1], 99)])
    assert value(await waiting) == 99


def test_a_tasks_patience_ends_and_begins_anew(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stream_state, "time", clock)
    # A task that waits looks at the clock after as long as it has patience left.
    monkeypatch.setattr(stream_state, "PATIENCE_NS", SHORT_NS)
    on_a_loop(lambda channel, stream: patience(channel, stream, clock))()


def test_a_refusal_is_told_though_the_task_was_cancelled_in_its_explanation():
    found = Explaining()
    found.takes = 30

    async def work(channel, stream):
        await stream.send("m", ONE)
        refused(channel)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stream.receive(), 0.05)
        found.takes = 0
        with pytest.raises(Internal, match="no"):
            await stream.receive()
        assert await stream.receive() is None

    on_a_loop(work, found.later)()
