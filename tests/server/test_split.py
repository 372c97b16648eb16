"""Batches larger than the model takes."""

from __future__ import annotations

import time

import numpy as np
import pytest

from triton_fast import InvalidArgument, InvalidOption, InvalidTensor, Tensor

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
    array = pair(20)["INPUT0"]
    tensor = Tensor(array, "FP32", array.shape)
    with pytest.raises(InvalidTensor, match="a Tensor cannot be split"):
        client.infer("add_sub", {**pair(20), "INPUT0": tensor}, split=True)
    with pytest.raises(InvalidOption, match="takes no batches"):
        client.infer("identity_cpp", {"INPUT0": np.zeros(4, np.float32)}, split=True)
    result = client.infer("add_sub", pair(20), split=True)
    assert result["OUTPUT1"].shape == (20, 16)


def test_an_out_array_of_the_wrong_shape(client):
    with pytest.raises(InvalidTensor, match=r"out\['OUTPUT0'\] is float32 \[19, 16\]"):
        client.infer(
            "add_sub", pair(20), split=True, out={"OUTPUT0": np.zeros((19, 16), np.float32)}
        )
