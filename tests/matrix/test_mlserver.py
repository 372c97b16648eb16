"""Against MLServer, which speaks the same protocol in its own way."""

from __future__ import annotations

import asyncio
import json
import subprocess

import numpy as np
import pytest
from support.interpreter import environment as environment_variables
from support.waiting import until

from triton_fast import AsyncClient, Client, HealthStatus, TritonFastError
from triton_fast.testing.server import _free_port

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1000)]

RUNTIME = """
from mlserver import MLModel
from mlserver.types import InferenceResponse, ResponseOutput


def answer(model, request, values):
    output = ResponseOutput(name="OUT", shape=[len(values)], datatype="FP32", data=values)
    return InferenceResponse(
        model_name=model.name, model_version="v1", id=request.id, outputs=[output]
    )


class Echo(MLModel):
    async def load(self):
        return True

    async def predict(self, request):
        data = request.inputs[0].data
        return answer(self, request, list(getattr(data, "root", data)))

    async def predict_stream(self, requests):
        async for request in requests:
            for number in range(5):
                yield answer(self, request, [float(number)])
"""
ONE = {"IN": np.arange(3, dtype=np.float32)}


@pytest.fixture(scope="module")
def mlserver_url(environment, tmp_path_factory):
    programs = environment("mlserver", "mlserver>=1.7")
    folder = tmp_path_factory.mktemp("mlserver")
    ports: dict[str, int] = {}
    for name in ("http_port", "grpc_port", "metrics_port"):
        ports[name] = _free_port(set(ports.values()))
    settings = {"host": "127.0.0.1", "parallel_workers": 0, "gzip_enabled": False, **ports}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "echo").mkdir()
    model = {"name": "echo", "implementation": "echo_runtime.Echo"}
    (folder / "echo" / "model-settings.json").write_text(json.dumps(model))
    (folder / "echo_runtime.py").write_text(RUNTIME)
    url = f"127.0.0.1:{ports['grpc_port']}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [programs / "mlserver", "start", folder],
            stdout=log,
            stderr=log,
            env={**environment_variables(), "PYTHONPATH": str(folder)},
        )
    try:
        with Client(url, timeout=10) as client:

            def ready():
                assert process.poll() is None, (folder / "log").read_text()
                try:
                    return client.is_model_ready("echo")
                except TritonFastError:
                    return False

            until(ready, seconds=120)
        yield url
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def mlserver_client(mlserver_url, channel):
    with Client(mlserver_url, channel=channel, timeout=30) as client:
        yield client


def test_calls(mlserver_client):
    assert mlserver_client.server_metadata().name == "mlserver"
    np.testing.assert_array_equal(mlserver_client.infer("echo", ONE)["OUT"], ONE["IN"])
    np.testing.assert_array_equal(mlserver_client.model("echo")(ONE)["OUT"], ONE["IN"])
    big = np.arange(100_000, dtype=np.float32)  # it takes no shared memory
    np.testing.assert_array_equal(mlserver_client.infer("echo", {"IN": big})["OUT"], big)


def test_all_answers_of_a_stream(mlserver_client):
    for request_id in ("", "mine"):
        results = list(mlserver_client.stream("echo", ONE, request_id=request_id))
        assert [float(result["OUT"][0]) for result in results] == [0, 1, 2, 3, 4]
        assert {(result.model_name, result.id) for result in results} == {("echo", request_id)}


def test_all_answers_of_a_stream_of_coroutines(mlserver_url, channel):
    async def ask():
        async with AsyncClient(mlserver_url, channel=channel, timeout=30) as client:
            return [float(result["OUT"][0]) async for result in client.stream("echo", ONE)]

    assert asyncio.run(ask()) == [0, 1, 2, 3, 4]


def test_health(mlserver_client):
    health = mlserver_client.health()
    assert health.status is HealthStatus.HEALTHY, health.errors
    assert health.models == {"echo": True}
