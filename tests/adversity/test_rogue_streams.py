"""Streams on the native channel against a server that misbehaves."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
import time

import numpy as np
import pytest
from rogue_meetings import LONG, SLACK, meeting
from support import rogue as h2
from support.model_calls import ONE
from support.process import resident
from support.rogue import END_STREAM

from triton_fast import (
    AsyncClient,
    Cancelled,
    Client,
    DeadlineExceeded,
    Internal,
    Keepalive,
    ResourceExhausted,
    TritonFastError,
    Unavailable,
    Unimplemented,
    Unknown,
    WireError,
)
from triton_fast.protocol.messages import message_class

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("loaded", "nothing_is_left")]

LARGE = {"INPUT0": np.zeros(50 << 20, np.uint8)}


def answer(request_id, value=0.0, *, final=False, error="", count=1):
    """Return an answer to a request, with the prefix that messages have."""
    message = message_class("ModelStreamInferResponse")(error_message=error)
    response = message.infer_response
    response.id = request_id
    if final is not None:
        response.parameters["triton_final_response"].bool_param = final
    if not error and count:
        response.outputs.add(name="OUTPUT0", datatype="FP32", shape=[count])
        response.raw_output_contents.append(np.full(count, value, np.float32).tobytes())
    return h2.message(message.SerializeToString())


def answers(request_id, count):
    """Return answers with the numbers up to count, the last of them final."""
    return b"".join(answer(request_id, n, final=n == count - 1) for n in range(count))


class Asked:
    """A stream that has begun, as a script sees it: which it is, and its first request's id."""

    def __init__(self, peer, stream=0):
        self.peer = peer
        self.stream = stream or peer.begin_request()
        self.rest = b""
        self.id = self.next_id()

    def next_id(self):
        """Read one more request; return its id."""
        while len(self.rest) < 5 or len(self.rest) < 5 + int.from_bytes(self.rest[1:5], "big"):
            read = self.peer.read_frame()
            if read.type == h2.DATA and read.stream == self.stream:
                self.rest += read.payload
        size = 5 + int.from_bytes(self.rest[1:5], "big")
        request, self.rest = self.rest[5:size], self.rest[size:]
        return message_class("ModelInferRequest").FromString(request).id

    def begin(self):
        self.peer.send(h2.headers(self.stream, h2.OK_HEADERS))

    def say(self, body, **options):
        self.peer.send(h2.data(self.stream, body, **options))

    def end(self, fields=h2.OK_TRAILERS):
        self.peer.send(h2.headers(self.stream, fields, END_STREAM))


def talking(act):
    """Return a script that has `act` go on with a stream that has begun."""

    def script(peer):
        asked = Asked(peer)
        asked.begin()
        act(asked)

    return script


def values(stream):
    return [result["OUTPUT0"][0] for result in stream]


def fails_after(stream, count, error, match=None):
    """Answers with the numbers up to count come, and then just this error; return it."""
    started = time.monotonic()
    found = [next(stream)["OUTPUT0"][0] for _ in range(count)]
    with pytest.raises(error, match=match) as caught:
        next(stream)
    assert found == list(range(count))
    assert type(caught.value) in (error if isinstance(error, tuple) else (error,))
    assert time.monotonic() - started < LONG / 2
    with pytest.raises(StopIteration):
        next(stream)
    return caught.value


# In pieces ----------------------------------------------------------------------------------------


def test_cut_at_every_byte():
    size = len(answers("", 3))
    cuts = iter(range(size + 100))

    def script(peer):
        while True:
            asked = Asked(peer)
            body = answers(asked.id, 3)
            cut = min(next(cuts), len(body))
            asked.begin()
            asked.say(body[:cut])
            if cut % 7 == 0:
                peer.be_heard()  # so that the rest comes by itself
            asked.say(body[cut:])
            asked.end()

    with meeting(script, usable=False) as (rogue, client):
        for _ in range(size + 80):
            assert values(client.stream("m", ONE)) == [0, 1, 2]
        assert rogue.connections == 1


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_frames_of_any_size(size):
    def act(asked):
        asked.say(answers(asked.id, 20), size=size)
        asked.end()

    with meeting(talking(act)) as (_, client):
        assert values(client.stream("m", ONE)) == list(range(20))


def test_garbage_wherever_it_is():
    """Whatever is in a message: an answer, or an error of ours, and a client that goes on."""
    generator = random.Random(1)

    def script(peer):
        while True:
            asked = Asked(peer)
            body = bytearray(answers(asked.id, 3))
            for _ in range(1 + generator.randrange(3)):
                body[generator.randrange(len(body))] = generator.randrange(256)
            asked.begin()
            asked.say(bytes(body))
            asked.end()

    ends = set()
    with meeting(script, usable=False, always=True) as (_, client):
        for _ in range(300):
            try:
                list(client.stream("m", ONE, timeout=LONG))
                ends.add("well")
            except TritonFastError as error:
                ends.add(type(error))
    assert {"well", WireError} <= ends
    assert DeadlineExceeded not in ends


# What is said -------------------------------------------------------------------------------------


def bare(request_id, value):
    """Return an answer as servers send it whose service returns a stream of ModelInferResponse."""
    response = message_class("ModelInferResponse")(model_name="m", model_version="1", id=request_id)
    response.outputs.add(name="OUTPUT0", datatype="FP32", shape=[1])
    response.raw_output_contents.append(np.float32(value).tobytes())
    return h2.message(response.SerializeToString())


def test_answers_without_an_envelope():
    """As from MLServer: the model's name is no error, and the call's end is the stream's."""

    def script(peer):
        while True:
            asked = Asked(peer)
            asked.begin()
            asked.say(b"".join(bare(asked.id, number) for number in range(5)))
            asked.end()

    with meeting(script, usable=False) as (_, client):
        for request_id in ("", "mine"):
            results = list(client.stream("m", ONE, request_id=request_id))
            assert [result["OUTPUT0"][0] for result in results] == list(range(5))
            for result in results:
                told = (result.model_name, result.model_version, result.id)
                assert told == ("m", "1", request_id)


# Both answer when all has been asked, for the stream takes no more requests after that.
def act_unknown(asked):
    asked.next_id()
    asked.say(answer(asked.id, 0) + answer("somebody else's", 1))
    asked.peer.read_until(h2.RST_STREAM)


def act_after_final(asked):
    asked.next_id()
    asked.say(answer(asked.id, 0) + answer(asked.id, 0, final=True, count=0) + answer(asked.id, 1))
    asked.peer.read_until(h2.RST_STREAM)


BROKEN = {
    "no message": (b"\xff" * 30, Internal, "flags"),
    "no protobuf": (h2.message(b"\xff\xff\xff"), WireError, "ModelStreamInferResponse"),
    "too short": (h2.message(b"\x12\x7f\x0a"), WireError, "infer_response"),
    "text": (h2.message(b"\x0a\x02\xff\xff"), WireError, "error_message is not UTF-8"),
    "too long": (h2.message(b"", length=1 << 31), WireError, "2147483648"),
    "compressed": (h2.message(b"x", flags=1), Internal, "compressed message"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_message_ends_the_stream(case):
    body, error, text = BROKEN[case]

    def act(asked):
        asked.say(answer(asked.id, 0) + body)
        assert asked.peer.read_until(h2.RST_STREAM).stream == asked.stream

    with meeting(talking(act)) as (_, client):
        fails_after(client.stream("m", ONE), 1, error, text)


def test_a_broken_message_ends_all_that_is_on_the_stream():
    def act(asked):
        second, third = asked.next_id(), asked.next_id()
        asked.say(answer(asked.id, 0) + answer(second, 0, final=True) + answer(third, 0))
        asked.say(h2.message(b"\xff\xff\xff"))
        asked.peer.read_until(h2.RST_STREAM)

    with meeting(talking(act)) as (_, client), client.open_stream() as stream:
        requests = [stream.stream("m", ONE) for _ in range(3)]
        fails_after(requests[2], 1, WireError)
        fails_after(requests[0], 1, WireError)
        assert values(requests[1]) == [0]  # it had its last answer
        with pytest.raises(WireError):
            stream.send("m", ONE)


@pytest.mark.parametrize("act", [act_unknown, act_after_final])
def test_an_answer_to_nothing_that_was_asked(act):
    with meeting(talking(act)) as (_, client), client.open_stream() as stream:
        first = stream.stream("m", ONE)
        second = stream.stream("m", ONE)
        if act is act_after_final:
            assert values(first) == [0]
        else:
            fails_after(first, 1, WireError, "'somebody else's'|somebody else")
        fails_after(second, 0, WireError, "which was not made or has had its last answer")


def test_an_error_that_is_no_requests():
    def act(asked):
        asked.say(h2.message(b"\x0a\x0dit is all over"[:15]))
        asked.peer.read_until(h2.RST_STREAM)

    with meeting(talking(act)) as (_, client):
        error = fails_after(client.stream("m", ONE), 0, Internal, "it is all ove")
        assert error.call == "ModelStreamInfer"


def test_answers_after_an_error():
    """A decoupled model may go on; Triton says whether it does."""

    def act(asked):
        asked.say(
            answer(asked.id, 0)
            + answer(asked.id, error="one of them failed")
            + answer(asked.id, 1)
            + answer(asked.id, final=True, count=0)
        )
        asked.end()

    with meeting(talking(act)) as (_, client):
        stream = client.stream("m", ONE)
        assert next(stream)["OUTPUT0"][0] == 0
        with pytest.raises(Internal, match="one of them failed"):
            next(stream)
        assert values(stream) == [1]


# How it ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5])
def test_many_answers_of_a_server_that_does_not_mark_the_last(count):
    """On a call of its own a request has them all: Triton before 2.35, others."""

    def act(asked):
        for n in range(count):
            asked.say(answer(asked.id, n, final=None))
        asked.end()

    with meeting(talking(act)) as (_, client):
        assert values(client.stream("m", ONE)) == list(range(count))

    async def read(url):
        async with AsyncClient(url, timeout=30) as client:
            return [item["OUTPUT0"][0] async for item in client.stream("m", ONE)]

    with meeting(talking(act)) as (_, client):
        assert asyncio.run(read(client.url)) == list(range(count))


def reset_with(code):
    return lambda asked: asked.peer.send(h2.reset(asked.stream, code))


def trailers(status, text=""):
    return lambda asked: asked.end((("grpc-status", str(status)), ("grpc-message", text)))


ENDS = {
    "trailers": (trailers(8, "full"), ResourceExhausted, "full"),
    "an unknown status": (trailers(99, "odd"), Unknown, "odd"),
    "cancelled": (trailers(1, "shutting down"), Cancelled, "shutting down"),
    "an early OK": (trailers(0), Unavailable, "before a request's last answer"),
    "no trailers": (lambda asked: asked.say(b"", flags=END_STREAM), Internal, "without trailers"),
    "reset": (reset_with(2), Internal, "reset the stream"),
    "refused": (reset_with(7), Unavailable, "reset the stream"),
    "reset as cancelled": (reset_with(8), Cancelled, "reset the stream"),
    "in a message": (lambda asked: (asked.say(b"\0\0\0"), asked.end()), Internal, "in the middle"),
    "closed": (lambda asked: asked.peer.close(), Unavailable, "closed the connection|reset"),
    "crashed": (lambda asked: asked.peer.close(reset=True), Unavailable, "reset|closed|broke"),
    "in a frame": (
        lambda asked: (asked.peer.send(h2.data(asked.stream, b"x" * 9)[:12]), asked.peer.close()),
        Unavailable,
        "closed the connection|reset",
    ),
    "no HTTP/2": (
        lambda asked: asked.peer.send(h2.frame(h2.DATA, 0, 0, b"x")),
        Unavailable,
        "does not keep to HTTP/2",
    ),
}


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("case", ENDS)
def test_ends(case, count):
    """What has come is read first; then the error, of the right type, and soon."""
    end, error, text = ENDS[case]

    def act(asked):
        for n in range(count):
            asked.say(answer(asked.id, n))
        if error is Unavailable:
            asked.peer.be_heard()  # the kernel throws away what has come before a reset
        end(asked)

    with meeting(talking(act)) as (_, client):
        caught = fails_after(client.stream("m", ONE), count, error, text)
        if case != "an early OK":
            assert (caught.call, caught.target) == ("ModelStreamInfer('m')", client.url)


def test_going_away_lets_the_stream_go_on():
    def act(asked):
        asked.say(answer(asked.id, 0))
        asked.peer.send(h2.goaway(asked.stream, 0, b"max_age"))
        asked.say(answer(asked.id, 1, final=True))
        asked.end()

    with meeting(talking(act)) as (rogue, client):
        assert values(client.stream("m", ONE)) == [0, 1]
        client.infer("m", ONE)
        assert rogue.connections == 2


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ((("grpc-status", "12"), ("grpc-message", "no such method")), Unimplemented, "no such"),
        ((("grpc-status", "14"), ("grpc-message", "restricted")), Unavailable, "restricted"),
        ((("grpc-status", "0"),), Unavailable, "before a request's last answer"),
    ],
)
def test_refused_at_once(fields, error, text):
    def script(peer):
        peer.send(h2.trailers_only(Asked(peer).stream, fields))

    with meeting(script) as (_, client):
        fails_after(client.stream("m", ONE), 0, error, text)


def test_the_server_ends_a_shared_stream_well():
    """Nothing is asked, so nothing is amiss; but it takes no more requests."""

    ended = threading.Event()

    def act(asked):
        asked.say(answer(asked.id, 0, final=True))
        asked.end()
        asked.peer.arrive()
        ended.set()

    with meeting(talking(act)) as (_, client), client.open_stream() as stream:
        assert values(stream.stream("m", ONE)) == [0]
        assert ended.wait(LONG)
        failed = None
        try:
            later = stream.stream("m", ONE)
        except TritonFastError as error:
            failed = error
        else:
            fails_after(later, 0, Unavailable, "before a request's last answer")
        assert failed is None or "ended" in str(failed)


# Much, slow, never --------------------------------------------------------------------------------


def endless(asked):
    body = b"".join(answer(asked.id, n) for n in range(500))
    while True:
        asked.say(body)


def test_endless_answers_and_a_slow_reader():
    with meeting(talking(endless)) as (_, client), client.stream("m", ONE) as stream:
        for _ in range(10):
            next(stream)
        time.sleep(0.2)
        before = resident()
        for _ in range(10):
            next(stream)
            time.sleep(0.05)
        assert resident() - before < 20 << 20


@pytest.mark.parametrize("busy_poll", [0.0, 0.01])
def test_endless_answers_and_a_deadline(busy_poll):
    """Whatever comes, and however fast it is read."""
    with meeting(talking(endless), client={"busy_poll": busy_poll}) as (_, client):
        started = time.monotonic()
        stream = client.stream("m", ONE, timeout=0.3)
        with pytest.raises(DeadlineExceeded):
            for _ in stream:
                pass
        assert 0.3 <= time.monotonic() - started < 0.3 + SLACK


def test_endless_answers_while_a_request_is_sent():
    """The server takes no more before its answers are read, and nobody reads them: they are kept
    up to a limit, and the deadline holds."""
    with meeting(talking(endless), usable=False) as (_, client), client.open_stream() as stream:
        stream.send("m", ONE)
        before = resident()
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded, match="while the request was being sent"):
            stream.send("m", LARGE, timeout=1.5)
        assert 1.5 <= time.monotonic() - started < 1.5 + SLACK
        assert resident() - before < 200 << 20
        # The stream is over: a part of the request may be on its way.
        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                stream.send("m", ONE)


def test_a_request_that_is_not_taken():
    def act(asked):
        asked.say(answer(asked.id, 0))
        asked.peer.wait()

    with meeting(talking(act), usable=False) as (_, client), client.open_stream() as stream:
        first = stream.stream("m", ONE)
        ends = (Cancelled, DeadlineExceeded)  # who notices first, the sender or the reader
        waiting = threading.Thread(target=lambda: fails_after(first, 1, ends))
        waiting.start()
        x = np.zeros(50 << 20, np.uint8)
        with pytest.raises(DeadlineExceeded, match="while the request was being sent"):
            stream.stream("m", {"INPUT0": x}, timeout=0.3)
        x[:] = 1  # nobody reads it any more
        waiting.join(LONG)
        assert not waiting.is_alive()
        with pytest.raises(ends):
            stream.send("m", ONE)


def test_a_signal_while_a_request_is_not_taken():
    class Interrupt(Exception):
        pass

    def interrupt(*_):
        raise Interrupt

    def act(asked):
        asked.peer.read_until(h2.DATA)  # of the second request, which is too large for its window
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)
        asked.peer.wait()

    handler = signal.signal(signal.SIGALRM, interrupt)
    try:
        with meeting(talking(act), usable=False) as (_, client), client.open_stream() as stream:
            first = stream.stream("m", ONE)
            reader = threading.Thread(target=lambda: fails_after(first, 0, Cancelled))
            reader.start()
            with pytest.raises(Interrupt):
                stream.send("m", LARGE)
            reader.join(LONG)
            assert not reader.is_alive()
            with pytest.raises(Cancelled):
                stream.send("m", ONE)
    finally:
        signal.signal(signal.SIGALRM, handler)


def test_closing_while_a_request_is_not_taken():
    sending = threading.Event()

    def act(asked):
        asked.peer.read_until(h2.DATA)  # of the second request, which is too large for its window
        sending.set()
        asked.peer.wait()

    with meeting(talking(act), usable=False) as (_, client):
        stream = client.open_stream()
        stream.send("m", ONE)
        failures = []

        def send():
            try:
                stream.send("m", LARGE)
            except TritonFastError as error:
                failures.append(error)

        sender = threading.Thread(target=send)
        sender.start()
        assert sending.wait(LONG)
        stream.close()
        sender.join(LONG)
        assert not sender.is_alive()
        assert len(failures) == 1


def test_a_silent_server_is_noticed():
    """By pings, for a stream has no deadline of its own; and a slow reader is no silent server."""

    read, arrived = threading.Event(), threading.Event()

    def act(asked):
        asked.peer.polite = False
        asked.say(answer(asked.id, 0) + answer(asked.id, 1))
        assert read.wait(LONG)
        asked.say(answer(asked.id, 2))
        asked.peer.arrive()
        arrived.set()
        asked.peer.wait()

    keepalive = {"keepalive": Keepalive(time=0.15, timeout=0.3)}
    with meeting(talking(act), client=keepalive, usable=False) as (_, client):
        stream = client.stream("m", ONE)
        assert [next(stream)["OUTPUT0"][0] for _ in range(2)] == [0, 1]
        time.sleep(0.5)  # longer than a server may be silent
        read.set()
        assert arrived.wait(LONG)
        started = time.monotonic()
        assert next(stream)["OUTPUT0"][0] == 2
        with pytest.raises(Unavailable, match="did not answer a ping"):
            next(stream)
        assert 0.4 < time.monotonic() - started < SLACK


# Dying --------------------------------------------------------------------------------------------


@pytest.mark.server
def test_a_server_killed_in_mid_stream_and_started_again(triton_server_factory):
    models = ["repeat_int32", "square_int32", "identity_fp32"]
    inputs = {
        "IN": np.int32([1, 2]),
        "DELAY": np.uint32([0, 600_000]),
        "WAIT": np.uint32([0]),
    }
    with (
        triton_server_factory(models=models) as server,
        Client(server.grpc_url, channel="native") as client,
        client.open_stream() as shared,
    ):
        own = client.stream("repeat_int32", inputs)
        many = client.stream("square_int32", {"IN": np.int32([200_000])})
        requests = [shared.stream("repeat_int32", inputs) for _ in range(5)]
        for stream in (own, *requests):
            assert next(stream)["OUT"].item() == 1
        next(many)
        ends = []

        def wait(stream):
            try:
                for _ in stream:
                    pass
            except TritonFastError as error:
                ends.append(type(error))

        threads = [threading.Thread(target=wait, args=(one,)) for one in (own, *requests)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        os.kill(server.pid, signal.SIGKILL)
        for thread in threads:
            thread.join(LONG)
            assert not thread.is_alive()
        assert ends == [Unavailable] * 6
        with pytest.raises(Unavailable):
            for _ in many:
                pass
        with pytest.raises(Unavailable):
            shared.send("repeat_int32", inputs)
        with pytest.raises(Unavailable):
            list(client.stream("repeat_int32", inputs))
        server.kill()
        server.start()
        found = client.stream("square_int32", {"IN": np.int32([3])})
        assert [one["OUT"].item() for one in found] == [3, 3, 3]
        with client.open_stream() as stream:
            stream.send("square_int32", {"IN": np.int32([2])})
            assert [one["OUT"].item() for one in stream] == [2, 2]
