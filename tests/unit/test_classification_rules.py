"""Classes: how they are asked for, and what is read of what comes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from triton_fast import Class, InferResult, InvalidOption, RequestedOutput, WireError
from triton_fast.inference.request import prepare
from triton_fast.protocol.grpc.codec import GRPC


def answer(elements, shape=None):
    array = np.empty(len(elements), object)
    array[:] = elements
    return InferResult("m", "1", "", {}, {"scores": array.reshape(shape or array.shape)})


def test_asking():
    asked = [RequestedOutput("y", {"a": "b"}, class_count=3), RequestedOutput("z", class_count=1)]
    prepared = prepare(GRPC, "m", "", asked, None, 0, None)
    assert prepared.requested == [
        ("y", {"a": "b", "classification": 3}),
        ("z", {"classification": 1}),
    ]
    assert prepared.output_names == ("y", "z")


@pytest.mark.parametrize("count", [0, -1, True, 2.0, "3", 1 << 31])
def test_counts_that_are_none(count):
    with pytest.raises(InvalidOption, match="output 'y': class_count must be a number of classes"):
        RequestedOutput("y", class_count=count)


@pytest.mark.parametrize("name", ["classification", "shared_memory_region"])
def test_parameters_that_exclude_it(name):
    with pytest.raises(InvalidOption, match=f"output 'y': class_count and the parameter '{name}'"):
        RequestedOutput("y", {name: "x"}, class_count=1)


def test_reading():
    result = answer([b"0.500000:7:cat", b"-1.250000:0"])
    assert result.classes("scores") == [Class(0.5, 7, "cat"), Class(-1.25, 0, "")]
    value, index, label = result.classes("scores")[0]
    assert (value, index, label) == (0.5, 7, "cat")
    assert type(value) is float
    assert result["scores"].tolist() == [b"0.500000:7:cat", b"-1.250000:0"]


def test_rows():
    elements = [b"%d:%d:%s" % (9 - i, i, b"abcdef"[i : i + 1]) for i in range(6)]
    classes = answer(elements, (2, 3)).classes("scores")
    assert [[one.label for one in row] for row in classes] == [["a", "b", "c"], ["d", "e", "f"]]
    assert answer([], (0, 3)).classes("scores") == []
    assert answer([], (2, 0)).classes("scores") == [[], []]


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        (b"1:2:a:b::c", Class(1, 2, "a:b::c")),
        (b"1:2:", Class(1, 2, "")),
        ("1:2:naïve\n:".encode(), Class(1, 2, "naïve\n:")),
        (b"-3:4", Class(-3, 4, "")),
        (b"inf:1", Class(math.inf, 1, "")),
        (b"-inf:1", Class(-math.inf, 1, "")),
        (b"1e+30:1", Class(1e30, 1, "")),
        (b"%f:1" % 1.7e308, Class(1.7e308, 1, "")),
        (b"18446744073709551615:9", Class(2.0**64, 9, "")),
    ],
)
def test_values_and_labels(element, expected):
    assert answer([element]).classes("scores") == [expected]


@pytest.mark.parametrize("element", [b"nan:3", b"-nan:3"])
def test_no_numbers(element):
    (one,) = answer([element]).classes("scores")
    assert math.isnan(one.value)
    assert one.index == 3


@pytest.mark.parametrize(
    "element",
    [
        b"",
        b"1",
        b":1",
        b"1:",
        b"1:x",
        b"x:1",
        b"1:-1",
        b"1: 1",
        b" 1:1",
        b"1_0:1",
        b"1:1_0",
        "1:٣".encode(),
        b"1:1\n",
        b"1:2:\xff",
        b"1:" + b"9" * 5000,
        b"9" * 5000 + b":1",
    ],
)
def test_elements_that_are_no_classes(element):
    with pytest.raises(
        WireError, match=r"output 'scores', element \[1, 0\]: b['\"].* no class"
    ) as caught:
        answer([b"1:2", element], (2, 1)).classes("scores")
    assert len(str(caught.value)) < 500


def test_outputs_that_have_none():
    result = InferResult("m", "1", "", {}, {"y": np.zeros(3, np.float32)})
    with pytest.raises(InvalidOption, match=r"float32 \[3\] and no classes.*class_count"):
        result.classes("y")
    with pytest.raises(KeyError, match="no output 'z'"):
        result.classes("z")
    scalar = np.empty((), object)
    scalar[()] = b"1:2"
    with pytest.raises(InvalidOption, match="no classes"):
        InferResult("m", "1", "", {}, {"y": scalar}).classes("y")
