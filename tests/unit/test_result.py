"""What is made of a response: arrays of our own, the caller's, and those on slots; no server."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from triton_fast import InferResult, InvalidOption, InvalidTensor, WireError
from triton_fast._core import _wire
from triton_fast.client.attempt import checked_out
from triton_fast.inference.result import Receiver
from triton_fast.protocol.datatypes import datatype_of
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


# --- Text -----------------------------------------------------------------------------------------


def of_strings(*rows: list[bytes]) -> InferResult:
    return InferResult("m", "1", "", {}, {"y": np.array(rows, object), "n": DATA})


def test_text() -> None:
    result = of_strings([b"a", "é€𝄞".encode()], [b"", b"nul\0\0"])
    text = result.text("y")
    assert text.tolist() == [["a", "é€𝄞"], ["", "nul\0\0"]]
    assert text.dtype == object
    assert result["y"][0, 0] == b"a"
    empty = InferResult("m", "1", "", {}, {"y": np.empty((0, 2), object)})
    assert empty.text("y").shape == (0, 2)
    scalar = np.empty((), object)
    scalar[()] = b"one"
    assert InferResult("m", "1", "", {}, {"y": scalar}).text("y").item() == "one"


def test_what_is_no_text() -> None:
    result = of_strings([b"a", b"b"], [b"c", b"caf\xe9"])
    says = r"output 'y', element \[1, 1\]: b'caf\\xe9' is no UTF-8 \(unexpected end .* byte 3\)"
    with pytest.raises(InvalidTensor, match=says) as raised:
        result.text("y")
    assert isinstance(raised.value, ValueError)
    assert result.text("y", errors="replace")[1, 1] == "caf\ufffd"
    assert result.text("y", "surrogateescape")[1, 1] == "caf\udce9"
    with pytest.raises(InvalidTensor) as raised:
        of_strings([b"\xff" * 1000]).text("y")
    assert len(str(raised.value)) < 500
    with pytest.raises(InvalidOption, match=r"output 'n' is float32 \[2, 3\] and no text.*BYTES"):
        result.text("n")
    with pytest.raises(KeyError, match="no output 'x'"):
        result.text("x")
    for errors in ("nonsense", None, 3):
        with pytest.raises(InvalidOption, match="errors must be a way with errors"):
            result.text("y", errors)  # type: ignore[arg-type]


# --- Copies ---------------------------------------------------------------------------------------


def whole() -> InferResult:
    """Return a result with everything that one can have, its arrays on slots and on the answer."""
    mine = Slot("r", 0, 0, DATA.nbytes, lease(DATA))
    answer = received(
        {"y": ("FP32", [2, 3]), "z": 2 * DATA, "there": ("FP32", [5])}, {}, {"y": mine}
    )
    arrays = {
        **answer,
        "text": np.array([b"a\0", b""], object),
        "bf16": np.array([1.5, 2], ml_dtypes.bfloat16),
        "none": np.empty((0, 3), np.int8),
    }
    return InferResult(
        "m", "1", "id", {"a": 1, "b": "x"}, arrays, {"z": {"c": True}}, answer.shared_memory
    )


@pytest.mark.parametrize(
    "copied",
    [
        *(
            pytest.param(
                lambda r, p=protocol: pickle.loads(pickle.dumps(r, p)), id=f"pickle{protocol}"
            )
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
        ),
        pytest.param(copy.copy, id="copy"),
        pytest.param(copy.deepcopy, id="deepcopy"),
    ],
)
def test_copies_have_memory_of_their_own(copied: Any) -> None:
    result = whole()
    twin = copied(result)
    assert isinstance(twin, InferResult)
    for name in ("model_name", "model_version", "id", "parameters", "shared_memory"):
        assert getattr(twin, name) == getattr(result, name)
    assert twin.output_parameters("z") == {"c": True}
    assert twin.output_parameters("y") == result.output_parameters("y")
    assert list(twin) == list(result)
    for name, array in result.items():
        assert type(twin[name]) is np.ndarray
        assert twin[name].dtype == array.dtype
        assert twin[name].flags.writeable
        assert not np.shares_memory(twin[name], array)
        np.testing.assert_array_equal(twin[name], array)
    plain = copied(InferResult("m", "", "", {}, {}))
    assert (len(plain), plain.parameters, plain.shared_memory) == (0, {}, {})


def test_arrays_of_a_kind_of_their_own_are_plain_in_copies(tmp_path: Any) -> None:
    given = np.memmap(tmp_path / "file", np.float32, "w+", shape=(2, 3))
    result = InferResult("m", "1", "", {}, {"y": given})
    for twin in (pickle.loads(pickle.dumps(result)), copy.copy(result), copy.deepcopy(result)):
        assert type(twin["y"]) is np.ndarray


def test_another_process_reads_it() -> None:
    program = (
        "import pickle, sys; r = pickle.load(sys.stdin.buffer); r['y'][0] += 1; "
        "sys.stdout.buffer.write(pickle.dumps(r))"
    )
    result = InferResult("m", "1", "", {}, dict(whole()))
    ran = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(result),
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    np.testing.assert_array_equal(pickle.loads(ran.stdout)["y"], DATA + np.float32([[1], [0]]))


def test_results_as_torch_tensors():
    torch = pytest.importorskip("torch", reason="torch is not installed (optional)")
    arrays = {
        "f": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.arange(3).astype(ml_dtypes.bfloat16),
        "t": np.array([b"a"], object),
    }
    result = InferResult("m", "1", "", {}, arrays)
    for name, dtype in (("f", torch.float32), ("b", torch.bfloat16)):
        tensor = result.torch(name)
        assert tensor.dtype == dtype
        assert tensor.data_ptr() == arrays[name].ctypes.data
        assert tensor.tolist() == arrays[name].astype(np.float32).tolist()
    with pytest.raises(InvalidTensor, match="BYTES, of which torch has no tensors"):
        result.torch("t")
    with pytest.raises(KeyError):
        result.torch("none")


def test_torch_tensors_to_write_to():
    torch = pytest.importorskip("torch", reason="torch is not installed (optional)")
    for dtype, datatype in ((torch.float32, "FP32"), (torch.bfloat16, "BF16")):
        tensor = torch.zeros(2, 3, dtype=dtype)
        array = checked_out({"y": tensor})["y"]
        assert datatype_of(array.dtype) == datatype
        assert array.ctypes.data == tensor.data_ptr()
        array[:] = 3
        assert tensor.tolist() == [[3, 3, 3]] * 2
    for wrong in (torch.zeros(1, requires_grad=True), torch.zeros(1, device="meta")):
        with pytest.raises(InvalidTensor, match="Tensor lends no memory"):
            checked_out({"y": wrong})


def test_what_is_no_place_for_an_output():
    with pytest.raises(InvalidTensor, match="must be a numpy array, or a torch tensor on the CPU"):
        checked_out({"y": [1.0]})
    result = InferResult("m", "1", "", {}, {"t": np.array([b"a"], object)})
    with pytest.raises(InvalidTensor, match="BYTES, of which torch has no tensors"):
        result.torch("t")
