"""When what the server has not seen is sent again: the rule, and streams that go by it."""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from collections import deque

import pytest

from triton_fast import Cancelled, DeadlineExceeded, InvalidArgument, Unavailable
from triton_fast.channels.unseen import Unseen
from triton_fast.inference.request import prepare_streamed
from triton_fast.protocol.grpc.codec import GRPC
from triton_fast.protocol.messages import message_class
from triton_fast.streaming.final_answers import FinalAnswers
from triton_fast.streaming.repeated_stream import RepeatedStream
from triton_fast.streaming.repeated_stream_async import AsyncRepeatedStream


def unseen():
    return Unavailable("the server is going away", safe_to_retry=True)


# The rule -----------------------------------------------------------------------------------------


def test_without_a_deadline_it_is_tried_32_times_and_less_and_less_often():
    rule = Unseen(None)
    pauses = [rule.pause(unseen()) for _ in range(31)]
    assert pauses[:4] == [0, 0.001, 0.002, 0.004]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 0.1
    last = unseen()
    assert rule.pause(last) is None
    assert str(last) == "UNAVAILABLE: the server is going away (tried 32 times)"
    assert last.args == (last.message,)


def test_with_a_deadline_it_is_tried_until_then():
    rule = Unseen(time.monotonic_ns() + 60 * 10**9)
    assert [rule.pause(unseen()) for _ in range(100)].count(None) == 0
    rule = Unseen(time.monotonic_ns())
    once, twice = unseen(), unseen()
    assert (rule.pause(once), once.message) == (None, "the server is going away")
    assert (rule.pause(twice), twice.message) == (
        None,
        "the server is going away (tried 2 times)",
    )


def test_a_deadline_that_passes_in_a_further_try_says_why_there_was_one():
    rule = Unseen(None)
    late = DeadlineExceeded("the deadline passed")
    assert (rule.pause(late), late.message) == (None, "the deadline passed")
    rule.pause(unseen())
    assert rule.pause(late) is None
    assert late.message == (
        "the deadline passed (once before, it was not taken: the server is going away)"
    )
    theirs = InvalidArgument("no")
    assert (rule.pause(theirs), theirs.message) == (None, "no")  # the server's own words


# Streams ------------------------------------------------------------------------------------------


class Message:
    def __init__(self, content):
        self.content = content
        self.byte_size = len(content)

    def render(self):
        return self.content


class Channel:
    """Streams that are opened in turn: what comes of each is put in by the test.

    Of a stream, ``ends`` has what its receives come to: a list of messages, or an exception.
    """

    def __init__(self, *ends):
        self.ends = deque(ends)
        self.opened = []

    def open(self):
        stream = Played(self.ends.popleft())
        self.opened.append(stream)
        return stream

    def open_async(self):
        return Awaited(self.open())


class Played:
    def __init__(self, ends):
        self.ends = deque(ends)
        self.sent = []
        self.cancelled = False

    def send(self, outgoing, deadline_ns=None, *, last=False):
        self.sent.append((outgoing.render(), last))
        if self.ends and self.ends[0] == "send":
            self.ends.popleft()
            raise self.ends.popleft()

    def half_close(self):
        self.sent.append("half closed")
        if self.ends and self.ends[0] == "half close":
            self.ends.popleft()
            raise self.ends.popleft()

    def receive(self, into, deadline_ns=None):
        found = self.ends.popleft()
        if isinstance(found, BaseException):
            raise found
        into.extend(found)

    def cancel(self):
        self.cancelled = True


class Awaited:
    """A played stream, for coroutines."""

    def __init__(self, stream):
        self.stream = stream
        self.cancel = stream.cancel

    async def send(self, *arguments, **more):
        self.stream.send(*arguments, **more)

    async def half_close(self):
        self.stream.half_close()

    async def receive(self, deadline_ns=None):
        into = []
        self.stream.receive(into, deadline_ns)
        return into


class Blocking:
    """An `AsyncRepeatedStream` as if it were a `RepeatedStream`."""

    def __init__(self, channel, *more):
        self._runner = asyncio.Runner()
        self._stream = AsyncRepeatedStream(channel.open_async, None, *more)
        self.cancel = self._stream.cancel

    def send(self, *arguments, **more):
        self._runner.run(self._stream.send(*arguments, **more))

    def half_close(self):
        self._runner.run(self._stream.half_close())

    def receive(self, into):
        into.extend(self._runner.run(self._stream.receive()))

    def close(self):
        self._runner.close()


@pytest.fixture(params=["threads", "coroutines"])
def repeated_stream(request):
    """Return a function that makes a repeated stream on a channel."""
    made = []

    def make(channel, *more):
        if request.param == "threads":
            return RepeatedStream(channel.open, None, *more)
        made.append(Blocking(channel, *more))
        return made[-1]

    yield make
    for stream in made:
        stream.close()


def received(stream):
    into = []
    stream.receive(into)
    return into


def test_a_stream_begins_again_with_what_was_sent(repeated_stream):
    channel = Channel([unseen()], ["send", unseen()], [unseen()], [["answer"], []])
    stream = repeated_stream(channel)
    stream.send(Message(b"one"))
    stream.send(Message(b"two"))
    stream.half_close()
    assert received(stream) == ["answer"]
    whole = [(b"one", False), (b"two", False), "half closed"]
    assert [one.sent for one in channel.opened] == [whole, whole[:1], whole, whole]
    assert [one.cancelled for one in channel.opened] == [False, True, False, False]
    assert received(stream) == []


def test_the_last_message_is_the_last_one_again(repeated_stream):
    channel = Channel([unseen()], [["answer"]])
    stream = repeated_stream(channel)
    stream.send(Message(b"one"), last=True)
    assert received(stream) == ["answer"]
    assert [one.sent for one in channel.opened] == [[(b"one", True)]] * 2


def test_closing_one_half_of_a_stream_that_has_failed_meanwhile(repeated_stream):
    channel = Channel(["half close", unseen(), unseen()], [["answer"]])
    stream = repeated_stream(channel)
    stream.send(Message(b"one"))
    stream.half_close()
    assert received(stream) == ["answer"]
    assert channel.opened[1].sent == [(b"one", False), "half closed"]


def test_a_message_that_is_being_sent_is_sent_again_however_large(repeated_stream):
    channel = Channel(["send", unseen()], [unseen()])
    stream = repeated_stream(channel)
    large = bytes(5 << 20)
    stream.send(Message(large))
    assert [one.sent for one in channel.opened] == [[(large, False)]] * 2
    with pytest.raises(Unavailable):  # there is no copy of it
        received(stream)


@pytest.mark.parametrize("error", [Unavailable("the connection broke"), InvalidArgument("no")])
def test_a_stream_that_the_server_may_have_seen_fails(repeated_stream, error):
    stream = repeated_stream(Channel([error]))
    stream.send(Message(b"one"))
    with pytest.raises(type(error)) as caught:
        received(stream)
    assert caught.value is error
    assert caught.value.__context__ is None


def test_a_stream_that_was_answered_fails(repeated_stream):
    stream = repeated_stream(Channel([["answer"], unseen()]))
    stream.send(Message(b"one"))
    assert received(stream) == ["answer"]
    with pytest.raises(Unavailable):
        received(stream)


def test_a_stream_that_is_cancelled_does_not_begin_again(repeated_stream):
    channel = Channel([unseen()])
    stream = repeated_stream(channel)
    stream.send(Message(b"one"))
    stream.cancel()
    with pytest.raises(Unavailable):
        received(stream)
    assert channel.opened[0].cancelled


def test_two_threads_begin_a_stream_again_once():
    """Whoever sends meets the failure first, and whoever receives goes on with what that began."""
    failed, going_on = threading.Event(), threading.Event()

    class Meeting(Played):
        def send(self, outgoing, deadline_ns=None, *, last=False):
            super().send(outgoing, deadline_ns, last=last)
            if len(self.sent) == 2:
                failed.set()
                assert going_on.wait(30)
                raise unseen()

        def receive(self, into, deadline_ns=None):
            assert failed.wait(30)
            going_on.set()
            raise unseen()

    streams = deque([Meeting([]), Played([["answer"]])])
    opened = []

    def open_stream():
        opened.append(streams.popleft())
        return opened[-1]

    stream = RepeatedStream(open_stream, None)
    stream.send(Message(b"one"))
    found = []
    reader = threading.Thread(target=lambda: stream.receive(found))
    reader.start()
    stream.send(Message(b"two"))
    reader.join(30)
    assert found == ["answer"]
    assert [one.sent for one in opened] == [[(b"one", False), (b"two", False)]] * 2


def test_cancelling_while_it_begins_again():
    begun = threading.Event()

    class Held(Played):
        def send(self, outgoing, deadline_ns=None, *, last=False):
            begun.set()
            while not self.cancelled:
                time.sleep(0.001)
            raise Cancelled("the call was cancelled")

    streams = deque([Played([unseen()]), Held([])])
    stream = RepeatedStream(streams.popleft, None)
    stream.send(Message(b"one"))
    failures = []

    def read():
        try:
            stream.receive([])
        except Cancelled as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(30)
    stream.cancel()
    reader.join(30)
    assert len(failures) == 1


# A server that refuses the wish for the last answer's mark ----------------------------------------


RESERVED = "parameter keys starting with 'triton_' are reserved for Triton usage and should not be"


class Told:
    def __init__(self, error=""):
        self.error_message = error


def asking(content=b"content"):
    """Return a request as `client.stream` makes it, and the same without its wish."""
    made = message_class("ModelInferRequest")(model_name="m", id="i")
    made.raw_input_contents.append(content)
    plain = made.SerializeToString()
    made.parameters["triton_enable_empty_final_response"].bool_param = True
    request = prepare_streamed(GRPC, "m", "", None, None, 0, None).header.request("i")
    head = b"".join(ctypes.string_at(*segment) for segment in request.segments())
    request.release()
    message = head + plain[plain.index(b"\x3a") :]
    assert message_class("ModelInferRequest").FromString(message) == made
    return message, plain


def test_the_wish_for_a_final_answer_is_taken_out_of_a_request():
    message, plain = asking(b"triton_enable_empty_final_response")
    for given in (message, plain):
        found = message_class("ModelInferRequest").FromString(GRPC.without_final_answer(given))
        assert found == message_class("ModelInferRequest").FromString(plain)


def test_requests_that_ask_in_vain_are_sent_again_without(repeated_stream):
    message, plain = asking()
    channel = Channel([[Told(RESERVED)]], [[Told(), Told()], []], [[Told()], []])
    final_answers = FinalAnswers(GRPC)
    stream = repeated_stream(channel, final_answers)
    stream.send(Message(message))
    stream.send(Message(message), last=True)
    found = []
    stream.receive(found)
    assert [one.error_message for one in found] == ["", ""]
    refused, again = channel.opened
    assert refused.cancelled
    assert refused.sent == [(message, False), (message, True)]
    same = message_class("ModelInferRequest").FromString
    assert [(same(sent), last) for sent, last in again.sent] == [
        (same(plain), False),
        (same(plain), True),
    ]
    # From then on nothing is asked for.
    other = repeated_stream(channel, final_answers)
    other.send(Message(message), last=True)
    other.receive(found)
    assert [same(sent) for sent, _ in channel.opened[2].sent] == [same(plain)]


def test_a_refusal_of_a_parameter_of_the_callers(repeated_stream):
    """A server that knows the wish refuses others of such names in the same words."""
    request = message_class("ModelInferRequest").FromString(asking()[0])
    request.parameters["triton_x"].int64_param = 1
    channel = Channel([[Told(RESERVED)]])
    final_answers = FinalAnswers(GRPC)
    stream = repeated_stream(channel, final_answers)
    stream.send(Message(request.SerializeToString()))
    found = []
    stream.receive(found)
    assert [one.error_message for one in found] == [RESERVED]
    assert len(channel.opened) == 1
    assert not final_answers.refused


def test_a_refusal_of_something_else_is_the_callers(repeated_stream):
    message, _ = asking()
    channel = Channel([[Told("unexpected inference input 'x'")], [Told(RESERVED)]])
    stream = repeated_stream(channel, FinalAnswers(GRPC))
    stream.send(Message(message))
    found = []
    stream.receive(found)
    stream.receive(found)  # a model may say anything, once the server has answered
    assert [one.error_message for one in found] == ["unexpected inference input 'x'", RESERVED]
    assert len(channel.opened) == 1


def test_streams_that_begin_together_ask_in_vain_together(repeated_stream):
    """One has been told already that the server takes no such wish when the other is."""
    message, plain = asking()
    final_answers = FinalAnswers(GRPC)
    streams = []
    for _ in range(2):
        channel = Channel([[Told(RESERVED)]], [[Told()], []])
        streams.append((channel, repeated_stream(channel, final_answers)))
        streams[-1][1].send(Message(message), last=True)
    for channel, stream in streams:
        found = []
        stream.receive(found)
        assert [one.error_message for one in found] == [""]
        same = message_class("ModelInferRequest").FromString
        assert [same(sent) for sent, _ in channel.opened[1].sent] == [same(plain)]


def test_names_and_contents_are_no_parameters(repeated_stream):
    request = message_class("ModelInferRequest").FromString(asking(b"what is triton_fast?")[0])
    request.model_name, request.id = "triton_llm", "triton_1"
    channel = Channel([[Told(RESERVED)]], [[Told()]])
    stream = repeated_stream(channel, FinalAnswers(GRPC))
    stream.send(Message(request.SerializeToString()))
    found = []
    stream.receive(found)
    assert [one.error_message for one in found] == [""]
