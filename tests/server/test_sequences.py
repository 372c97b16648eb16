"""Sequences on a real server: models that add up what they are sent, each sequence by itself.

That a sequence was ended is seen in ENDED, which counts the ends that the model has been told of.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from served_models import HASTY, PATIENT
from support.blocking_face import BlockingFace

from triton_fast import (
    AsyncClient,
    Cancelled,
    Client,
    ClosedError,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    InvalidOption,
    InvalidTensor,
    NotFound,
    RequestedOutput,
    Tensor,
    TritonFastError,
    Unavailable,
)

pytestmark = pytest.mark.server

NUMBERED = ["accumulate_direct", "accumulate_oldest"]
WRONG = {"INPUT": np.float32([1])}
LOST = "must specify the START flag"


@pytest.fixture(params=[Client, BlockingFace], ids=["threads", "coroutines"])
def face_class(request):
    return request.param


@pytest.fixture
def face_client(server, channel, face_class):
    with face_class(server.grpc_url, channel=channel, timeout=30) as client:
        yield client


@pytest.fixture(params=[True, False], ids=["stream", "unary"])
def streamed(request):
    return request.param


@pytest.fixture
def model(request):
    return getattr(request, "param", "accumulate_oldest")


with_each_strategy = pytest.mark.parametrize("model", NUMBERED, indirect=True)


def number(value):
    return {"INPUT": np.int32([value])}


def add(sequence, value, **more):
    return sequence.infer(number(value), **more)["OUTPUT"].item()


class Ends:
    """How many sequences a model was told the end of since this was asked last."""

    def __init__(self, client, model):
        self._client = client
        self._model = model
        self._before = self._count()

    def _count(self):
        parameters = {"sequence_id": 99, "sequence_start": True, "sequence_end": True}
        if self._model == "accumulate_string":
            parameters["sequence_id"] = "Ends"
        result = self._client.infer(self._model, number(0), parameters=parameters)
        return result["ENDED"].item()

    def __call__(self):
        now = self._count()
        new = now - self._before - 1
        self._before = now
        return new


@pytest.fixture
def ends(face_client, model):
    return Ends(face_client, model)


# Sums


@with_each_strategy
def test_a_sequence(face_client, model, streamed, ends):
    with face_client.sequence(model, stream=streamed) as sequence:
        sums = [add(sequence, value) for value in range(1, 20)]
        assert ends() == 0
    assert sums == np.cumsum(range(1, 20)).tolist()
    assert ends() == 1


@with_each_strategy
def test_a_sequence_that_somebody_else_has_begun(face_client, model, streamed, ends):
    begun = face_client.sequence(model, sequence_id=4711, stream=streamed)
    assert [add(begun, value) for value in (1, 2)] == [1, 3]
    del begun  # and not closed, which would end it
    with face_client.sequence(model, sequence_id=4711, resume=True, stream=streamed):
        pass  # nothing was asked for here
    assert ends() == 0
    with face_client.sequence(model, sequence_id=4711, resume=True, stream=streamed) as sequence:
        assert [add(sequence, value) for value in (4, 5)] == [7, 12]
    assert ends() == 1
    with pytest.raises(InvalidOption, match="resume=True: sequence_id must say which"):
        face_client.sequence(model, resume=True)


def test_the_result_is_that_of_any_call(face_client, streamed):
    with face_client.sequence(
        "accumulate_oldest", outputs=["OUTPUT"], model_version="1", stream=streamed
    ) as sequence:
        for request_id in ("mine", "mine", ""):
            result = sequence.infer(number(5), request_id=request_id)
            assert result.id == request_id or not request_id
            assert list(result) == ["OUTPUT"]
            assert (result.model_name, result.model_version) == ("accumulate_oldest", "1")
    with face_client.sequence(
        "accumulate_oldest", outputs=[RequestedOutput("ENDED")], stream=streamed
    ) as sequence:
        assert list(sequence.infer(number(5))) == ["ENDED"]


def test_inputs_are_whatever_inputs_may_be(face_client, streamed):
    raw = np.int32([4])
    with face_client.sequence("accumulate_oldest", stream=streamed) as sequence:
        assert add(sequence, 1) == 1
        assert sequence.infer({"INPUT": memoryview(np.int32([2]))})["OUTPUT"] == 3
        assert sequence.infer({"INPUT": Tensor(raw.tobytes(), "INT32", [1])})["OUTPUT"] == 7
        assert sequence.infer({"INPUT": np.array([8], ">i4")})["OUTPUT"] == 15
        assert sequence.infer({"INPUT": np.int32([16, 0])[::2]})["OUTPUT"] == 31


@with_each_strategy
def test_two_at_once(face_client, model, streamed):
    with (
        face_client.sequence(model, stream=streamed) as one,
        face_client.sequence(model, stream=streamed) as other,
    ):
        assert one.id != other.id
        assert [add(one, 1), add(other, 10), add(one, 1), add(other, 10)] == [1, 10, 2, 20]


def test_a_stream_and_calls_at_once(face_client, model):
    with face_client.sequence(model) as one, face_client.sequence(model, stream=False) as other:
        assert [add(one, 1), add(other, 10), add(one, 1), add(other, 10)] == [1, 10, 2, 20]


@with_each_strategy
def test_many_threads(face_client, model, streamed, ends):
    threads, each = 12, 25  # the direct strategy has place for 16

    def run(which):
        with face_client.sequence(model, stream=streamed) as sequence:
            return [add(sequence, which * each + value) for value in range(each)]

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(run, range(threads)))
    for which, sums in enumerate(found):
        assert sums == np.cumsum(range(which * each, (which + 1) * each)).tolist()
    assert ends() == threads


@with_each_strategy
def test_requests_before_there_are_answers(face_client, model, ends):
    with face_client.sequence(model) as sequence:
        answers = [sequence.stream(number(value)) for value in range(1, 9)]
        answers.append(sequence.stream(number(9), end=True))
        results = [list(each) for each in answers]
    assert [result["OUTPUT"].item() for (result,) in results] == np.cumsum(range(1, 10)).tolist()
    assert ends() == 1


def test_answers_that_nobody_reads(face_client, model, ends):
    with face_client.sequence(model) as sequence:
        for _ in range(10):
            sequence.stream(number(1))
        assert add(sequence, 1) == 11
        sequence.stream(number(1))
    assert ends() == 1


# Ids


def test_the_id_is_what_the_server_knows_it_by(face_client, model, streamed):
    with face_client.sequence(model, sequence_id=4711, stream=streamed) as sequence:
        assert sequence.id == 4711
        add(sequence, 1)
        other = face_client.infer(model, number(10), parameters={"sequence_id": 4711})
        assert other["OUTPUT"] == 11
        assert add(sequence, 1) == 12


def test_the_largest_id(face_client, model, streamed):
    with face_client.sequence(model, sequence_id=(1 << 63) - 1, stream=streamed) as sequence:
        assert [add(sequence, 1), add(sequence, 1)] == [1, 2]


@pytest.mark.parametrize("name", ["a", "été 🌍", "x" * 128])
def test_ids_that_are_strings(face_client, streamed, name):
    model = "accumulate_string"
    ends = Ends(face_client, model)
    with (
        face_client.sequence(model, sequence_id=name, stream=streamed) as one,
        face_client.sequence(model, sequence_id="another", stream=streamed) as other,
    ):
        assert one.id == name
        assert [add(one, 1), add(other, 10), add(one, 1), add(other, 10)] == [1, 10, 2, 20]
        same = face_client.infer(model, number(5), parameters={"sequence_id": name})
        assert same["OUTPUT"] == 7
    assert ends() == 2


def test_an_id_that_comes_again(face_client, model, streamed):
    for _ in range(2):
        with face_client.sequence(model, sequence_id=815, stream=streamed) as sequence:
            assert [add(sequence, 1), add(sequence, 1)] == [1, 2]


@pytest.mark.parametrize("one", [0, -1, "", True, 1 << 63, 2.0])
def test_wrong_ids(face_client, streamed, one):
    with pytest.raises(InvalidOption, match="sequence_id must be"):
        face_client.sequence("accumulate_direct", sequence_id=one, stream=streamed)


def test_wrong_arguments(face_client, streamed):
    with pytest.raises(InvalidOption, match="timeout"):
        face_client.sequence("accumulate_direct", timeout=-1, stream=streamed)
    with pytest.raises(InvalidOption, match="header"):
        face_client.sequence("accumulate_direct", headers={"grpc-x": "y"}, stream=streamed)
    with pytest.raises(InvalidOption, match="sequence_end"):
        face_client.sequence("m", parameters={"sequence_end": True}, stream=streamed)


def test_every_call_has_headers(server, channel, face_class, streamed):
    calls = []
    with face_class(
        server.grpc_url, channel=channel, header_hook=calls.append, timeout=30
    ) as client:
        with client.sequence("accumulate_oldest", stream=streamed) as sequence:
            assert [add(sequence, 1), add(sequence, 1)] == [1, 2]
        if streamed:
            assert calls == ["ModelStreamInfer"]
        else:
            assert calls == ["ModelInfer('accumulate_oldest')"] * 3


# Ends


@with_each_strategy
def test_the_last_request_says_so(face_client, model, streamed, ends):
    with face_client.sequence(model, stream=streamed) as sequence:
        assert [add(sequence, 1), add(sequence, 2, end=True)] == [1, 3]
        assert ends() == 1
        with pytest.raises(ClosedError, match=f"sequence {sequence.id} was ended"):
            add(sequence, 4)
        with pytest.raises(ClosedError):
            add(sequence, 4, end=True)
    assert ends() == 0, "it was ended once, and not again on leaving"


def test_the_only_request_is_the_last(face_client, model, streamed, ends):
    with face_client.sequence(model, stream=streamed) as sequence:
        assert add(sequence, 5, end=True) == 5
    assert ends() == 1


def test_nothing_is_sent_for_nothing(face_client, model, streamed, ends):
    with face_client.sequence(model, stream=streamed):
        pass
    assert ends() == 0


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_left_by_an_exception(face_client, model, streamed, ends, error):
    def use():
        with sequence:
            add(sequence, 1)
            raise error

    sequence = face_client.sequence(model, stream=streamed)
    with pytest.raises(error) as caught:
        use()
    assert not hasattr(caught.value, "__notes__")
    assert ends() == 1
    with pytest.raises(ClosedError):
        add(sequence, 1)


def test_the_end_adds_a_zero(face_client, model, streamed):
    """What ends a sequence is a request like any other to the model; it says nothing new."""
    with face_client.sequence(model, sequence_id=33, stream=streamed) as sequence:
        add(sequence, 5)
    again = {"sequence_id": 33, "sequence_start": False}
    with pytest.raises(InvalidArgument, match=LOST):
        face_client.infer(model, number(1), parameters=again)


def test_closed_by_hand(face_client, model, streamed, ends):
    sequence = face_client.sequence(model, stream=streamed)
    add(sequence, 1)
    sequence.close()
    assert ends() == 1
    sequence.close()
    assert ends() == 0
    with pytest.raises(ClosedError, match="was ended"):
        add(sequence, 1)


def test_the_stream_goes_with_the_sequence(server, channel):
    with Client(server.grpc_url, channel=channel, timeout=30) as client:
        sequence = client.sequence("accumulate_oldest")
        add(sequence, 1, end=True)
        stream = sequence._stream
        sequence.close()
        with pytest.raises(ClosedError):
            stream.send("accumulate_oldest", number(1))


def test_the_stream_goes_with_the_sequence_of_coroutines(server, channel, run):
    async def main():
        async with AsyncClient(server.grpc_url, channel=channel, timeout=30) as client:
            sequence = client.sequence("accumulate_oldest")
            await sequence.infer(number(1), end=True)
            stream = sequence._stream
            await sequence.aclose()
            with pytest.raises(ClosedError):
                await stream.send("accumulate_oldest", number(1))

    run(main())


# Errors


def test_a_wrong_request_in_the_middle(face_client, model, streamed, ends):
    with face_client.sequence(model, stream=streamed) as sequence:
        add(sequence, 1)
        for _ in range(2):
            with pytest.raises(InvalidArgument, match="data-type is 'FP32'"):
                sequence.infer(WRONG)
        assert add(sequence, 1) == 2
        with pytest.raises(InvalidArgument):
            sequence.infer(WRONG)
    assert ends() == 1, "with a request of the right form"


@with_each_strategy
def test_left_by_the_error_of_a_wrong_request(face_client, model, streamed, ends):
    sequence = face_client.sequence(model, stream=streamed)
    add(sequence, 1)
    with pytest.raises(InvalidArgument, match="data-type") as caught, sequence:
        sequence.infer({"INPUT": np.int64([1])})
    assert not hasattr(caught.value, "__notes__")
    assert ends() == 1


@with_each_strategy
def test_a_wrong_last_request(face_client, model, streamed, ends):
    with face_client.sequence(model, stream=streamed) as sequence:
        add(sequence, 1)
        with pytest.raises(InvalidArgument):
            sequence.infer(WRONG, end=True)
        assert add(sequence, 1) == 2
        assert ends() == 0
    assert ends() == 1


@with_each_strategy
def test_a_first_request_that_is_refused(face_client, model, streamed, ends):
    with face_client.sequence(model, stream=streamed) as sequence:
        for _ in range(2):
            with pytest.raises(InvalidArgument, match="data-type is 'FP32'"):
                sequence.infer(WRONG)
        assert [add(sequence, 1), add(sequence, 1)] == [1, 2]
    assert ends() == 1
    with face_client.sequence(model, stream=streamed) as sequence:
        with pytest.raises(InvalidArgument, match="data-type"):
            sequence.infer(WRONG)
    assert ends() == 0


def test_what_cannot_be_sent(face_client, model, streamed, ends):
    with face_client.sequence(model, stream=streamed) as sequence:
        for wrong in ({"INPUT": "x"}, {"INPUT": object()}, [1], None):
            with pytest.raises(InvalidTensor):
                sequence.infer(wrong)
        assert add(sequence, 1) == 1
        with pytest.raises(InvalidTensor):
            sequence.infer({"INPUT": "x"}, end=True)
        with pytest.raises(InvalidOption, match="timeout"):
            sequence.infer(number(1), timeout="soon")
        assert add(sequence, 1) == 2
    assert ends() == 1


def test_what_does_not_fit_a_signature_that_is_known(face_client, model, streamed):
    face_client.model_metadata(model)
    with face_client.sequence(model, stream=streamed) as sequence:
        with pytest.raises(InvalidTensor, match="INPUT"):
            sequence.infer(WRONG)
        assert add(sequence, 1) == 1
        with pytest.raises(InvalidTensor, match="INPUT"):
            sequence.infer(WRONG, end=True)
        assert add(sequence, 1) == 2


def test_no_such_model(face_client, streamed):
    with pytest.raises(NotFound, match="nope") as caught:
        with face_client.sequence("nope", stream=streamed) as sequence:
            add(sequence, 1)
    assert not hasattr(caught.value, "__notes__")
    with face_client.sequence("nope", stream=streamed) as sequence:
        with pytest.raises(NotFound, match="nope"):
            add(sequence, 1)


def test_no_such_output(face_client, model, streamed):
    with face_client.sequence(model, outputs=["NOPE"], stream=streamed) as sequence:
        with pytest.raises(InvalidArgument, match="NOPE"):
            add(sequence, 1)


def test_no_server(channel, face_class, streamed):
    with face_class("127.0.0.1:9", channel=channel, timeout=5) as client:
        with pytest.raises(Unavailable) as caught:
            with client.sequence("accumulate_direct", stream=streamed) as sequence:
                add(sequence, 1)
    (note,) = caught.value.__notes__
    assert f"sequence {sequence.id} could not be ended" in note


def test_deadlines_of_calls(face_client, model, ends):
    with face_client.sequence(model, stream=False) as sequence:
        add(sequence, 1)
        with pytest.raises(DeadlineExceeded):
            add(sequence, 10, timeout=0)
        assert add(sequence, 100) == 101
    assert ends() == 1


def test_the_deadline_of_all_requests(face_client, model):
    sequence = face_client.sequence(model, stream=False, timeout=0)
    with pytest.raises(DeadlineExceeded):
        add(sequence, 1)
    with pytest.raises(DeadlineExceeded):
        sequence.close()
    with pytest.raises(ClosedError):
        add(sequence, 1, timeout=30)
    with face_client.sequence(model, stream=False, timeout=0) as sequence:
        assert add(sequence, 1, timeout=30) == 1
        assert add(sequence, 1, timeout=30, end=True) == 2


@pytest.mark.server_may_die
def test_waiting_for_a_place(sequence_server, channel, face_class, streamed):
    """The direct strategy has place for 16 sequences."""
    with face_class(sequence_server.grpc_url, channel=channel, timeout=60) as client:
        sequences = [client.sequence(PATIENT, stream=streamed) for _ in range(16)]
        for sequence in sequences:
            add(sequence, 1)
        sequences.append(client.sequence(PATIENT, stream=streamed, timeout=0.5))
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            add(sequences[16], 1)
        assert 0.49 < time.monotonic() - began < 30, "places are free after a minute"
        sequences[0].close()
        # On a stream, the request that was given up has its place now. Without one the server was
        # told, and as long as it has not forgotten that request, it cancels those that come after
        # it in the sequence.
        last = sequences[16]
        total = patiently(lambda: add(last, 10, timeout=60), Unavailable if streamed else Cancelled)
        assert total == (11 if streamed else 10)
        for sequence in sequences:
            sequence.close()


def test_sequences_that_are_idle_for_too_long(sequence_server, channel):
    with (
        Client(sequence_server.grpc_url, channel=channel, timeout=30) as one,
        BlockingFace(sequence_server.grpc_url, channel=channel, timeout=30) as other,
    ):
        modes = [(client, streamed) for client in (one, other) for streamed in (True, False)]
        lost, left = (
            [client.sequence(HASTY, stream=streamed) for client, streamed in modes]
            for _ in range(2)
        )
        for sequence in (*lost, *left):
            add(sequence, 1)
        time.sleep(2)  # a quarter of it is allowed, and the server looks now and then
        for sequence in lost:
            with pytest.raises(InvalidArgument, match=LOST):
                add(sequence, 1)
            sequence.close()  # there is nothing to end any more, as was told already
        for sequence in left:
            with pytest.raises(InvalidArgument, match=LOST):
                sequence.close()
            sequence.close()


def patiently(call, refusal=Unavailable):
    """Call until the server takes it: connections that it has left are found out by calls."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            return call()
        except refusal:
            time.sleep(0.1)
    pytest.fail("the server does not take the call")


@pytest.fixture(scope="module")
def sequence_server_to_kill(triton_server_factory):
    """Started by those who need it, who kill it."""
    return triton_server_factory(models=["accumulate_oldest"])


def test_a_server_that_is_started_anew(sequence_server_to_kill, channel, face_class):
    sequence_server_to_kill.start()
    with face_class(sequence_server_to_kill.grpc_url, channel=channel, timeout=30) as client:
        stream = client.sequence("accumulate_oldest")
        calls = client.sequence("accumulate_oldest", stream=False)
        assert [add(stream, 1), add(calls, 1)] == [1, 1]
        sequence_server_to_kill.kill()
        sequence_server_to_kill.start()
        with pytest.raises(Unavailable):
            add(stream, 1)
        with pytest.raises(Unavailable), stream:
            add(stream, 1)  # it does not come back: answers would be those of another sum
        with pytest.raises(InvalidArgument, match=LOST):
            patiently(lambda: add(calls, 1))
        calls.close()
        with client.sequence("accumulate_oldest") as sequence:
            assert [add(sequence, 1), add(sequence, 1)] == [1, 2]


def test_a_server_that_is_killed(sequence_server_to_kill, channel, face_class, streamed):
    sequence_server_to_kill.start()
    with face_class(sequence_server_to_kill.grpc_url, channel=channel, timeout=30) as client:
        sequence = client.sequence("accumulate_oldest", stream=streamed)
        add(sequence, 1)
        sequence_server_to_kill.kill()
        began = time.monotonic()
        with pytest.raises(KeyError) as caught, sequence:
            raise KeyError
        assert time.monotonic() - began < 20, "it does not wait for the call's deadline"
        (note,) = caught.value.__notes__
        assert f"sequence {sequence.id} could not be ended" in note


def test_a_client_that_is_closed(face_client, model, streamed):
    other = face_client.sequence(model, stream=streamed)
    sequence = face_client.sequence(model, stream=streamed)
    for one in (other, sequence):
        add(one, 1)
    face_client.close()
    with pytest.raises(ClosedError) as caught, sequence:
        add(sequence, 1)
    (note,) = caught.value.__notes__
    assert "could not be ended" in note
    with pytest.raises(ClosedError):
        other.close()
    other.close()
    with pytest.raises(ClosedError):
        add(face_client.sequence(model, stream=streamed), 1)


# Many answers


def repeat(*values):
    count = len(values)
    return {"IN": np.int32(values), "DELAY": np.uint32([0] * count), "WAIT": np.uint32([0])}


def test_many_answers_to_a_request(face_client):
    with face_client.sequence("repeat_int32") as sequence:
        for values in ([1, 2, 3], [4], []):
            answers = [result["OUT"].item() for result in sequence.stream(repeat(*values))]
            assert answers == values
        assert sequence.infer(repeat(5))["OUT"] == 5
        for values in ([], [1, 2]):
            with pytest.raises(Internal, match=f"gave {len(values)} answers"):
                sequence.infer(repeat(*values))
        assert sequence.infer(repeat(6))["OUT"] == 6


def test_many_answers_take_a_stream(face_client, model, ends):
    with face_client.sequence(model, stream=False) as sequence:
        with pytest.raises(InvalidOption, match="stream=True"):
            sequence.stream(number(1))
        assert add(sequence, 1) == 1
    assert ends() == 1


def test_errors_that_come_with_answers(face_client, model, ends):
    with face_client.sequence(model) as sequence:
        with pytest.raises(InvalidArgument, match="data-type"):
            list(sequence.stream(WRONG))
        assert [result["OUTPUT"].item() for result in sequence.stream(number(1))] == [1]
        with pytest.raises(InvalidArgument, match="data-type"):
            list(sequence.stream(WRONG))
    assert ends() == 1


def test_an_error_is_one_of_ours(face_client, model, streamed):
    with face_client.sequence(model, stream=streamed) as sequence:
        for inputs in ({}, {"NOPE": np.int32([1])}, {"INPUT": np.int32([[1]])}):
            with pytest.raises(TritonFastError):
                sequence.infer(inputs)
        assert add(sequence, 1) == 1


# Only coroutines


def test_a_task_that_is_cancelled_ends_its_sequence(server, channel, streamed, run):
    async def main():
        async with AsyncClient(server.grpc_url, channel=channel, timeout=30) as client:

            async def use():
                async with client.sequence("accumulate_oldest", stream=streamed) as sequence:
                    await sequence.infer(number(1))
                    begun.set()
                    await asyncio.sleep(60)

            async def ends():
                async with client.sequence("accumulate_oldest") as sequence:
                    return (await sequence.infer(number(0), end=True))["ENDED"].item()

            before = await ends()
            begun = asyncio.Event()
            task = asyncio.create_task(use())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await ends() == before + 2

    run(main())


def test_requests_are_sent_in_the_order_in_which_they_are_made(server, channel, run):
    async def main():
        async with AsyncClient(server.grpc_url, channel=channel, timeout=30) as client:
            async with client.sequence("accumulate_oldest") as sequence:
                answers = [await sequence.stream(number(value)) for value in (1, 2, 3)]
                return [(await anext(each))["OUTPUT"].item() for each in reversed(answers)]

    assert run(main()) == [6, 3, 1]
