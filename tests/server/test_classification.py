"""Classes of a real server: with and without a batch, and of a batch that was split."""

from __future__ import annotations

import numpy as np
import pytest

from triton_fast import Class, Client, RequestedOutput
from triton_fast.testing import write_test_models

pytestmark = pytest.mark.server


def asking(count):
    return [RequestedOutput("OUTPUT0", class_count=count)]


def test_the_best_come_first(client):
    values = np.array([0.5, -3, 1, 0.25], np.float32)
    result = client.infer("identity_fp32", {"INPUT0": values}, outputs=asking(2))
    assert result.classes("OUTPUT0") == [Class(1.0, 2, ""), Class(0.5, 0, "")]
    assert result["OUTPUT0"].shape == (2,)
    assert result["OUTPUT0"][0].startswith(b"1.0")


def test_rows_of_a_batch(client):
    values = np.array([[1, 2, 3], [6, 5, 4]], np.float32)
    result = client.infer("identity_batched", {"INPUT0": values}, outputs=asking(2))
    indices = [[one.index for one in row] for row in result.classes("OUTPUT0")]
    assert indices == [[2, 1], [0, 1]]
    assert result["OUTPUT0"].shape == (2, 2)


def test_more_than_there_are(client):
    values = np.array([1, 2, 3], np.float32)
    result = client.infer("identity_fp32", {"INPUT0": values}, outputs=asking(10))
    assert [one.index for one in result.classes("OUTPUT0")] == [2, 1, 0]


@pytest.mark.parametrize(
    ("model", "dtype"), [("int8", np.int8), ("uint64", np.uint64), ("fp64", np.float64)]
)
def test_other_datatypes(client, model, dtype):
    values = np.array([3, 100, 7], dtype)
    result = client.infer(f"identity_{model}", {"INPUT0": values}, outputs=asking(1))
    assert result.classes("OUTPUT0") == [Class(100.0, 1, "")]


def test_values_beyond_numbers(client):
    values = np.array([1, np.inf, -np.inf], np.float32)
    result = client.infer("identity_fp32", {"INPUT0": values}, outputs=asking(3))
    assert [one.value for one in result.classes("OUTPUT0")] == [np.inf, 1.0, -np.inf]


def test_large_outputs_stay_on_the_wire(client):
    big = np.arange(1 << 18, dtype=np.float32).reshape(1, -1)
    for _ in range(3):
        # Without classes in between: what is known of the output must not place it.
        client.infer("identity_batched", {"INPUT0": big}, outputs=["OUTPUT0"])
        result = client.infer("identity_batched", {"INPUT0": big}, outputs=asking(2))
        assert [one.index for one in result.classes("OUTPUT0")[0]] == [(1 << 18) - 1, (1 << 18) - 2]


def test_rows_of_a_batch_that_was_split(client):
    values = np.random.default_rng(5).normal(size=(20, 6)).astype(np.float32)
    result = client.infer("identity_batched", {"INPUT0": values}, outputs=asking(1), split=True)
    indices = [row[0].index for row in result.classes("OUTPUT0")]
    assert indices == values.argmax(axis=1).tolist()
    assert result["OUTPUT0"].shape == (20, 1)


def test_submitted_calls_and_models(client):
    values = np.array([1, 3, 2], np.float32)
    future = client.submit("identity_fp32", {"INPUT0": values}, outputs=asking(1))
    assert future.result(60).classes("OUTPUT0")[0].index == 1
    model = client.model("identity_fp32", outputs=asking(2))
    assert [one.index for one in model(INPUT0=values).classes("OUTPUT0")] == [1, 2]


@pytest.fixture(scope="module")
def labels_server(triton_server_factory, tmp_path_factory):
    names = ["classify_fp32", "classify_unlabelled_fp32"]
    folder = write_test_models(tmp_path_factory.mktemp("models"), names)
    (folder / "classify_fp32" / "labels.txt").write_text("cat\nold: dog:\nnaïve owl\n")
    server = triton_server_factory(folder)
    yield server
    server.kill()


def test_labels(labels_server, channel):
    values = np.array([[0.5, 3, 1, 0], [1, 2, 3, 4]], np.float32)
    with Client(labels_server.grpc_url, channel=channel, timeout=60) as client:
        result = client.infer("classify_fp32", {"INPUT0": values}, outputs=asking(3))
        assert result.classes("OUTPUT0") == [
            [Class(3.0, 1, "old: dog:"), Class(1.0, 2, "naïve owl"), Class(0.5, 0, "cat")],
            # The file has no line for the last one.
            [Class(4.0, 3, ""), Class(3.0, 2, "naïve owl"), Class(2.0, 1, "old: dog:")],
        ]
        result = client.infer("classify_unlabelled_fp32", {"INPUT0": values}, outputs=asking(1))
        assert result.classes("OUTPUT0") == [[Class(3.0, 1, "")], [Class(4.0, 3, "")]]
