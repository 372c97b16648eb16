"""What is made of a response: arrays of our own, the caller's, and those on slots; no server."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from triton_fast import InferResult, InvalidTensor, WireError
from triton_fast._core import _wire
from triton_fast.inference.result import Receiver
from triton_fast.protocol.messages import message_class
from triton_fast.shared_memory.pool import Slot

DATA = np.arange(6, dtype=np.float32).reshape(2, 3)


def received(
    outputs: dict[str, Any],
    out: dict[str, Any] | None = None,
    placed: dict[str, Slot] | None = None,
) -> InferResult:
    """Receive an answer; an output in shared memory is given as its datatype and shape."""
    message = message_class("ModelInferResponse")(model_name="m", model_version="1")
    for name, value in outputs.items():
        if isinstance(value, tuple):
            tensor = message.outputs.add(name=name, datatype=value[0], shape=value[1])
            tensor.parameters["shared_memory_region"].string_param = "r"
            message.raw_output_contents.append(b"")
        else:
            message.outputs.add(name=name, datatype="FP32", shape=value.shape)
            message.raw_output_contents.append(value.tobytes())
    asked = [
        (name, {"shared_memory_region": "r", "shared_memory_byte_size": 1 << 10})
        if isinstance(value, tuple)
        else (name, None)
        for name, value in outputs.items()
    ]
    receiver = Receiver(_wire.Header("m", outputs=asked), out, placed or {})
    try:
        encoded = message.SerializeToString()
        receiver.response.begin(len(encoded))
        receiver.response.feed(encoded)
        receiver.response.finish()
        return receiver.result()
    finally:
        receiver.release()


def test_into_arrays_of_the_caller() -> None:
    """Straight, or with a copy where the bytes are in another order or have gaps in between."""
    straight, gaps, swapped = np.zeros_like(DATA), np.zeros((2, 6), np.float32), DATA.astype(">f4")
    swapped[:] = 0
    for out in (straight, gaps[:, ::2], swapped):
        result = received({"y": DATA, "z": 2 * DATA}, {"y": out})
        assert result["y"] is out
        np.testing.assert_array_equal(out, DATA)
        np.testing.assert_array_equal(result["z"], 2 * DATA)


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ([0.0], r"out\['y'\] is a list; it must be a numpy array"),
        (np.frombuffer(bytes(24), np.float32), "is read-only"),
        (np.zeros(6, "M8[s]"), "which no output can have"),
        (np.zeros((3, 2), np.float32).T[::1], None),
        (np.zeros((2, 2, 3), np.float32)[:, 0], None),
        (np.zeros((4, 6), np.float32)[:, ::2], r"float32 \[4, 3\]; the answer is float32 \[2, 3\]"),
        (np.zeros((2, 3), ">i4"), r"the answer is float32 \[2, 3\]"),
    ],
)
def test_arrays_that_an_output_may_not_fit(out: Any, says: str | None) -> None:
    if says is None:
        np.testing.assert_array_equal(received({"y": DATA}, {"y": out})["y"], DATA)
        return
    with pytest.raises(InvalidTensor, match=says):
        received({"y": DATA}, {"y": out})


def test_an_output_that_did_not_come() -> None:
    with pytest.raises(InvalidTensor, match=r"out\['x'\]: model 'm' gave no such output.*'y', 'z'"):
        received({"y": DATA, "z": DATA}, {"x": np.zeros_like(DATA)})


def lease(data: Any) -> Any:
    """Return something to stand for a lease: what has a buffer."""
    return bytearray(data.tobytes())


def test_outputs_in_slots() -> None:
    mine = Slot("r", 0, 0, DATA.nbytes, lease(DATA))
    result = received({"y": ("FP32", [2, 3])}, placed={"y": mine})
    np.testing.assert_array_equal(result["y"], DATA)
    assert result["y"].flags.writeable
    assert not result.shared_memory
    # Of the caller's: copied where it is not what the server wrote to.
    out = np.zeros_like(DATA)
    assert received({"y": ("FP32", [2, 3])}, {"y": out}, {"y": mine})["y"] is out
    np.testing.assert_array_equal(out, DATA)
    there = Slot("r", 0, 0, DATA.nbytes, None)
    own = DATA.copy()
    assert received({"y": ("FP32", [2, 3])}, {"y": own}, {"y": there})["y"] is own
    np.testing.assert_array_equal(own, DATA)
    with pytest.raises(InvalidTensor, match=r"the answer is float32 \[3, 2\]"):
        received({"y": ("FP32", [3, 2])}, {"y": own}, {"y": there})


@pytest.mark.parametrize(("datatype", "shape"), [("FP32", [2, 4]), ("BYTES", [1])])
def test_outputs_that_cannot_be_in_their_slot(datatype: str, shape: list[int]) -> None:
    mine = Slot("r", 0, 0, DATA.nbytes, lease(DATA))
    with pytest.raises(WireError, match=r"was to be written to 24 bytes of shared memory"):
        received({"y": (datatype, shape)}, placed={"y": mine})


def test_outputs_in_memory_of_the_callers_own() -> None:
    """They are described, and are no part of the mapping."""
    result = received({"y": ("FP32", [2, 3]), "z": DATA})
    assert list(result) == ["z"]
    assert result.shared_memory["y"].shape == (2, 3)
    with pytest.raises(KeyError, match="in the shared memory that the request named"):
        result["y"]
    with pytest.raises(KeyError, match=r"no output 'x' in the answer of model 'm', which has 'z'"):
        result["x"]
