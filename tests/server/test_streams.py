"""Streams on the real server: requests that many answers come to, one call for one or for many."""

from __future__ import annotations

import gc
import random
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.model_calls import ENDLESS, ONE, counts, outs, repeat, reset, square
from support.process import resident, sockets
from support.waiting import until

import triton_fast.streaming.stream_state
from triton_fast import (
    Client,
    ClosedError,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    InvalidOption,
    InvalidTensor,
    NotFound,
    RequestedOutput,
    ResourceExhausted,
    ResponseStream,
    Unavailable,
)

pytestmark = pytest.mark.server

# What a client's deadline is here: more than anything is waited for, so that what ends is not ended
# by it.
LONG = 90.0
SOON = 30.0


def in_thread(work):
    """Have a thread work, and return what came of it as a future."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future


# One request, one call ---------------------------------------------------------------------------


def test_answers_come_in_order_and_end(stream_client):
    stream = stream_client.stream("repeat_int32", repeat([7, -8, 9], [20, 0, 10]))
    assert iter(stream) is stream
    assert stream.id == ""
    answers = list(stream)
    assert outs(answers) == [7, -8, 9]
    assert outs(answers, "IDX") == [0, 1, 2]
    assert {(answer.model_name, answer.model_version, answer.id) for answer in answers} == {
        ("repeat_int32", "1", "")
    }
    for _ in range(3):
        with pytest.raises(StopIteration):
            next(stream)


def test_as_many_answers_as_the_model_gives(stream_client):
    assert outs(stream_client.stream("repeat_int32", repeat([]))) == []
    for count in (0, 1, 2, 5000):
        assert outs(stream_client.stream("square_int32", square(count))) == [count] * count


def test_models_that_answer_once(stream_client):
    x = np.arange(3_000_000, dtype=np.float32)
    (answer,) = stream_client.stream("identity_fp32", {"INPUT0": x}, parameters={"colour": "blue"})
    assert np.array_equal(answer["OUTPUT0"], x)
    assert answer["OUTPUT0"].flags.writeable
    assert answer.parameters["colour"] == "blue"
    assert answer.parameters["triton_final_response"] is True
    (answer,) = stream_client.stream("identity_bytes", {"INPUT0": [b"a", "ü"]})
    assert answer["OUTPUT0"].tolist() == [b"a", "ü".encode()]
    (answer,) = stream_client.stream("identity_fp32", {"INPUT0": x[:0]})
    assert answer["OUTPUT0"].shape == (0,)


def test_what_a_request_asks_for(stream_client):
    (answer,) = stream_client.stream(
        "repeat_int32", repeat([5]), outputs=["IDX"], model_version="1"
    )
    assert list(answer) == ["IDX"]
    (answer,) = stream_client.stream(
        "classify_fp32",
        {"INPUT0": np.float32([[1, 3, 2, 0]])},
        outputs=[RequestedOutput("OUTPUT0", {"classification": 1})],
    )
    assert answer["OUTPUT0"].ravel().tolist() == [b"3.000000:1:dog"]


def test_ids_are_given_back(stream_client):
    stream = stream_client.stream("repeat_int32", repeat([1, 2]), request_id="mine")
    assert stream.id == "mine"
    assert [answer.id for answer in stream] == ["mine", "mine"]


def test_inputs_may_be_changed_once_they_are_sent(stream_client):
    x = np.ones(2_000_000, np.float32)
    stream = stream_client.stream("identity_fp32", {"INPUT0": x})
    x[:] = 2
    (answer,) = stream
    assert (answer["OUTPUT0"] == 1).all()


def test_the_final_answer_may_be_asked_for_or_not(stream_client):
    parameters = {"triton_enable_empty_final_response": False}
    stream = stream_client.stream("square_int32", square(3), parameters=parameters)
    assert outs(stream) == [3, 3, 3]  # this model's last answer is final


# Ends before the end ------------------------------------------------------------------------------


@pytest.mark.server_may_die
def test_closing_early_cancels(stream_client):
    with stream_client.stream("repeat_int32", ENDLESS) as stream:
        assert next(stream)["OUT"].item() == 1
        assert counts(stream_client) == (0, 1)
    until(lambda: counts(stream_client) == (1, 0))
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.server_may_die
def test_an_iterator_that_nobody_has_any_more_cancels(stream_client):
    assert next(stream_client.stream("repeat_int32", ENDLESS))["OUT"].item() == 1
    until(lambda: counts(stream_client) == (1, 0))
    # In a cycle, which takes a collection; and one that nobody has asked for anything.
    cycle = [stream_client.stream("repeat_int32", ENDLESS)]
    cycle.append(cycle)
    until(lambda: counts(stream_client) == (1, 1))
    del cycle
    gc.collect()
    until(lambda: counts(stream_client) == (2, 0))


def test_the_request_that_failed_is_not_cancelled(stream_client):
    with stream_client.stream("failing", {"FAIL_MESSAGE": ["x"]}) as stream:
        with pytest.raises(Internal, match="x"):
            next(stream)
        with pytest.raises(StopIteration):
            next(stream)
    until(lambda: counts(stream_client)[1] == 0)
    assert counts(stream_client) == (0, 0)


@pytest.mark.server_may_die
def test_a_deadline(stream_client):
    started = time.monotonic()
    stream = stream_client.stream("repeat_int32", ENDLESS, timeout=3)
    assert next(stream)["OUT"].item() == 1
    with pytest.raises(DeadlineExceeded) as caught:
        next(stream)
    assert 2.99 <= time.monotonic() - started < SOON  # the server keeps to milliseconds
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.call == "ModelStreamInfer('repeat_int32')"
    with pytest.raises(StopIteration):
        next(stream)
    until(lambda: counts(stream_client) == (1, 0))
    with pytest.raises(DeadlineExceeded):
        stream_client.stream("repeat_int32", ENDLESS, timeout=0)


@pytest.mark.server_may_die
def test_closing_the_client(server, channel):
    client = Client(server.grpc_url, channel=channel)
    waiting = client.stream("repeat_int32", ENDLESS)
    idle = client.stream("repeat_int32", ENDLESS)
    shared = client.open_stream()
    by_hand = shared.stream("repeat_int32", ENDLESS)
    fresh = client.open_stream()
    assert next(waiting)["OUT"].item() == next(by_hand)["OUT"].item() == 1
    waiter = in_thread(lambda: next(waiting))
    other = in_thread(lambda: next(by_hand))
    time.sleep(0.05)  # until they wait, most likely; it is the same if they do not yet
    client.close()
    for future in (waiter, other):
        with pytest.raises(ClosedError):
            future.result(SOON)
    with pytest.raises(ClosedError):
        for _ in idle:  # what has come may be read
            pass
    with pytest.raises(ClosedError):
        shared.stream("repeat_int32", ENDLESS)
    with pytest.raises(ClosedError):
        fresh.send("repeat_int32", ENDLESS)
    with pytest.raises(ClosedError):
        client.stream("repeat_int32", ENDLESS)
    with pytest.raises(ClosedError):
        client.open_stream()
    for stream in (shared, fresh, waiting, idle):
        stream.close()
    with Client(server.grpc_url, channel=channel) as other_client:
        until(lambda: counts(other_client)[1] == 0)


# Errors -------------------------------------------------------------------------------------------

IDENTITY = ("identity_fp32", ONE)
SUMMAND = {"INPUT": np.int32([1])}
# What is wrong with tensors: test_refusals.py.
REFUSED = {
    "model": (NotFound, "'nope' is not found", "nope", ONE, {}),
    "version": (NotFound, "version 7", *IDENTITY, {"model_version": "7"}),
    "batch": (InvalidArgument, "<= 8", "identity_batched", {"INPUT0": np.ones((9, 1), "f4")}, {}),
    "parameter": (InvalidArgument, "reserved", *IDENTITY, {"parameters": {"triton_x": 1}}),
    "sequence": (InvalidArgument, "correlation ID", "accumulate_direct", SUMMAND, {}),
    "model_error": (Internal, "it broke", "failing", {"FAIL_MESSAGE": ["it broke"]}, {}),
    "decoupled": (Internal, "DELAY", "repeat_int32", {**repeat([1]), "DELAY": np.uint32([])}, {}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_error_is_typed_and_ends_its_request_alone(stream_client, case):
    kind, text, model, inputs, options = REFUSED[case]
    with pytest.raises(kind, match=text) as caught:
        list(stream_client.stream(model, inputs, **options))
    alone = caught.value
    assert type(alone) is kind
    assert (alone.call, alone.target) == (f"ModelStreamInfer({model!r})", stream_client.url)
    # Beside requests of its kind: this server aborts when a stream has answers of both.
    slow = {"INPUT0": np.float32([[1, 2, 3]]), "DELAY": np.float32([[0.03]])}
    beside = (
        ("repeat_int32", repeat([1, 2, 3], [0, 20, 20]))
        if case == "decoupled"
        else ("batched_identity_fp32", slow)
    )
    with stream_client.open_stream() as stream:
        before = stream.stream(*beside)
        failing = stream.stream(model, inputs, request_id="seven", **options)
        after = stream.stream(*beside)
        stream.send(model, inputs, request_id="eight", **options)
        with pytest.raises(kind, match=text) as caught:
            next(failing)
        assert caught.value.message == alone.message  # without the id that the server may put there
        assert caught.value.call == f"ModelStreamInfer({model!r}, request 'seven')"
        with pytest.raises(StopIteration):
            next(failing)
        assert [len(list(before)), len(list(after))] == ([3, 3] if case == "decoupled" else [1, 1])
        with pytest.raises(kind, match=text) as caught:
            stream.receive()
        assert caught.value.call == f"ModelStreamInfer({model!r}, request 'eight')"
        assert stream.receive() is None


def test_queues(stream_client):
    def taking(seconds):
        return {"INPUT0": np.ones((1, 1), np.float32), "DELAY": np.float32([[seconds]])}

    with stream_client.open_stream() as stream:
        first = stream.stream("small_queue_fp32", taking(1))
        until(lambda: counts(stream_client)[1] == 1)
        # The queue has place for two. What is sent on one stream comes to it in that order.
        late = stream.stream("small_queue_fp32", taking(0), queue_timeout=0.05)
        others = [stream.stream("small_queue_fp32", taking(0)) for _ in range(4)]
        with pytest.raises(Unavailable, match="timeout expired"):
            next(late)
        assert len(list(first)) == 1
        refused = 0
        for other in others:
            try:
                assert len(list(other)) == 1
            except Unavailable as error:
                assert "maximum queue size" in error.message  # noqa: PT017 - some are, some not
                refused += 1
        assert refused >= 2


def test_arguments_that_make_no_sense(stream_client):
    for size in (0, -1, 1.5, "64"):
        with pytest.raises(InvalidOption, match="buffer_size"):
            stream_client.open_stream(buffer_size=size)
    with stream_client.open_stream() as stream:
        for attempt in (stream.stream, stream.send, stream_client.stream):
            with pytest.raises(InvalidOption, match="request_id must be a str, got 7"):
                attempt("identity_fp32", ONE, request_id=7)
            with pytest.raises(InvalidTensor, match="mapping"):
                attempt("identity_fp32", [1])
            with pytest.raises(InvalidTensor, match="INPUT0"):
                attempt("identity_bytes", {"INPUT0": np.array([1], object)})
            with pytest.raises(InvalidOption, match="timeout"):
                attempt("identity_fp32", ONE, timeout=-1)
            with pytest.raises(InvalidOption, match="shared memory"):
                attempt(
                    "identity_fp32",
                    ONE,
                    outputs=[
                        RequestedOutput(
                            "OUTPUT0",
                            {"shared_memory_region": "r", "shared_memory_byte_size": 4},
                        )
                    ],
                )
        # None of it has done the stream any harm.
        assert outs(stream.stream("repeat_int32", repeat([1]))) == [1]
        assert stream.receive() is None


# Many requests, one call --------------------------------------------------------------------------


def test_a_thousand_requests_on_one_stream(stream_client):
    with stream_client.open_stream() as stream:
        requests = []
        for number in range(1000):
            values = list(range(10 * number, 10 * number + number % 4))
            delays = [number % 7, 0, 3][: len(values)]
            requests.append((values, stream.stream("repeat_int32", repeat(values, delays))))
        # Read in turn, not one by one.
        random.Random(1).shuffle(requests)
        for values, answers in requests:
            if values:
                assert next(answers)["OUT"].item() == values[0]
        for values, answers in requests:
            assert outs(answers) == values[1:]
            with pytest.raises(StopIteration):
                next(answers)


def test_many_threads_on_one_stream(stream_client):
    def work(thread, stream):
        for turn in range(15):
            values = [1000 * thread + turn * 10 + index for index in range(turn % 5)]
            request_id = "same" if turn % 2 else f"{thread}"
            answers = stream.stream(
                "repeat_int32", repeat(values, [turn % 3] * len(values)), request_id=request_id
            )
            found = [(answer.id, answer["OUT"].item()) for answer in answers]
            assert found == [(request_id, value) for value in values]

    with stream_client.open_stream() as stream, ThreadPoolExecutor(16) as pool:
        for future in [pool.submit(work, thread, stream) for thread in range(16)]:
            future.result(SOON)


def test_requests_with_the_same_id(stream_client):
    with stream_client.open_stream() as stream:
        both = [
            stream.stream("repeat_int32", repeat([n, n + 1], [30, 30]), request_id="x")
            for n in (10, 20)
        ]
        later = stream.stream("repeat_int32", repeat([30]), request_id="x")
        assert [outs(answers) for answers in both] == [[10, 11], [20, 21]]
        assert outs(later) == [30]
        assert {answers.id for answers in both} == {"x"}
        # It is free again.
        assert outs(stream.stream("repeat_int32", repeat([40]), request_id="x")) == [40]


def test_by_hand(stream_client):
    with stream_client.open_stream() as stream:
        assert stream.receive() is None  # there are no requests
        stream.send("repeat_int32", repeat([1, 2, 3]), request_id="a")
        stream.send("repeat_int32", repeat([4], [50]), request_id="b")
        found = {}
        while (answer := stream.receive(timeout=LONG)) is not None:
            found.setdefault(answer.id, []).append(answer["OUT"].item())
        assert found == {"a": [1, 2, 3], "b": [4]}
        stream.send("square_int32", square(3))
        beside = stream.stream("repeat_int32", repeat([9]))
        assert outs(stream) == [3, 3, 3]
        assert outs(beside) == [9]


def test_a_wait_that_is_too_short_does_no_harm(stream_client):
    with stream_client.open_stream() as stream:
        stream.send("repeat_int32", repeat([1], [400]))
        for _ in range(3):
            with pytest.raises(DeadlineExceeded):
                stream.receive(timeout=0.03)
        assert stream.receive(timeout=LONG)["OUT"].item() == 1
        assert stream.receive(timeout=LONG) is None


@pytest.mark.server_may_die
def test_a_deadline_of_one_request_leaves_the_others_alone(stream_client):
    with stream_client.open_stream() as stream:
        patient = stream.stream("repeat_int32", repeat([1, 2], [0, 1000]))
        assert next(patient)["OUT"].item() == 1
        hasty = stream.stream("repeat_int32", ENDLESS, timeout=0.5)
        other = in_thread(lambda: outs(patient))
        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                outs(hasty)
        hasty.close()
        assert other.result(SOON) == [2]
        # On a shared stream it goes on, and what comes is dropped.
        until(lambda: counts(stream_client) == (0, 1))
    until(lambda: counts(stream_client) == (1, 0))


@pytest.mark.server_may_die
def test_a_deadline_of_the_stream_ends_all(stream_client):
    started = time.monotonic()
    stream = stream_client.open_stream(timeout=3)
    requests = [stream.stream("repeat_int32", ENDLESS) for _ in range(3)]
    stream.send("repeat_int32", ENDLESS)
    until(lambda: counts(stream_client) == (0, 4))
    waiting = in_thread(lambda: outs(requests[0]))
    for answers in requests[1:]:
        with pytest.raises(DeadlineExceeded):
            outs(answers)
    with pytest.raises(DeadlineExceeded):
        waiting.result(SOON)
    assert stream.receive()["OUT"].item() == 1
    with pytest.raises(DeadlineExceeded):
        stream.receive()
    assert stream.receive() is None
    assert 2.99 <= time.monotonic() - started < SOON  # the server keeps to milliseconds
    with pytest.raises(DeadlineExceeded):
        stream.send("repeat_int32", repeat([1]))
    until(lambda: counts(stream_client) == (4, 0))


def test_closing_one_request_leaves_the_others_alone(stream_client):
    with stream_client.open_stream() as stream:
        dropped = stream.stream("repeat_int32", repeat([1, 2, 3], [0, 20, 20]))
        kept = stream.stream("repeat_int32", repeat([4, 5], [0, 100]))
        assert next(dropped)["OUT"].item() == 1
        dropped.close()
        with pytest.raises(StopIteration):
            next(dropped)
        del dropped
        stream.stream("repeat_int32", repeat([6]))  # nobody has it
        assert outs(kept) == [4, 5]
        assert stream.receive() is None
        # The model goes on, to the end: the stream may be left when it has come there.
        until(lambda: counts(stream_client)[1] == 0)
    assert counts(stream_client)[0] == 0


def test_half_close(stream_client):
    with stream_client.open_stream() as stream:
        answers = stream.stream("repeat_int32", repeat([1, 2], [0, 100]))
        stream.send("repeat_int32", repeat([3], [50]))
        stream.half_close()
        stream.half_close()
        with pytest.raises(ClosedError, match="half closed"):
            stream.send("repeat_int32", repeat([3]))
        assert outs(answers) == [1, 2]
        assert outs(stream) == [3]
    stream.half_close()
    with stream_client.open_stream() as stream:  # without requests
        stream.half_close()
        assert stream.receive() is None


@pytest.mark.server_may_die
def test_closing_a_stream_ends_what_is_on_it(stream_client):
    stream = stream_client.open_stream()
    answers = [stream.stream("repeat_int32", ENDLESS) for _ in range(3)]
    assert next(answers[0])["OUT"].item() == 1
    waiting = in_thread(lambda: next(answers[0]))
    until(lambda: counts(stream_client) == (0, 3))
    stream.close()
    stream.close()
    with pytest.raises(ClosedError, match="the stream was closed"):
        waiting.result(SOON)
    for one in answers[1:]:
        with pytest.raises(ClosedError):
            list(one)
    for attempt in (stream.send, stream.stream):
        with pytest.raises(ClosedError):
            attempt("repeat_int32", ENDLESS)
    assert stream.receive() is None
    until(lambda: counts(stream_client) == (3, 0))


@pytest.mark.server_may_die
def test_a_stream_that_nobody_has_any_more_is_closed(stream_client):
    stream = stream_client.open_stream()
    stream.send("repeat_int32", ENDLESS)
    until(lambda: counts(stream_client) == (0, 1))
    del stream
    until(lambda: counts(stream_client) == (1, 0))
    answers = stream_client.open_stream().stream("repeat_int32", repeat([1, 2], [0, 50]))
    assert outs(answers) == [1, 2]  # they keep the stream


def test_several_streams_of_a_client(stream_client):
    with stream_client.open_stream() as one, stream_client.open_stream() as two:
        first = one.stream("repeat_int32", repeat([1, 2], [0, 30]), request_id="x")
        second = two.stream("repeat_int32", repeat([3, 4], [0, 30]), request_id="x")
        third = stream_client.stream("repeat_int32", repeat([5, 6], [0, 30]), request_id="x")
        assert [outs(answers) for answers in (third, second, first)] == [[5, 6], [3, 4], [1, 2]]
        one.close()
        assert outs(two.stream("repeat_int32", repeat([7]))) == [7]


# Much, and slow readers ---------------------------------------------------------------------------


def test_thousands_of_answers(stream_client):
    with stream_client.open_stream() as stream:
        many = stream.stream("square_int32", square(20_000))
        few = stream.stream("repeat_int32", repeat([1, 2]))
        assert sum(answer["OUT"].item() == 20_000 for answer in many) == 20_000
        assert outs(few) == [1, 2]


def test_large_tensors_both_ways_on_one_stream(stream_client):
    """Requests and answers beyond every window, while nobody reads."""
    x = np.arange(4_000_000, dtype=np.float32)
    with stream_client.open_stream() as stream:
        requests = [stream.stream("identity_fp32", {"INPUT0": x + n}) for n in range(4)]
        for n, answers in enumerate(requests):
            (answer,) = answers
            assert np.array_equal(answer["OUTPUT0"], x + n)


def test_one_thread_sends_while_another_reads(stream_client):
    x = np.arange(300_000, dtype=np.float32)
    count = 40

    def send():
        for n in range(count):
            stream.send("identity_fp32", {"INPUT0": x + n}, request_id=str(n))
        return "sent"

    with stream_client.open_stream() as stream:
        sender = in_thread(send)
        received = 0
        while received < count:
            answer = stream.receive(timeout=LONG)
            if answer is None:
                continue  # ahead of the sender
            assert answer.id == str(received)
            assert answer["OUTPUT0"][1] == 1 + received
            received += 1
        assert sender.result(SOON) == "sent"


LARGE = {"INPUT0": np.arange(1_000_000, dtype=np.float32)}


def held_up(stream):
    """Have answers that nobody reads, and one behind them that a thread waits for.

    Each of them is more than the stream's buffer takes, and all of them are more than come at one
    look at the socket. Return their iterators, the other one, and a future of the thread's.
    """
    unread = [stream.stream("identity_fp32", LARGE) for _ in range(3)]
    other = stream.stream("identity_fp32", ONE)
    return unread, other, in_thread(lambda: ones(other))


def ones(answers):
    return [answer["OUTPUT0"].tolist() for answer in answers]


def is_right(answers):
    return [np.array_equal(answer["OUTPUT0"], LARGE["INPUT0"]) for answer in answers] == [True]


def is_full(stream):
    """Whether somebody waits for room."""
    return stream._state.starved


def test_answers_that_nobody_reads_stop_the_reading(stream_client, monkeypatch):
    monkeypatch.setattr(triton_fast.streaming.stream_state, "PATIENCE_NS", 500_000_000)
    with stream_client.open_stream(buffer_size=20_000) as stream:
        started = time.monotonic()
        unread, other, waiting = held_up(stream)
        with pytest.raises(ResourceExhausted, match="buffer_size is 20000") as caught:
            waiting.result(SOON)
        assert time.monotonic() - started >= 0.5
        assert int(caught.value.message.split()[0]) >= 4_000_000
        # That was a word of warning: all goes on.
        assert all(is_right(answers) for answers in unread)
        assert ones(other) == [[1]]


@pytest.mark.parametrize("make_room", [is_right, ResponseStream.close], ids=["read", "drop"])
def test_who_waits_for_room_goes_on_when_there_is_some(stream_client, monkeypatch, make_room):
    """Not after the time that patience lasts."""
    monkeypatch.setattr(triton_fast.streaming.stream_state, "PATIENCE_NS", 600_000_000_000)
    with stream_client.open_stream(buffer_size=20_000) as stream:
        unread, _, waiting = held_up(stream)
        until(lambda: is_full(stream))
        assert not waiting.done()
        for answers in unread:
            # Only what the other thread has read for us.
            until(lambda answers=answers: answers._inbox)
            assert make_room(answers) in {True, None}
        assert waiting.result(SOON) == [[1]]


def test_threads_read_while_the_buffer_is_full(stream_client):
    """Counting what is unread while others take from it is no error."""
    with stream_client.open_stream(buffer_size=30_000) as stream:
        requests = [stream.stream("square_int32", square(700)) for _ in range(6)]
        futures = [in_thread(lambda one=one: outs(one)) for one in requests]
        for future in futures:
            assert future.result(SOON) == [700] * 700


def test_a_slow_reader_holds_the_server_up(stream_client):
    """What nobody has asked for yet is not in our memory, however much there is of it."""
    count = 20_000  # of more, this model sends one in a millisecond
    with (
        stream_client.stream("square_int32", square(count)) as alone,
        stream_client.open_stream() as shared,
    ):
        other = shared.stream("square_int32", square(count))
        for answers in (alone, other):
            for _ in range(10):
                next(answers)
        time.sleep(0.1)
        before = resident()
        time.sleep(0.5)
        for answers in (alone, other):
            next(answers)
        assert resident() - before < 8 << 20
        # To the end: this server does not bear to be cancelled with so much to send.
        for answers in (alone, other):
            assert sum(answer["OUT"].item() == count for answer in answers) == count - 11


# Connections --------------------------------------------------------------------------------------


@pytest.mark.native
@pytest.mark.server_may_die
def test_connections_are_used_again(server):
    with Client(server.grpc_url, channel="native", timeout=LONG) as client:
        before = sockets()
        client.infer("identity_fp32", ONE)
        assert len(sockets() - before) == 1
        for _ in range(5):
            assert outs(client.stream("repeat_int32", repeat([1, 2]))) == [1, 2]
            with pytest.raises(NotFound):
                list(client.stream("nope", ONE))
            with client.open_stream() as stream:
                assert outs(stream.stream("repeat_int32", repeat([1]))) == [1]
                stream.half_close()
                assert stream.receive() is None
            client.infer("identity_fp32", ONE)
            assert len(sockets() - before) == 1
        # A stream has one to itself, as long as it lasts.
        with client.stream("repeat_int32", ENDLESS) as stream:
            next(stream)
            client.infer("identity_fp32", ONE)
            assert len(sockets() - before) == 2
        client.infer("identity_fp32", ONE)
    assert not sockets() - before


@pytest.mark.server_may_die
def test_nothing_is_left_of_many_streams(server, channel, nothing_is_left):
    """Here, whether the server lives or not; and there, if it does."""
    with Client(server.grpc_url, channel=channel, timeout=LONG) as client:
        reset(client)
        list(client.stream("repeat_int32", repeat([1])))
        nothing_is_left.from_now_on()
        for turn in range(60):
            stream = client.stream("repeat_int32", ENDLESS)
            if turn % 2:
                next(stream)
            if turn % 3 == 0:
                stream.close()
            del stream
        until(lambda: counts(client)[1] == 0)
        # Some were given up before the model had them.
        assert 0 < counts(client)[0] <= 60
