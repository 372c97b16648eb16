"""SequenceRequests: ids, flags, and what failed requests do to those that follow. No server."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from triton_fast import (
    ClosedError,
    Internal,
    InvalidArgument,
    InvalidOption,
    InvalidTensor,
    NotFound,
    RequestedOutput,
    Tensor,
)
from triton_fast.protocol.grpc.codec import GRPC
from triton_fast.streaming.sequence_requests import (
    NO_SEQUENCE,
    SequenceRequests,
    only_answer,
    unary_only,
)

ONE = {"INPUT": np.int32([1])}


def requests(
    model="m",
    *,
    model_version="",
    outputs=None,
    parameters=None,
    priority=0,
    queue_timeout=None,
    sequence_id=7,
    resume=False,
    streamed=False,
):
    return SequenceRequests(
        GRPC,
        model,
        model_version,
        outputs,
        parameters,
        priority,
        queue_timeout,
        sequence_id,
        resume=resume,
        streamed=streamed,
    )


def flags(request):
    """Return the start and end flags of a request."""
    parameters = request.prepared.settings["parameters"]
    assert parameters["sequence_id"] == 7
    assert parameters["sequence_end"] is request.ends
    return parameters["sequence_start"], parameters["sequence_end"]


def made(made_by, inputs=ONE, *, end=False, error=None):
    """Make a request that is over at once, as unary calls are; return its flags."""
    request = made_by.next(inputs, end=end)
    if error is None:
        with request:
            pass
    else:
        with pytest.raises(type(error)), request:
            raise error
    return flags(request)


def sent(made_by, inputs=ONE, *, end=False):
    """Send a request on a stream; return its flags and what the stream knows of it."""
    request = made_by.next(inputs, end=end)
    pending = SimpleNamespace(over=False, answered=False)
    with request:
        request.pending = pending
    return flags(request), pending


def answer(pending, *, answered=True):
    pending.over, pending.answered = True, answered


START, MIDDLE, END, BOTH = (True, False), (False, False), (False, True), (True, True)


# Ids


def test_ids_of_our_own_are_numbers_that_nobody_else_has():
    ids = [requests(sequence_id=None).id for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(type(one) is int and 0 < one < 1 << 63 for one in ids)


@pytest.mark.parametrize("one", [1, 4711, (1 << 63) - 1, "a", "été", "x" * 1000])
def test_ids_of_the_callers(one):
    mine = requests(sequence_id=one)
    assert mine.id == one
    parameters = mine.next(ONE, end=False).prepared.settings["parameters"]
    assert parameters["sequence_id"] == one


def test_an_id_that_numpy_has_made():
    mine = requests(sequence_id=np.int64(7))
    assert mine.id == 7
    assert type(mine.id) is int


@pytest.mark.parametrize(
    "one", [0, -1, 1 << 63, -(1 << 63), "", True, False, 1.0, b"a", np.float64(5), ["a"]]
)
def test_ids_that_are_none(one):
    with pytest.raises(InvalidOption, match="sequence_id must be a str"):
        requests(sequence_id=one)


def test_an_id_that_cannot_be_encoded():
    with pytest.raises(InvalidOption):
        requests(sequence_id="\ud800")


# What is wrong is said before there is a sequence


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"model": ""}, "name must be a str that is not empty"),
        ({"outputs": "OUTPUT"}, r"write \['OUTPUT'\]"),
        ({"outputs": RequestedOutput("OUTPUT")}, "sequence of names"),
        ({"outputs": [3]}, "and has 3 in it"),
        ({"parameters": {"sequence_id": 5}}, "'sequence_id' is set by the sequence"),
        ({"parameters": {"sequence_start": True}}, "'sequence_start' is set by the sequence"),
        ({"parameters": {"sequence_end": True}}, "'sequence_end' is set by the sequence"),
        ({"parameters": {"priority": 1}}, "reserved"),
        ({"parameters": {"x": object()}}, "x"),
        ({"priority": -1}, "priority"),
        ({"queue_timeout": -1}, "queue_timeout"),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_arguments_that_make_no_sense(arguments, complaint, streamed):
    with pytest.raises(InvalidOption, match=complaint):
        requests(**arguments, streamed=streamed)


def test_outputs_in_shared_memory_are_not_for_streams():
    shared = RequestedOutput("OUTPUT", {"shared_memory_region": "r", "shared_memory_byte_size": 4})
    requests(outputs=[shared])
    with pytest.raises(InvalidOption, match="overwrite"):
        requests(outputs=[shared], streamed=True)


def test_arguments_are_those_of_every_request():
    parameters = {"own": 5}
    mine = requests(
        model_version="2",
        outputs=(name for name in ["A", "B"]),
        parameters=parameters,
        priority=3,
        queue_timeout=0.5,
    )
    parameters["own"] = 6
    for expected in (START, MIDDLE, END):
        request = mine.next(ONE, end=expected[1])
        with request:
            assert flags(request) == expected
        prepared = request.prepared
        assert (prepared.model_name, prepared.model_version) == ("m", "2")
        assert prepared.output_names == ("A", "B")
        assert prepared.settings["parameters"]["own"] == 5
        assert prepared.settings["priority"] == 3
        assert prepared.settings["queue_timeout_us"] == 500_000


def test_streams_ask_for_the_final_answer():
    name = "triton_enable_empty_final_response"
    request = requests(streamed=True).next(ONE, end=False)
    assert request.prepared.settings["parameters"][name] is True
    assert request.prepared.call == "ModelStreamInfer('m')"
    request = requests().next(ONE, end=False)
    assert name not in request.prepared.settings["parameters"]
    assert request.prepared.call == "ModelInfer('m')"


def test_what_stays_the_same_is_encoded_once():
    mine = requests()
    made(mine)
    first = mine.next(ONE, end=False)
    with first:
        pass
    assert mine.next(ONE, end=False).prepared is first.prepared


# Flags


def test_the_first_says_start_and_the_last_end():
    mine = requests()
    assert [made(mine, end=number == 3) for number in range(4)] == [START, MIDDLE, MIDDLE, END]


def test_a_sequence_of_one_request():
    mine = requests()
    assert made(mine, end=True) == BOTH
    assert mine.ending_request() is None


def test_requests_may_follow_each_other_before_there_are_answers():
    mine = requests(streamed=True)
    assert [sent(mine)[0], sent(mine)[0], sent(mine, end=True)[0]] == [START, MIDDLE, END]
    with pytest.raises(ClosedError, match="sequence 7 was ended"):
        mine.next(ONE, end=False)
    assert mine.ending_request() is None


@pytest.mark.parametrize("end", [True, False])
def test_no_request_follows_the_last(end):
    mine = requests()
    made(mine)
    made(mine, end=True)
    with pytest.raises(ClosedError, match="sequence 7 was ended, and takes no more requests"):
        mine.next(ONE, end=end)


def test_no_request_follows_when_it_is_closed():
    mine = requests()
    mine.closed = True
    with pytest.raises(ClosedError):
        mine.next(ONE, end=False)
    assert mine.ending_request() is None


def test_a_request_that_is_not_entered_was_not_made():
    mine = requests()
    mine.next(ONE, end=True)
    assert mine.ending_request() is None
    assert made(mine) == START


@pytest.mark.parametrize("error", [InvalidTensor("x"), InvalidOption("x")])
def test_what_could_not_be_sent_was_not_made(error):
    mine = requests()
    assert made(mine, error=error) == START
    assert mine.ending_request() is None
    assert made(mine) == START
    assert made(mine, end=True, error=error) == END
    assert made(mine) == MIDDLE
    assert made(mine, end=True) == END


@pytest.mark.parametrize("inputs", [None, [1], "INPUT", {("INPUT", 1)}])
def test_inputs_that_are_none(inputs):
    with pytest.raises(InvalidTensor, match="inputs must be a mapping"):
        requests().next(inputs, end=False)


def test_an_input_that_is_none():
    with pytest.raises(InvalidTensor, match="input 'INPUT'"):
        requests().next({"INPUT": object()}, end=False)


# Failures


@pytest.mark.parametrize("error", [Internal("x"), NotFound("x"), KeyboardInterrupt()])
def test_a_sequence_starts_anew_until_a_request_was_answered(error):
    mine = requests()
    assert [made(mine, error=error), made(mine, error=error), made(mine)] == [START] * 3
    assert made(mine, error=error) == MIDDLE
    assert made(mine) == MIDDLE


def test_a_failed_end_is_none():
    mine = requests()
    made(mine)
    assert made(mine, end=True, error=InvalidArgument("x")) == END
    assert made(mine) == MIDDLE
    assert mine.ending_request() is not None
    assert made(mine, end=True) == END
    assert mine.ending_request() is None


def test_failures_on_a_stream_are_seen_when_they_are_read():
    mine = requests(streamed=True)
    _, first = sent(mine)
    _, second = sent(mine)
    answer(first, answered=False)
    third_flags, third = sent(mine)
    assert third_flags == MIDDLE, "the second may have begun it, for all that is known"
    answer(second, answered=False)
    answer(third, answered=False)
    assert sent(mine)[0] == START
    _, last = sent(mine, end=True)
    answer(last, answered=False)
    assert sent(mine)[0] == MIDDLE


def test_an_answer_that_was_too_late_counts():
    mine = requests(streamed=True)
    _, late = sent(mine)  # its reader gives up
    flags, _ = sent(mine)
    assert flags == MIDDLE
    answer(late)
    assert sent(mine)[0] == MIDDLE


# The end that is sent when nobody has sent one


def test_nothing_is_sent_where_nothing_was():
    assert requests().ending_request() is None
    assert requests(streamed=True).ending_request() is None


def test_the_ending_request():
    mine = requests()
    made(mine)
    request, inputs, in_doubt = mine.ending_request()
    assert flags(request) == END
    assert not in_doubt
    assert list(inputs) == ["INPUT"]
    with request:
        pass
    assert mine.ending_request() is None


def test_the_ending_request_has_the_form_of_the_last_answered_request():
    mine = requests()
    made(mine, {"A": np.ones((1, 2), np.float32)})
    made(mine, {"A": np.ones((3, 2), np.float32), "B": ["x", "y"]})
    made(mine, {"A": np.ones(9, np.float64)}, error=InvalidArgument("x"))
    _, inputs, in_doubt = mine.ending_request()
    assert in_doubt
    assert inputs["A"].datatype == "FP32"
    assert inputs["A"].shape == (3, 2)
    assert not inputs["A"].data.any()
    assert inputs["B"].tolist() == [b"", b""]


def test_the_ending_request_without_an_answered_request_has_the_form_of_the_last():
    mine = requests()
    made(mine, {"A": np.ones(9)}, error=Internal("x"))
    made(mine, {"A": np.ones(3)}, error=Internal("x"))
    request, inputs, in_doubt = mine.ending_request()
    assert flags(request) == END
    assert in_doubt
    assert inputs["A"].shape == (3,)


def test_the_ending_request_while_answers_are_on_their_way():
    mine = requests(streamed=True)
    _, first = sent(mine, {"A": np.ones(3)})
    sent(mine, {"A": np.ones(4)})
    request, inputs, in_doubt = mine.ending_request()
    assert flags(request) == END
    assert not in_doubt
    assert inputs["A"].shape == (4,)
    answer(first)
    assert mine.ending_request()[1]["A"].shape == (3,)


def test_doubt_ends_with_the_next_answer():
    mine = requests()
    made(mine)
    made(mine, error=Internal("x"))
    assert mine.ending_request()[2]
    made(mine)
    assert not mine.ending_request()[2]


@pytest.mark.parametrize(
    ("value", "datatype", "shape"),
    [
        (np.ones((2, 3), np.float32), "FP32", (2, 3)),
        (np.ones((2, 3), np.float32).T, "FP32", (3, 2)),
        (np.ones(2, ">i4"), "INT32", (2,)),
        (np.array(True), "BOOL", ()),
        (memoryview(b"abc"), "UINT8", (3,)),
        (Tensor(b"\0\0" * 6, "BF16", [2, 3]), "BF16", (2, 3)),
        (np.ones((0, 3), np.int64), "INT64", (0, 3)),
    ],
)
def test_blanks_of_numbers(value, datatype, shape):
    mine = requests()
    made(mine, {"A": value})
    blank = mine.ending_request()[1]["A"]
    assert (blank.datatype, blank.shape) == (datatype, shape)
    assert not blank.data.any()


@pytest.mark.parametrize("value", [[["a", "b"]], np.array([["a", "b"]]), np.array([["a", b"b"]])])
def test_blanks_of_strings(value):
    mine = requests()
    made(mine, {"A": value})
    assert mine.ending_request()[1]["A"].tolist() == [[b"", b""]]


def test_no_sequence_is_what_the_server_says():
    assert set(NO_SEQUENCE) == {InvalidArgument, NotFound}


# One answer


def test_the_only_answer():
    assert only_answer(["it"], requests()) == "it"
    for answers in ([], ["one", "two"]):
        with pytest.raises(Internal, match=f"gave {len(answers)} answers .* sequence 7"):
            only_answer(answers, requests())
    assert isinstance(unary_only(), InvalidOption)
