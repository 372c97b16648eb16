"""Errors: one class for each status, in one tree."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from triton_fast import InferResult, errors
from triton_fast.errors import ServerError, StatusCode, TritonFastError


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


def test_what_a_server_says_is_escaped_and_cut():
    text = "no\r\n\x1b[31mERROR root: \0\u202ethat\u2028 is so: é"
    error = errors.server_error(13, text, call="ModelInfer('m')", target="host:1")
    assert error.message == text
    shown = r"no\r\n\x1b[31mERROR root: \x00\u202ethat\u2028 is so: é"
    assert str(error) == f"ModelInfer('m') at host:1: INTERNAL: {shown}"
    for one, most in (
        ("x" * 2000, "x" * 2000),
        ("x" * 2001, "x" * 2000),
        ("\n" * 1500, r"\n" * 1000),
    ):
        error = errors.server_error(13, one)
        rest = "" if one == most else f"… ({len(one):,} characters in all)"
        assert str(error) == f"INTERNAL: {most}{rest}"
        assert error.message == one
        assert pickle.loads(pickle.dumps(error)).message == one


@pytest.mark.parametrize("kind", [errors.WireError, errors.InvalidTensor])
def test_names_that_a_server_has_sent_are_escaped(kind):
    error = kind("output 0 ('\x1b[31m\n') has no datatype" + "x" * 2000)
    assert str(error).startswith(r"output 0 ('\x1b[31m\n') has no datatypexxx")
    assert len(str(error)) < 2100
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_result_of_a_server_with_odd_names():
    result = InferResult("m\n", "\x1b", "", {}, {"y\r": np.zeros(1)})
    assert repr(result) == r"InferResult(m\n \x1b, {y\r: float64[1]})"


def test_one_tree():
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, Exception):
            assert issubclass(kind, TritonFastError)
    assert issubclass(errors.WireError, TritonFastError)
    assert not issubclass(errors.WireError, ServerError)
