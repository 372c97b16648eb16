"""What a request has beside its tensors: what is refused, and what is kept from call to call."""

from __future__ import annotations

import pytest

from triton_fast.errors import InvalidOption
from triton_fast.inference import request as requests
from triton_fast.inference.request import PreparedCalls, RequestedOutput, prepare, prepare_streamed
from triton_fast.protocol.grpc.codec import GRPC


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name": ""}, "name must be a str that is not empty"),
        ({"model_name": 3}, "name must be a str, got 3"),
        ({"model_name": "\ud800"}, "UTF-8"),
        ({"model_version": 3}, "version must be a str, got 3"),
        ({"parameters": {"priority": 1}}, "reserved; use the argument priority="),
        ({"parameters": {"timeout": 1}}, "reserved; use the argument queue_timeout="),
        ({"parameters": {"a": object()}}, "parameter 'a' is a object"),
        ({"parameters": {"a": 2**63}}, "64 bits"),
        ({"parameters": {1: "a"}}, "name must be a str"),
        ({"priority": -1}, "priority"),
        ({"priority": "high"}, "priority"),
        ({"priority": 2**64}, "priority"),
        ({"queue_timeout": -1}, "queue_timeout must be zero or more seconds, got -1"),
        ({"outputs": "y"}, r"write \['y'\]"),
        ({"outputs": [3]}, "and has 3 in it"),
        ({"outputs": [RequestedOutput("y", {"a": None})]}, "parameter 'a' is a NoneType"),
    ],
)
def test_options_that_cannot_be_sent(changes, message):
    fields = {
        "model_name": "m",
        "model_version": "",
        "outputs": None,
        "parameters": None,
        "priority": 0,
        "queue_timeout": None,
    }
    with pytest.raises(InvalidOption, match=message):
        prepare(GRPC, **{**fields, **changes})


PLAIN = (None, None, 0, None)


def test_plain_calls_are_prepared_once():
    calls = PreparedCalls(GRPC)
    kept = calls.get("m", "", *PLAIN)
    assert calls.get("m", "", *PLAIN) is kept
    for other in (
        ("m", "2", *PLAIN),
        ("m", "", ["y"], None, 0, None),
        ("m", "", None, {"a": 1}, 0, None),
        ("m", "", None, None, 1, None),
        ("m", "", None, None, 0, 1.0),
    ):
        made = calls.get(*other)
        assert made is not kept
        assert (calls.get(*other) is made) is (other[2:] == PLAIN)
    assert calls.get("m", "", *PLAIN) is kept


def test_names_that_never_come_again_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(requests, "_MOST_PREPARED", 3)
    calls = PreparedCalls(GRPC)
    for number in range(10):
        calls.get(f"m{number}", "", *PLAIN)
    assert 0 < len(calls._plain) <= 3


def test_a_name_is_checked_also_if_it_is_an_equal_of_one_that_is_known():
    class Name(str):
        __slots__ = ()

    calls = PreparedCalls(GRPC)
    kept = calls.get("m", "", *PLAIN)
    assert calls.get(Name("m"), "", *PLAIN) is not kept
    with pytest.raises(InvalidOption):
        calls.get(["m"], "", *PLAIN)


def test_requests_of_a_stream():
    """They ask for a last answer with nothing in it, and have no output in shared memory."""
    prepared = prepare_streamed(GRPC, "m", "", None, {"a": 1}, 0, None)
    assert prepared.settings["parameters"] == {"triton_enable_empty_final_response": True, "a": 1}
    assert prepared.call == "ModelStreamInfer('m')"
    there = RequestedOutput("y", {"shared_memory_region": "r", "shared_memory_byte_size": 4})
    with pytest.raises(InvalidOption, match="output 'y' of a stream cannot be in shared memory"):
        prepare_streamed(GRPC, "m", "", [there], None, 0, None)


def test_the_outputs_of_a_prepared_call_can_be_replaced():
    prepared = prepare(GRPC, "m", "2", ["y"], {"a": 1}, 3, 0.5)
    assert prepared.output_names == ("y",)
    assert prepared.asking_for(prepared.requested).byte_size == prepared.header.byte_size
    placed = prepared.asking_for([("y", {"shared_memory_region": "r"})])
    assert placed.shared_memory_outputs == ("y",)
    assert prepared.header.shared_memory_outputs == ()
