"""What the server says of itself and its models."""

from __future__ import annotations

import pytest

from triton_fast import Client, InvalidOption, NotFound

pytestmark = pytest.mark.server


def test_health(client):
    assert client.is_live() is True
    assert client.is_ready() is True
    assert client.is_model_ready("add_sub") is True
    assert client.is_model_ready("add_sub", "1") is True
    assert client.is_model_ready("add_sub", "2") is False
    assert client.is_model_ready("no such model") is False


def test_health_without_a_server(channel):
    with Client("127.0.0.1:9", channel=channel, timeout=5) as client:
        assert client.is_live() is False
        assert client.is_ready() is False
        assert client.is_model_ready("m") is False


def test_server_metadata(client):
    metadata = client.server_metadata()
    assert metadata.name == "triton"
    assert metadata.version.split(".")[0] == "2"
    assert "system_shared_memory" in metadata.extensions


def test_model_metadata(client):
    metadata = client.model_metadata("identity_mixed")
    assert metadata.name == "identity_mixed"
    assert metadata.versions == ("1",)
    assert [(t.name, t.datatype, t.shape) for t in metadata.inputs] == [
        ("INPUT0", "FP32", (-1,)),
        ("INPUT1", "INT32", (-1,)),
        ("INPUT2", "BYTES", (-1,)),
    ]
    assert [t.name for t in metadata.outputs] == ["OUTPUT0", "OUTPUT1", "OUTPUT2"]


def test_model_config(client):
    config = client.model_config("add_sub")
    assert config.name == "add_sub"
    assert config.backend == "triton_fast_computing"
    assert config.max_batch_size == 8
    assert [(t.name, t.datatype, t.dims) for t in config.inputs] == [
        ("INPUT0", "FP32", (16,)),
        ("INPUT1", "FP32", (16,)),
    ]


def test_unknown_models(client):
    with pytest.raises(NotFound, match=r"ModelMetadata\('nope'\) at .*: NOT_FOUND: .*nope"):
        client.model_metadata("nope")
    with pytest.raises(NotFound, match="nope"):
        client.model_config("nope")
    with pytest.raises(NotFound, match="nope"):
        client.model("nope").signature  # noqa: B018
    with pytest.raises(InvalidOption, match="a model's name must be a str, got 3"):
        client.model_metadata(3)
