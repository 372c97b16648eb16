"""Timeouts and headers, as calls and clients are given them."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from triton_fast.errors import InvalidOption
from triton_fast.options.deadline import deadline_after, microseconds, own_seconds, seconds
from triton_fast.options.headers import checked_headers

ODD = timedelta(seconds=5)


def test_a_calls_own_timeout():
    assert own_seconds(None, "timeout") is None
    assert own_seconds(2, "timeout") == 2
    assert own_seconds(math.inf, "timeout") == own_seconds(1e300, "timeout") == math.inf
    assert deadline_after(math.inf) is None
    with pytest.raises(InvalidOption, match="timeout must be zero or more seconds, got -1"):
        own_seconds(-1, "timeout")


def test_timeouts():
    assert seconds(None, "timeout") is None
    assert seconds(math.inf, "timeout") is None
    assert seconds(0, "timeout") == 0
    assert seconds(1.5, "timeout") == 1.5
    assert seconds(np.float32(1.5), "timeout") == seconds(Fraction(3, 2), "timeout") == 1.5
    assert seconds(np.int64(2), "timeout") == seconds(Decimal(2), "timeout") == 2
    assert deadline_after(None) is None
    now = time.monotonic_ns()
    assert now + 9e9 < deadline_after(10) < now + 60e9
    assert microseconds(0.0015, "queue_timeout") == 1500
    assert microseconds(None, "queue_timeout") is None


@pytest.mark.parametrize(
    "value",
    [-1, -0.001, math.nan, "soon", "5", b"5", True, np.bool_(1), [], -math.inf, 10**400, 1j, ODD],
)
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
        ({"a b": "x"}, "name of header 1 must .* has ' ' in it"),
        ([("a", "b"), ("", "x")], "name of header 2 must .* is empty"),
        ({3: "x"}, "name of header 1 must be a str, got int"),
        ({"a": "é"}, "header 'a'.*ASCII"),
        ({"a": "x\n"}, "header 'a'.*ASCII"),
        ({"a\n": "x"}, "name of header"),
        ({"a": b"x"}, "header 'a'.*bytes; it must be a str"),
        ({"a-bin": "x"}, "must be bytes"),
        ({"grpc-timeout": "1S"}, "'grpc-timeout' cannot be set: .*gRPC's own"),
        ({"Grpc-Trace-Bin": b"1"}, "'Grpc-Trace-Bin' cannot be set: .*gRPC's own"),
        ({":authority": "a"}, "':authority' cannot be set: .*authority="),
        ({"Content-Type": "a"}, "'Content-Type' cannot be set: the channel sets it"),
        ({"te": "trailers"}, "'te' cannot be set: the channel sets it"),
        ({"user-agent": "a"}, "'user-agent' cannot be set: the channel sets it"),
        ({"content-length": "1"}, "'content-length' cannot be set: the length"),
        ({"host": "a"}, "'host' cannot be set: .*authority="),
        ({"connection": "close"}, "'connection' cannot be set: .*HTTP/2 knows no such"),
        ({"keep-alive": "1"}, "'keep-alive' cannot be set: .*HTTP/2 knows no such.*keepalive="),
        ({"proxy-connection": "a"}, "'proxy-connection' cannot be set: .*HTTP/2 knows no such"),
        ({"transfer-encoding": "a"}, "'transfer-encoding' cannot be set: .*HTTP/2 knows no such"),
        ({"upgrade": "h2c"}, "'upgrade' cannot be set: .*HTTP/2 knows no such"),
        (["ab", "cde"], "mapping or pairs"),
        ([{"a": "b", "c": "d"}], "mapping or pairs"),
        (["ab"], "mapping or pairs"),
        ("", "mapping or pairs"),
        (b"", "mapping or pairs"),
        (7, "mapping or pairs"),
    ],
)
def test_headers_that_cannot_be_sent(headers, message):
    with pytest.raises(InvalidOption, match=message):
        checked_headers(headers)
