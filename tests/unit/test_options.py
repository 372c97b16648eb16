"""Timeouts and headers, as calls and clients are given them."""

from __future__ import annotations

import math
import time

import pytest

from triton_fast.errors import InvalidOption
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
