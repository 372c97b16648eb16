"""Batches larger than the model takes."""

from __future__ import annotations

import time

import numpy as np
import pytest
from support.blocking_face import BlockingFace

from triton_fast import (
    Client,
    InvalidArgument,
    InvalidOption,
    InvalidTensor,
    RequestedOutput,
    SharedMemoryRegion,
    Tensor,
    TritonFastError,
)

pytestmark = pytest.mark.server


def pair(rows):
    rng = np.random.default_rng(rows)
    return {
        "INPUT0": rng.standard_normal((rows, 16), np.float32),
        "INPUT1": rng.standard_normal((rows, 16), np.float32),
    }


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 16, 61])  # the model takes 8
def test_any_number_of_rows(client, rows):
    inputs = pair(rows)
    result = client.infer("add_sub", inputs, split=True, request_id="whole")
    np.testing.assert_array_equal(result["OUTPUT0"], inputs["INPUT0"] + inputs["INPUT1"])
    np.testing.assert_array_equal(result["OUTPUT1"], inputs["INPUT0"] - inputs["INPUT1"])
    assert (result.model_name, result.id) == ("add_sub", "whole")


def test_without_split_it_is_refused(client):
    with pytest.raises((InvalidArgument, InvalidTensor), match="8"):
        client.infer("add_sub", pair(9))


def test_some_outputs_into_arrays_of_the_callers(client):
    inputs = pair(30)
    sums = np.full((30, 16), np.nan, np.float32)
    result = client.model("add_sub", outputs=["OUTPUT0"])(inputs, split=True, out={"OUTPUT0": sums})
    assert list(result) == ["OUTPUT0"]
    assert result["OUTPUT0"] is sums
    np.testing.assert_array_equal(sums, inputs["INPUT0"] + inputs["INPUT1"])


def test_a_list_of_samples(client):
    inputs = pair(20)
    samples = {name: list(batch) for name, batch in inputs.items()}
    result = client.infer("add_sub", samples, split=True)
    np.testing.assert_array_equal(result["OUTPUT0"], inputs["INPUT0"] + inputs["INPUT1"])


def test_samples_that_do_not_go_together(client):
    samples = list(np.zeros((4, 16), np.float32))
    samples[2] = np.zeros(15, np.float32)
    with pytest.raises(InvalidTensor, match=r"'INPUT0': sample 2 is float32 \[15\], and sample 0"):
        client.infer("add_sub", {**pair(4), "INPUT0": samples}, split=True)


def test_a_piece_that_fails_is_named(client):
    rows = np.ones((6, 3), np.float32)
    delays = np.zeros((6, 1), np.float32)
    delays[1] = -1  # which the model refuses
    with pytest.raises(
        InvalidArgument, match=r"piece 1 of 6 \(rows 1 to 1\): DELAY .* between"
    ) as raised:
        client.infer("queued", {"INPUT0": rows, "DELAY": delays}, split=True)
    assert raised.value.call == "ModelInfer('queued')"
    delays[1] = 0
    result = client.infer("queued", {"INPUT0": rows, "DELAY": delays}, split=True)
    np.testing.assert_array_equal(result["OUTPUT0"], rows)
    with pytest.raises(InvalidTensor, match="piece 0 of 3 .*'NOPE'"):
        client.infer("add_sub", pair(20), split=True, outputs=["NOPE"])
    with pytest.raises(InvalidArgument, match=r"INVALID_ARGUMENT: DELAY .* between") as raised:
        client.infer("queued", {"INPUT0": rows[:1], "DELAY": delays[:1] - 1}, split=True)
    assert raised.value.__cause__ is not raised.value


def test_when_it_fails_no_piece_is_running(client):
    """The arrays are the caller's again, also those that a later piece was written to."""
    rows = np.ones((4, 3), np.float32)
    delays = np.array([[0], [-1], [0.3], [0.3]], np.float32)
    out = np.zeros((4, 3), np.float32)
    started = time.monotonic()
    with pytest.raises(InvalidArgument, match="piece 1 of 4"):
        client.infer("queued", {"INPUT0": rows, "DELAY": delays}, split=True, out={"OUTPUT0": out})
    assert time.monotonic() - started > 0.6  # one instance: one after the other


def test_what_cannot_be_split(client):
    with pytest.raises(InvalidTensor, match="different batch sizes"):
        client.infer("add_sub", {**pair(20), "INPUT1": pair(19)["INPUT1"]}, split=True)
    there = {"shared_memory_region": "r", "shared_memory_byte_size": 1280}
    tensor = Tensor(None, "BYTES", [20, 16], parameters=there)
    with pytest.raises(InvalidTensor, match="'INPUT0' cannot be split: it is BYTES in shared mem"):
        client.infer("add_sub", {**pair(20), "INPUT0": tensor}, split=True)
    with pytest.raises(InvalidOption, match="'OUTPUT0' of a call with split=True cannot be in sha"):
        client.infer("add_sub", pair(20), split=True, outputs=[RequestedOutput("OUTPUT0", there)])
    with pytest.raises(InvalidOption, match="takes no batches"):
        client.infer("identity_cpp", {"INPUT0": np.zeros(4, np.float32)}, split=True)
    result = client.infer("add_sub", pair(20), split=True)
    assert result["OUTPUT1"].shape == (20, 16)


def test_an_out_array_of_the_wrong_shape(client):
    with pytest.raises(InvalidTensor, match=r"out\['OUTPUT0'\] is float32 \[19, 16\]"):
        client.infer(
            "add_sub", pair(20), split=True, out={"OUTPUT0": np.zeros((19, 16), np.float32)}
        )


def test_an_input_in_shared_memory(client):
    inputs = pair(20)
    with SharedMemoryRegion.create(3000) as region:
        region.register(client)
        region.array((20, 16), np.float32, 640)[:] = inputs["INPUT1"]
        there = region.tensor((20, 16), np.float32, 640)
        result = client.infer("add_sub", {**inputs, "INPUT1": there}, split=True)
        np.testing.assert_array_equal(result["OUTPUT1"], inputs["INPUT0"] - inputs["INPUT1"])
        region.unregister(client)


# --- The same input means the same, with and without split ----------------------------------------


@pytest.fixture(scope="module", params=["blocking", "asyncio"])
def face(request, triton_server_with_strings, channel):
    kind = Client if request.param == "blocking" else BlockingFace
    url = triton_server_with_strings.grpc_url
    with kind(url, channel=channel, shared_memory=False, timeout=60) as face:
        for model in ("identity_batched", "identity_batched_bytes"):
            face.model_metadata(model)  # that calls are held against
        yield face


@pytest.fixture(scope="module")
def triton_server_with_strings(triton_server_factory):
    return triton_server_factory(models=["identity_batched", "identity_batched_bytes", "add_sub"])


class Foreign:
    """An array of another library."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


NUMBERS = np.arange(24, dtype=np.float32).reshape(12, 2)
WORDS = ["", "a", "é€𝄞", "nul\0inside", "ends in nul\0\0", b"\0", b"\xff not UTF-8", "ok"]
ROWS = [[WORDS[number % 8], WORDS[(number + 3) % 8]] for number in range(12)]
ENCODED = b"".join(
    len(word).to_bytes(4, "little") + word
    for row in ROWS
    for word in (text.encode() if isinstance(text, str) else text for text in row)
)


def model_for(value):
    if isinstance(value, Tensor):
        numbers = value.datatype != "BYTES"
    else:
        numbers = isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "fc"
    return "identity_batched" if numbers else "identity_batched_bytes"


def answer_or_error(face, value, **more):
    try:
        return face.infer(model_for(value), {"INPUT0": value}, **more)["OUTPUT0"].tolist()
    except InvalidTensor as error:
        return str(error)


def pieces_of(value, count=12, most=8):
    """Return an input in parts that the model takes as they are, cut by hand."""
    if isinstance(value, Tensor):
        half = value.data.nbytes // count * most
        return [
            Tensor(value.data.reshape(-1).view(np.uint8)[:half], value.datatype, [most, 2]),
            Tensor(value.data.reshape(-1).view(np.uint8)[half:], value.datatype, [count - most, 2]),
        ]
    return [value[:most], value[most:]]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(ROWS, id="lists"),
        pytest.param(tuple(map(tuple, ROWS)), id="tuples"),
        pytest.param([[b"a\0\0"], [b"bcd"]] * 6, id="nul_at_the_end"),
        pytest.param([["ab"], ["abc"]] * 6, id="widths"),
        pytest.param([[bytes(1000)], [b"\xff\xd8" + bytes(3000)]] * 6, id="images"),
        pytest.param(np.array(ROWS, object), id="objects"),
        pytest.param(np.array([["a"], ["bc\0d"]] * 6), id="U"),
        pytest.param(np.array([["a"], ["bc"]] * 6, ">U3"), id="U_swapped"),
        pytest.param(np.array([[b"a\0\0"], [b"bcd"]] * 6), id="S"),
        pytest.param(np.array(ROWS, object).T.copy().T, id="objects_turned"),
        pytest.param(NUMBERS, id="numbers"),
        pytest.param(NUMBERS.astype(">f4"), id="swapped"),
        pytest.param(np.asfortranarray(NUMBERS), id="turned"),
        pytest.param(np.zeros((12, 0), np.float32), id="without_width"),
        pytest.param(Tensor(NUMBERS, "FP32", [12, 2]), id="raw"),
    ],
)
def test_what_is_larger_than_a_batch_is_the_parts_one_after_the_other(face, value):
    expected = [row for part in pieces_of(value) for row in answer_or_error(face, part)]
    assert len(expected) == 12
    assert answer_or_error(face, value, split=True) == expected


def test_raw_strings(face):
    result = answer_or_error(face, Tensor(ENCODED, "BYTES", [12, 2]), split=True)
    assert result == answer_or_error(face, ROWS, split=True)
    foreign = face.infer("identity_batched", {"INPUT0": Foreign(NUMBERS)}, split=True)
    np.testing.assert_array_equal(foreign["OUTPUT0"], NUMBERS)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param([[b"a\0\0"], [b"bcd"]], id="nul_at_the_end"),
        pytest.param([["ab"], ["abc"]], id="widths"),
        pytest.param(ROWS[:8], id="words"),
        pytest.param([[]], id="no_elements"),
        pytest.param(NUMBERS[:8], id="numbers"),
        pytest.param(Tensor(b"\1\0\0\0a", "BYTES", [1, 1]), id="raw"),
        # What is refused is refused in the same words.
        pytest.param([["a"], ["b", "c"]], id="ragged"),
        pytest.param([[["a"]], ["b"]], id="ragged_deeper"),
        pytest.param([["a"], [1]] * 6, id="a_number_among_strings"),
        pytest.param([["a"]] * 11 + [["\ud800"]], id="no_UTF-8"),
        pytest.param(np.array([["a"]] * 11 + [["\ud800"]]), id="no_UTF-8_in_U"),
        pytest.param(np.array([["a"]] * 11 + [[None]], object), id="None_among_objects"),
        pytest.param([1.0, 2.0], id="numbers_in_a_list"),
        pytest.param([[1.0], [2.0]], id="numbers_in_lists"),
        pytest.param([None], id="None_in_a_list"),
        pytest.param("word", id="str"),
        pytest.param(b"word", id="bytes"),
        pytest.param(3.5, id="float"),
        pytest.param(None, id="None"),
        pytest.param((text for text in ("a", "b")), id="generator"),
        pytest.param({"a", "b"}, id="set"),
        pytest.param(np.array([[1j]]), id="complex"),
        pytest.param(np.ma.masked_array([[1.0]], [[True]]), id="masked"),
        pytest.param(["a", "b"], id="one_dimension"),
        pytest.param(np.float32([1, 2]), id="one_dimension_of_numbers"),
    ],
)
def test_with_and_without_split(face, value):
    without = answer_or_error(face, value)
    assert answer_or_error(face, value, split=True) == without
    if isinstance(without, str):
        assert without.startswith("input 'INPUT0'")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "has no rows: a batch must have one or more"),
        (np.zeros((0, 3), np.float32), "has no rows: a batch must have one or more"),
        (np.float32(3), "is a scalar, and has no rows to split"),
        (np.array("word"), "is a scalar, and has no rows to split"),
        (Tensor(bytes(4), "FP32", []), "is a scalar, and has no rows to split"),
    ],
)
def test_what_has_no_rows(face, value, says):
    """The server refuses it, too, or the signature does."""
    assert answer_or_error(face, value, split=True) == f"input 'INPUT0' {says}"
    with pytest.raises(TritonFastError):
        face.infer(model_for(value), {"INPUT0": value})


def test_batch_sizes_that_differ(face):
    inputs = {**pair(3), "INPUT1": pair(4)["INPUT1"]}
    with pytest.raises(InvalidTensor, match="different batch sizes: 'INPUT0' has 3, 'INPUT1' has"):
        face.infer("add_sub", inputs, split=True)
    with pytest.raises(InvalidTensor, match="inputs must be a mapping of name to array, got list"):
        face.infer("add_sub", [pair(3)], split=True)


@pytest.mark.parametrize(
    "samples",
    [
        pytest.param([np.array(row, object) for row in ROWS], id="objects"),
        pytest.param([np.array(row, object) for row in ROWS[:3]], id="one_piece"),
        pytest.param([Tensor(b"\1\0\0\0a\0\0\0\0", "BYTES", [2])] * 12, id="raw"),
    ],
)
def test_samples_of_strings(face, samples):
    expected = answer_or_error(face, ROWS, split=True)[: len(samples)]
    if isinstance(samples[0], Tensor):
        expected = [[b"a", b""]] * 12
    assert answer_or_error(face, samples, split=True) == expected


def test_samples_of_different_widths(face):
    """Those of strings have none."""
    samples = [np.array(["a"]), np.array(["abcd"]), np.array([b"\0"], object)] * 4
    expected = [[b"a"], [b"abcd"], [b"\0"]] * 4
    assert answer_or_error(face, samples, split=True) == expected
    mixed = [NUMBERS[0], NUMBERS[1].astype(">f4"), Foreign(NUMBERS[2]), memoryview(NUMBERS[3])]
    result = face.infer("identity_batched", {"INPUT0": mixed}, split=True)
    np.testing.assert_array_equal(result["OUTPUT0"], NUMBERS[:4])
    for sample, says in (
        (3.5, "sample 4: a float is no tensor"),
        ("a", "sample 4: a single str has no shape"),
        (np.float64([1, 2]), r"sample 4 is float64 \[2\], and sample 0 is float32 \[2\]"),
        (np.array(["a", "b"]), r"sample 4 is BYTES \[2\], and sample 0 is float32 \[2\]"),
    ):
        with pytest.raises(InvalidTensor, match=f"^input 'INPUT0': {says}"):
            face.infer("identity_batched", {"INPUT0": [*mixed, sample]}, split=True)
