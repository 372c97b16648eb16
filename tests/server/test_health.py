"""The health of real servers: one that is well, one with a broken model, one stopped, one gone."""

from __future__ import annotations

import os
import signal
import time

import grpc
import pytest
from support.server_state import of_threads
from support.waiting import until

from triton_fast import Client, ClosedError, HealthStatus
from triton_fast.protocol.messages import message_class, method_path
from triton_fast.testing import TEST_MODELS, write_test_models

pytestmark = pytest.mark.server

NO_BACKEND = """
backend: "no_such_backend"
input [ { name: "A", data_type: TYPE_FP32, dims: [ 1 ] } ]
output [ { name: "B", data_type: TYPE_FP32, dims: [ 1 ] } ]
"""


@pytest.fixture(scope="module")
def broken_server(triton_server_factory, tmp_path_factory):
    """A server of three models, of which one does not load."""
    names = ["identity_fp32", "identity_bytes"]
    folder = write_test_models(tmp_path_factory.mktemp("models"), names)
    (folder / "broken" / "1").mkdir(parents=True)
    (folder / "broken" / "config.pbtxt").write_text(NO_BACKEND)
    explicit = ["--model-control-mode=explicit", "--load-model=*"]
    return triton_server_factory(folder, allow_failing_models=True, extra_args=explicit)


def states(server) -> set[str]:
    """Return the states of a server's threads."""
    return {text.rpartition(")")[2].split()[0] for text in of_threads(server, "stat")}


def test_a_server_that_is_well(triton_server, channel):
    with Client(triton_server.grpc_url, channel=channel) as client:
        health = client.health(timeout=60)
        assert health.status is HealthStatus.HEALTHY
        assert health
        assert (health.live, health.ready, health.errors) == (True, True, ())
        assert set(TEST_MODELS) <= set(health.models)
        assert all(health.models.values())
        assert health.latency > 0
    with pytest.raises(ClosedError):
        client.health()


def test_a_model_that_does_not_load(broken_server, channel):
    with Client(broken_server.grpc_url, channel=channel) as client:
        health = client.health(timeout=60)
    assert health.status is HealthStatus.DEGRADED
    assert not health
    assert health.live
    assert health.models == {"identity_fp32": True, "identity_bytes": True, "broken": False}
    (error,) = health.errors
    assert error.startswith("model 'broken' version 1 is UNAVAILABLE: ")
    assert "no_such_backend" in error


def test_a_server_that_hangs_and_one_that_is_gone(triton_server_factory, channel):
    server = triton_server_factory(models=["identity_fp32"])
    with Client(server.grpc_url, channel=channel) as client:
        assert client.health(timeout=60)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            until(lambda: states(server) == {"T"})  # a thread may answer until it stops
            began = time.monotonic()
            health = client.health(timeout=0.5)
            took = time.monotonic() - began
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert health.status is HealthStatus.UNHEALTHY
        assert (health.live, health.ready, health.models) == (False, False, {})
        assert "DEADLINE_EXCEEDED" in health.errors[0]
        assert 0.4 < health.latency <= took < 30
        assert client.health(timeout=60)  # it goes on, and so does the client
        server.kill()
        health = client.health(timeout=60)
        assert health.status is HealthStatus.UNHEALTHY
        assert "UNAVAILABLE" in health.errors[0]


def test_no_server(channel):
    with Client("127.0.0.1:9", channel=channel) as client:
        health = client.health()
    assert health.status is HealthStatus.UNHEALTHY
    assert health.errors[0].startswith("ServerLive at 127.0.0.1:9: UNAVAILABLE: ")


def test_a_model_that_was_unloaded(broken_server, channel):
    with Client(broken_server.grpc_url, channel=channel) as client:
        tell(broken_server, "RepositoryModelUnload", "identity_bytes")
        try:
            until(lambda: not client.is_model_ready("identity_bytes", timeout=60))
            assert client.health(timeout=60).models == {"identity_fp32": True, "broken": False}
        finally:
            tell(broken_server, "RepositoryModelLoad", "identity_bytes")
        assert client.health(timeout=60).models["identity_bytes"] is True


def tell(server, method, model):
    with grpc.insecure_channel(server.grpc_url) as channel:
        request = message_class(f"{method}Request")(model_name=model)
        channel.unary_unary(method_path(method))(request.SerializeToString(), timeout=60)
