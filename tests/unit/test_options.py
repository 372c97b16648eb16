"""Timeouts, headers, errors: the small things that every call has."""

from __future__ import annotations

import math
import pickle
import time

import pytest

from triton_fast import errors
from triton_fast.errors import InvalidOption, ServerError, StatusCode, TritonFastError
from triton_fast.inference.request import RequestedOutput, prepare
from triton_fast.options.deadline import deadline_after, microseconds, seconds
from triton_fast.options.headers import checked_headers


def test_timeouts():
    assert seconds(None, "timeout") is None
    assert seconds(math.inf, "timeout") is None
    assert seconds(0, "timeout") == 0
    assert seconds(1.5, "timeout") == 1.5
    assert deadline_after(None) is None
    now = time.monotonic_ns()
    assert now + 9e9 < deadline_after(10) < now + 60e9
    assert microseconds(0.0015, "queue_timeout") == 1500
    assert microseconds(None, "queue_timeout") is None


@pytest.mark.parametrize("value", [-1, -0.001, math.nan, "soon", True, [], -math.inf])
def test_timeouts_that_are_none(value):
    with pytest.raises(InvalidOption, match=r"timeout must be .*seconds") as caught:
        seconds(value, "timeout")
    assert isinstance(caught.value, ValueError)


def test_headers():
    assert checked_headers(None) == ()
    assert checked_headers({"Authorization": "Bearer x"}) == (("authorization", "Bearer x"),)
    assert checked_headers([("a", "1"), ("a", "2")]) == (("a", "1"), ("a", "2"))
    assert checked_headers({"trace-bin": b"\0\xff"}) == (("trace-bin", b"\0\xff"),)


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"a b": "x"}, "header name 'a b'"),
        ({"": "x"}, "header name ''"),
        ({3: "x"}, "header name 3"),
        ({"a": "é"}, "header 'a'.*ASCII"),
        ({"a": "x\n"}, "header 'a'.*ASCII"),
        ({"a\n": "x"}, "header name"),
        ({"a": b"x"}, "header 'a'.*bytes; it must be a str"),
        ({"a-bin": "x"}, "must be bytes"),
        ({"grpc-timeout": "1S"}, "gRPC's own"),
        (["ab", "cde"], "mapping or pairs"),
        (7, "mapping or pairs"),
    ],
)
def test_headers_that_cannot_be_sent(headers, message):
    with pytest.raises(InvalidOption, match=message):
        checked_headers(headers)


def test_every_status_has_its_error():
    for status in StatusCode:
        if status is StatusCode.OK:
            continue
        error = errors.server_error(status, "why", call="ModelInfer('m')", target="host:1")
        name = "".join(part.capitalize() for part in status.name.split("_"))
        assert type(error).__name__ == name
        assert type(error) is getattr(errors, name)
        assert error.status is status
        assert str(error) == f"ModelInfer('m') at host:1: {status.name}: why"
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.status) == (type(error), str(error), status)
    assert type(errors.server_error(99, "")) is errors.Unknown
    assert isinstance(errors.server_error(4, ""), TimeoutError)


def test_one_tree():
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert issubclass(kind, TritonFastError)
    assert issubclass(errors.WireError, TritonFastError)
    assert not issubclass(errors.WireError, ServerError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_name": ""}, "name is empty"),
        ({"model_name": 3}, "model_name must be a str, got int"),
        ({"model_name": "\ud800"}, "UTF-8"),
        ({"model_version": 3}, "model_version must be a str, got int"),
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
        ({"outputs": [3]}, "by its name, not by 3"),
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
        prepare(**{**fields, **changes})
