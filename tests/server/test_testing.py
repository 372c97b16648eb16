"""`triton_fast.testing` against the real server, with tritonclient as the client.

What is shown: servers start, serve every test model right, and leave nothing behind, however they
or the process that started them end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc
from support.official_client import infer
from support.server_state import waiting
from support.waiting import until
from tritonclient.utils import InferenceServerException

from triton_fast.errors import InvalidOption
from triton_fast.testing import (
    TEST_MODELS,
    BackendBuildFailed,
    PythonBackendUnavailable,
    TritonServer,
    TritonServerFailed,
    TritonServerNotFound,
    backends,
    find_tritonserver,
    plugin,
    python_backend,
    write_test_models,
)
from triton_fast.testing import server as server_module

pytestmark = pytest.mark.server

# The configurations here are complete; without this, Python models are loaded twice.
COMPLETE = ["--disable-auto-complete-config"]
# Where triton_fast is imported from: the processes that tests start are to import the same.
IMPORTED_FROM = Path(server_module.__file__).resolve().parents[2]

VALUES = {
    "BOOL": np.array([True, False, True]),
    **{
        f"{kind}{bits}": np.array(
            [np.iinfo(f"{kind.lower()}{bits}").min, 1, np.iinfo(f"{kind.lower()}{bits}").max],
            dtype=f"{kind.lower()}{bits}",
        )
        for kind in ("INT", "UINT")
        for bits in (8, 16, 32, 64)
    },
    "FP16": np.array([0.0, -0.0, 65504, np.inf, np.nan], np.float16),
    "FP32": np.array([0.0, -0.0, 1e-45, -np.inf, np.nan], np.float32),
    "FP64": np.array([0.0, -0.0, 5e-324, np.inf, np.nan], np.float64),
    "BF16": np.array([0.0, -0.0, 3.0, -np.inf, np.nan], ml_dtypes.bfloat16),
    "BYTES": np.array([b"", b"plain", "Zürich 東京".encode(), b"a\0b\0"], np.object_),
}


@pytest.fixture(scope="module")
def default_client(triton_server):
    with tritonclient.grpc.InferenceServerClient(triton_server.grpc_url) as client:
        yield client


@pytest.fixture(scope="module")
def python_models(triton_server_factory):
    with triton_server_factory(models=["add_sub_python"]) as server:
        with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
            yield client
        server.kill()


def traces(server):
    """Return everything of a server's that is on this machine: processes, files."""
    marks = (os.fsencode(server._folder), server._shm_prefix.encode())
    found = [str(path) for path in Path("/dev/shm").glob(server._shm_prefix + "*")]
    if server._folder.exists():
        found.append(str(server._folder))
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if any(mark in command for mark in marks):
            found.append(f"{path}: {command!r}")
    return found


def stubs(server):
    return [trace for trace in traces(server) if "python_backend_stub" in trace]


# The models


def test_every_model_is_ready(default_client):
    for name in TEST_MODELS:
        assert default_client.is_model_ready(name), name


@pytest.mark.parametrize("datatype", VALUES)
def test_identity_of_every_datatype(default_client, datatype):
    sent = VALUES[datatype]
    result = infer(default_client, f"identity_{datatype.lower()}", {"INPUT0": (datatype, sent)})
    (output,) = result.get_response().outputs
    assert (output.name, output.datatype, list(output.shape)) == ("OUTPUT0", datatype, [len(sent)])
    received = result.get_response().raw_output_contents[0]
    if datatype == "BYTES":
        assert result.as_numpy("OUTPUT0").tolist() == sent.tolist()
    else:
        assert received == sent.tobytes()


def test_identity_covers_every_datatype_of_the_table():
    identities = {name.removeprefix("identity_").upper() for name in TEST_MODELS}
    assert set(VALUES) <= identities
    assert len(VALUES) == 14


def test_identity_of_nothing(default_client):
    result = infer(default_client, "identity_cpp", {"INPUT0": np.empty(0, np.float32)})
    assert result.as_numpy("OUTPUT0").shape == (0,)


def test_identity_rank3(default_client):
    sent = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert np.array_equal(
        infer(default_client, "identity_rank3", {"INPUT0": sent}).as_numpy("OUTPUT0"), sent
    )


def test_identity_joins_the_pieces_of_an_input(triton_server):
    # Over HTTP, the server keeps a body that comes in chunks in about as many pieces.
    sent = np.random.default_rng(1).random(500_001, np.float32).tobytes()
    size = {"parameters": {"binary_data_size": len(sent)}}
    wanted = {"name": "OUTPUT0", "parameters": {"binary_data": True}}
    tensor = {"name": "INPUT0", "shape": [len(sent) // 4], "datatype": "FP32", **size}
    header = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
    body = header + sent
    headers = {"Inference-Header-Content-Length": len(header), "Transfer-Encoding": "chunked"}
    connection = http.client.HTTPConnection(triton_server.http_url, timeout=30)
    connection.request(
        "POST",
        "/v2/models/identity_cpp/infer",
        (body[start : start + 10_000] for start in range(0, len(body), 10_000)),
        {name: str(value) for name, value in headers.items()},
        encode_chunked=True,
    )
    answer = connection.getresponse().read()
    connection.close()
    assert answer.endswith(sent)


def test_identity_mixed_makes_only_what_is_asked_for(default_client):
    inputs = {
        "INPUT0": np.float32([1.5]),
        "INPUT1": np.int32([7, 8]),
        "INPUT2": np.array([b"x"], np.object_),
    }
    result = infer(default_client, "identity_mixed", inputs)
    for index in range(3):
        assert result.as_numpy(f"OUTPUT{index}").tolist() == inputs[f"INPUT{index}"].tolist()
    result = infer(default_client, "identity_mixed", inputs, outputs=["OUTPUT2", "OUTPUT0"])
    assert {output.name for output in result.get_response().outputs} == {"OUTPUT0", "OUTPUT2"}


def test_identity_batched_keeps_requests_apart(default_client):
    def one(number):
        sent = np.full((1 + number % 3, 5), number, np.float32)
        return np.array_equal(
            infer(default_client, "identity_batched", {"INPUT0": sent}).as_numpy("OUTPUT0"), sent
        )

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, range(64)))


def test_identity_optional(default_client):
    both = {"INPUT0": np.float32([[1]]), "INPUT1": np.int32([[2]])}
    assert len(infer(default_client, "identity_optional", both).get_response().outputs) == 2
    del both["INPUT1"]
    result = infer(default_client, "identity_optional", both)
    assert [output.name for output in result.get_response().outputs] == ["OUTPUT0"]


def test_parameters_come_back(default_client):
    parameters = {"text": "Zürich", "number": -(2**60), "yes": True, "fraction": 0.1}
    result = infer(
        default_client, "identity_cpp", {"INPUT0": np.float32([1])}, parameters=parameters
    ).get_response()
    echoed = {
        key: getattr(value, value.WhichOneof("parameter_choice"))
        for key, value in result.parameters.items()
    }
    assert echoed == parameters


def test_statistics_count_inferences(triton_server_factory):
    with triton_server_factory(models=["identity_cpp"]) as server:
        with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
            for _ in range(3):
                infer(client, "identity_cpp", {"INPUT0": np.float32([1])})

            def counted():
                (model,) = client.get_inference_statistics("identity_cpp").model_stats
                return model.inference_count, model.execution_count

            until(lambda: counted() == (3, 3))  # Triton counts when it has answered
        server.kill()


def test_slow_takes_its_time(default_client):
    """And eight calls at a time: test_testing_models.py has that, with how they are cancelled."""
    inputs = {"INPUT0": np.float32([1, 2]), "DELAY": np.float32([0.3])}
    start = time.monotonic()
    assert infer(default_client, "slow", inputs).as_numpy("OUTPUT0").tolist() == [1, 2]
    assert time.monotonic() - start >= 0.3


def running(client):
    """Return how many requests the models that can be cancelled have."""
    answer = infer(client, "cancellations", {"RESET": np.array([False])})
    return answer.as_numpy("RUNNING").item()


def test_queued_refuses_when_the_queue_is_full_or_slow(server):
    def taking(seconds):
        return {"INPUT0": np.float32([[1]]), "DELAY": np.float32([[seconds]])}

    with (
        tritonclient.grpc.InferenceServerClient(server.grpc_url) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        ahead = pool.submit(infer, client, "queued", taking(1))
        until(lambda: running(client) == 1)
        late = pool.submit(infer, client, "queued", taking(0), timeout=50_000)
        until(lambda: waiting(server, "queued") == 1)
        others = [pool.submit(infer, client, "queued", taking(0)) for _ in range(6)]
        with pytest.raises(InferenceServerException, match="timeout expired"):
            late.result()
        assert ahead.result().as_numpy("OUTPUT0").tolist() == [[1]]
        refused = [call.exception() for call in others if call.exception() is not None]
    # Four have place, one of them perhaps the one that was late.
    assert len(refused) in {2, 3}
    assert all("maximum queue size" in str(error) for error in refused)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (None, "INTERNAL"),
        (0, "UNKNOWN"),
        (1, "INTERNAL"),
        (2, "NOT_FOUND"),
        (3, "INVALID_ARGUMENT"),
        (4, "UNAVAILABLE"),
        (5, "UNIMPLEMENTED"),
        (6, "ALREADY_EXISTS"),
        (7, "CANCELLED"),
        (99, "INVALID_ARGUMENT"),
    ],
)
def test_failing_fails_as_told(default_client, code, status):
    inputs = {"FAIL_MESSAGE": np.array(["kaputt – 故障".encode()], np.object_)}
    if code is not None:
        inputs["FAIL_CODE"] = np.int32([code])
    with pytest.raises(InferenceServerException) as caught:
        infer(default_client, "failing", inputs)
    assert caught.value.status() == f"StatusCode.{status}"
    expected = "FAIL_CODE must be" if code == 99 else "kaputt – 故障"
    assert expected in caught.value.message()


@pytest.mark.parametrize("model", ["add_sub", "add_sub_python"])
def test_add_sub(default_client, python_models, model):
    chosen = python_models if model == "add_sub_python" else default_client
    left, right = np.random.default_rng(2).random((2, 8, 16), np.float32)
    result = infer(chosen, model, {"INPUT0": left, "INPUT1": right})
    assert np.array_equal(result.as_numpy("OUTPUT0"), left + right)
    assert np.array_equal(result.as_numpy("OUTPUT1"), left - right)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_variable(default_client, count):
    # Neither of the outputs has the shape of an input.
    row = np.float32([1, 2, 3, 4])
    result = infer(default_client, "variable", {"ROW": row, "COUNT": np.int32([count])})
    assert result.as_numpy("TWICE").tolist() == [*row, *row]
    assert result.as_numpy("TILED").tolist() == [row.tolist()] * count


def test_strings(default_client):
    text = np.array([b"", "straße".encode(), b"a\0b"], np.object_)
    result = infer(default_client, "strings", {"TEXT": text})
    assert result.as_numpy("UPPER").tolist() == [b"", "STRAßE".encode(), b"A\0B"]
    assert result.as_numpy("LENGTH").tolist() == [0, 7, 3]


def test_text_numbers(default_client):
    inputs = {"TEXT": np.array([b"1.5", b"-inf"], np.object_), "VALUE": np.float64([0.1])}
    result = infer(default_client, "text_numbers", inputs)
    assert result.as_numpy("PARSED").tolist() == [1.5, -np.inf]
    assert [float(item) for item in result.as_numpy("WRITTEN")] == [0.1]
    for bad in (b"many", b"", b"1.5 or so"):
        inputs["TEXT"] = np.array([b"1", bad], np.object_)
        with pytest.raises(InferenceServerException, match=f"'{bad.decode()}' is not a number"):
            infer(default_client, "text_numbers", inputs)


def test_unknown_model_names_are_refused(tmp_path):
    with pytest.raises(InvalidOption, match="'no_such'.*identity_fp32"):
        write_test_models(tmp_path, ["identity_fp32", "no_such"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InvalidOption, match="repository"):
        TritonServer(tmp_path, models=["identity_fp32"])
    with pytest.raises(InvalidOption, match="list"):
        TritonServer(models="identity_fp32")


# Starting


def test_addresses(triton_server):
    for url in (triton_server.grpc_url, triton_server.http_url, triton_server.metrics_url):
        host, _, port = url.partition(":")
        with socket.create_connection((host, int(port)), timeout=5):
            pass
    command = Path(f"/proc/{triton_server.pid}/cmdline").read_bytes().split(b"\0")
    assert command[0].endswith(b"/tritonserver")
    assert triton_server.is_alive
    assert str(triton_server.pid) in repr(triton_server)


def test_ports_are_unknown_before_the_first_start():
    server = TritonServer()
    assert not server.is_alive
    with pytest.raises(TritonServerFailed, match="no ports"):
        _ = server.grpc_url
    with pytest.raises(TritonServerFailed, match="never started"):
        _ = server.pid
    server.stop()  # nothing to stop, and no error


def test_unix_socket(triton_server_factory):
    server = triton_server_factory(models=["identity_cpp"], unix_socket=True)
    url = server.grpc_url
    for _ in range(2):
        with tritonclient.grpc.InferenceServerClient(url) as client:
            result = infer(client, "identity_cpp", {"INPUT0": np.float32([3])})
        assert result.as_numpy("OUTPUT0").tolist() == [3]
        server.kill()
        assert not Path(url.removeprefix("unix:")).exists()
        server.start()
    server.kill()
    assert traces(server) == []


def test_unix_socket_path_too_long(triton_server_factory, tmp_path, monkeypatch):
    (tmp_path / ("x" * 90)).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 90)))
    with pytest.raises(InvalidOption, match="TMPDIR"):
        triton_server_factory(models=[], unix_socket=True)


def test_extra_arguments_environment_and_headers(triton_server_factory, tmp_path):
    log_path = tmp_path / "logs" / "server.log"
    server = triton_server_factory(
        models=["identity_cpp"],
        extra_args=["--grpc-header-forward-pattern=x-.*", "--id=somebody"],
        env={"TRITON_FAST_PROBE": "seen"},
        log_path=log_path,
    )
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        response = infer(
            client, "identity_cpp", {"INPUT0": np.float32([1])}, headers={"x-tenant": "me"}
        ).get_response()
    assert response.parameters["x-tenant"].string_param == "me"
    assert b"TRITON_FAST_PROBE=seen" in Path(f"/proc/{server.pid}/environ").read_bytes()
    assert "somebody" in server.log()
    server.kill()
    first = log_path.read_text()
    assert server.log() == first
    server.start()
    server.kill()
    assert log_path.read_text() == first + server.log()


def test_python_model_imports_from_python_path(triton_server_factory, tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "my_weights.py").write_text("SCALE = 3.0\n")
    write_test_models(tmp_path / "models", ["add_sub_python", "identity_fp32"])
    model = tmp_path / "models" / "add_sub_python" / "1" / "model.py"
    model.write_text(
        model.read_text()
        .replace("from typing", "import my_weights\nfrom typing")
        .replace("left + right", "(left + right) * my_weights.SCALE")
    )
    server = triton_server_factory(
        tmp_path / "models", env={"PYTHONPATH": str(tmp_path / "code")}, extra_args=COMPLETE
    )
    ones = np.ones((1, 16), np.float32)
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        result = infer(client, "add_sub_python", {"INPUT0": ones, "INPUT1": ones})
    assert result.as_numpy("OUTPUT0").tolist() == [[6.0] * 16]
    server.kill()
    assert sorted(path.name for path in (tmp_path / "models").rglob("*")) == sorted(
        ["add_sub_python", "1", "model.py", "config.pbtxt", "identity_fp32", "1", "config.pbtxt"]
    )
    assert not (tmp_path / "code" / "__pycache__").exists()


def test_further_backends(triton_server_factory, tmp_path):
    library = backends.build_backend("triton_fast_identity", tmp_path)
    (tmp_path / "more" / "mine").mkdir(parents=True)
    (tmp_path / "more" / "mine" / "libtriton_mine.so").symlink_to(library)
    repository = write_test_models(tmp_path / "models", ["identity_fp32"])
    config = repository / "identity_fp32" / "config.pbtxt"
    config.write_text(config.read_text().replace('"triton_fast_identity"', '"mine"'))
    server = triton_server_factory(repository, backend_directory=tmp_path / "more")
    assert f"{server._folder}/backends/mine/libtriton_mine.so" in server.log()
    server.kill()


def test_a_port_that_is_taken(triton_server_factory, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for kind in ("grpc_port", "http_port", "metrics_port"):
            with pytest.raises(TritonServerFailed, match=f":{port}' already in use"):
                triton_server_factory(models=[], **{kind: port})
        # A free port that is lost before the server binds it is replaced by another.
        choose = server_module._free_port
        answers = [choose(set()), port, choose(set())]
        monkeypatch.setattr(
            server_module, "_free_port", lambda used: answers.pop(0) if answers else choose(used)
        )
        server = triton_server_factory(models=[])
        assert answers == []
        assert str(port) not in server.http_url
        server.kill()


def test_another_server_on_the_port_is_not_taken_for_ours(triton_server):
    port = int(triton_server.http_url.rpartition(":")[2])
    assert server_module._answers_ready(port)
    assert server_module._listens(triton_server.pid, {port})
    assert not server_module._listens(os.getpid(), {port})
    with socket.create_server(("127.0.0.1", 0)) as own:
        assert server_module._listens(os.getpid(), {own.getsockname()[1]})
        assert not server_module._listens(os.getpid(), {own.getsockname()[1], port})


def broken_repository(folder):
    write_test_models(folder, ["identity_fp32", "add_sub_python"])
    model = folder / "add_sub_python" / "1" / "model.py"
    model.write_text(
        model.read_text().replace(
            "    def execute",
            "    def initialize(self, args):\n"
            "        raise RuntimeError('the weights are gone')\n\n    def execute",
        )
    )
    return folder


def test_a_model_that_does_not_load_is_in_the_error(triton_server_factory, tmp_path):
    with pytest.raises(TritonServerFailed) as caught:
        triton_server_factory(broken_repository(tmp_path), extra_args=COMPLETE)
    text = str(caught.value)
    assert "ended with exit status 1 before it was ready" in text
    assert "failed to load 'add_sub_python' version 1: Internal: RuntimeError: the weights" in text
    assert "model.py(" in text
    for noise in ("NVML", "DCGM", "CUDA", "Cuda", "| Model", "+---", "I1"):
        assert noise not in text, text
    assert "NVML" in caught.value.log


def test_allow_failing_models(triton_server_factory, tmp_path):
    server = triton_server_factory(
        broken_repository(tmp_path), allow_failing_models=True, extra_args=COMPLETE
    )
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        assert client.is_model_ready("identity_fp32")
        assert not client.is_model_ready("add_sub_python")
    server.kill()


def test_a_server_that_does_not_understand_its_arguments():
    server = TritonServer(models=[], extra_args=["--no-such-option"])
    with pytest.raises(TritonServerFailed, match="no-such-option"):
        server.start()
    assert traces(server) == []


def test_a_server_that_is_not_ready_in_time(tmp_path):
    repository = broken_repository(tmp_path)
    model = repository / "add_sub_python" / "1" / "model.py"
    model.write_text("import time\ntime.sleep(60)\n")
    server = TritonServer(repository, startup_timeout=0.5)
    start = time.monotonic()
    with pytest.raises(TritonServerFailed, match="not ready within 0.5 s"):
        server.start()
    assert time.monotonic() - start < 30  # the model takes 60 s
    assert traces(server) == []


def test_a_program_that_is_no_server(tmp_path):
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\necho I am no server; exit 3\n")
    program.chmod(0o755)
    with pytest.raises(TritonServerFailed, match=r"exit status 3[^\n]*\nI am no server"):
        TritonServer(models=[], executable=program).start()
    program.write_text("\x7fELF")
    with pytest.raises(TritonServerFailed, match="did not start: .*Exec format error"):
        TritonServer(models=[], executable=program).start()


def test_a_repository_that_is_not_there(tmp_path):
    with pytest.raises(InvalidOption, match="not a folder"):
        TritonServer(tmp_path / "nowhere").start()
    with pytest.raises(InvalidOption, match="not a folder"):
        TritonServer(tmp_path, backend_directory=tmp_path / "nowhere")


# Ending


@pytest.fixture
def small(triton_server_factory):
    """Give a server with one Python model, and see that nothing is left of it."""
    server = triton_server_factory(models=["add_sub_python", "slow", "cancellations"])
    assert len(stubs(server)) == 1
    assert any(server._shm_prefix in trace for trace in traces(server))
    yield server
    server.kill()
    assert traces(server) == []


def test_stop(small):
    small.stop()
    assert traces(small) == []
    assert not small.is_alive
    assert "Waiting for in-flight requests to complete" in small.log()
    assert "not running" in repr(small)
    small.stop()


def test_stop_waits_no_longer_than_told(small):
    small._stop_timeout = 1.0
    inputs = {"INPUT0": np.float32([1]), "DELAY": np.float32([30])}
    with tritonclient.grpc.InferenceServerClient(small.grpc_url) as client:
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(infer, client, "slow", inputs)
            until(lambda: running(client) == 1)
            start = time.monotonic()
            small.stop()
            assert 1.0 <= time.monotonic() - start < 20
            with pytest.raises(InferenceServerException):
                call.result()


def test_kill(small):
    (stub,) = (int(trace.split("/")[2]) for trace in stubs(small))
    os.kill(stub, signal.SIGSTOP)  # one that is stuck does not notice that its server is gone
    small.kill()
    assert traces(small) == []
    assert not small.is_alive
    assert "in-flight" not in small.log()
    assert "Started GRPCInferenceService" in small.log()


def test_restart_keeps_the_ports(small):
    small._stop_timeout = 0.2
    ones = np.ones((1, 16), np.float32)
    before = (small.grpc_url, small.http_url, small.metrics_url)
    pids = {small.pid}
    with tritonclient.grpc.InferenceServerClient(small.grpc_url) as client:
        for again in (small.kill, small.start, small.restart):
            again()
            if not small.is_alive:
                continue
            pids.add(small.pid)
            until(lambda: answers(client))
            result = infer(client, "add_sub_python", {"INPUT0": ones, "INPUT1": ones})
            assert result.as_numpy("OUTPUT1").sum() == 0
    assert len(pids) == 3
    assert (small.grpc_url, small.http_url, small.metrics_url) == before
    assert small.start() is small
    assert small.pid in pids


def answers(client):
    try:
        return client.is_server_live()
    except InferenceServerException:
        return False


def test_a_server_that_dies_is_cleaned_up_after(small):
    os.kill(small.pid, signal.SIGKILL)
    until(lambda: not small.is_alive)
    until(lambda: traces(small) == [])
    small.start()
    assert len(stubs(small)) == 1


def test_a_server_dies_with_its_supervisor(small):
    small._supervisor.kill()
    until(lambda: not Path(f"/proc/{small.pid}").exists())
    until(lambda: stubs(small) == [])
    with pytest.raises(TritonServerFailed, match="supervisor was ended by SIGKILL"):
        small.stop()
    assert traces(small) == []


SCRIPT = """
import atexit, os, signal, sys, threading, time
from triton_fast.testing import TritonServer
# Runs after what was registered later: the server must be gone by then.
atexit.register(lambda: print(server._folder.exists()))
server = TritonServer(models=["identity_fp32", "add_sub_python"])
if {in_thread}:  # a server outlives the thread that started it
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    time.sleep(0.3)
    assert server.is_alive
else:
    server.start()
print(server.pid, server._folder, server._shm_prefix, flush=True)
{ending}
"""
WAIT = "time.sleep(60)"
ENDINGS = {
    "end of the program": ("", None, 0),
    "exception": ("raise RuntimeError('over')", None, 1),
    "os._exit": ("os._exit(4)", None, 4),
    "SIGINT": (WAIT, signal.SIGINT, -signal.SIGINT),
    "SIGKILL": (WAIT, signal.SIGKILL, -signal.SIGKILL),
    # A forked child that lives on holds the pipe to the supervisor open.
    "SIGKILL with a child": (f"os.fork(); {WAIT}", signal.SIGKILL, -signal.SIGKILL),
    # A child that ends, by whichever way, must not take the server along.
    "child ends first": (
        """
child = os.fork()
if child == 0:
    server.kill()
    sys.exit(0)
os.waitpid(child, 0)
time.sleep(0.2)
assert server.is_alive
os._exit(5)""",
        None,
        5,
    ),
}


def python(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(IMPORTED_FROM), **options.pop("env", {})}
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


class Remains:
    """What `traces` needs to know of a server that another process started."""

    def __init__(self, line):
        number, folder, self._shm_prefix = line.split()
        self.pid = int(number)
        self._folder = Path(folder)


@pytest.mark.parametrize(
    ("ending", "in_thread"),
    [
        *((ending, False) for ending in ENDINGS),
        ("SIGKILL", True),
        ("end of the program", True),
    ],
)
def test_nothing_outlives_the_process_that_started_the_server(ending, in_thread):
    last_words, number, status = ENDINGS[ending]
    process = python("-W", "error", "-c", SCRIPT.format(ending=last_words, in_thread=in_thread))
    try:
        server = Remains(process.stdout.readline())
        if number is not None:
            assert len(stubs(server)) == 1
            process.send_signal(number)
        process.wait(60)
        if ending in ("end of the program", "exception"):
            assert process.stdout.readline() == "False\n"
        until(lambda: traces(server) == [])
        assert process.returncode == status, process.stderr.read()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_two_servers_at_once(triton_server, triton_server_factory):
    with triton_server_factory(models=["add_sub_python"]) as other:
        assert other.grpc_url != triton_server.grpc_url
        assert len(stubs(other)) == 1
        assert stubs(triton_server) == []
        other.kill()
    assert triton_server.is_alive


# What is missing


@pytest.fixture
def bare_machine(monkeypatch, tmp_path):
    """Hide every Triton server."""
    monkeypatch.delenv("TRITON_FAST_TRITONSERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def test_no_server(bare_machine):
    with pytest.raises(TritonServerNotFound, match="pip install --no-deps nvidia-pytriton"):
        TritonServer().start()


def test_where_a_server_is_found(bare_machine, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_FAST_TRITONSERVER", str(tmp_path / "nowhere"))
    with pytest.raises(TritonServerNotFound, match="TRITON_FAST_TRITONSERVER.*nowhere"):
        find_tritonserver()
    with pytest.raises(TritonServerNotFound, match=r"executable=.*'no/such'"):
        find_tritonserver("no/such")
    program = tmp_path / "tritonserver"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(TritonServerNotFound):
        find_tritonserver(program)  # not executable
    program.chmod(0o755)
    with pytest.raises(TritonServerNotFound):
        find_tritonserver()  # the variable is not passed over
    monkeypatch.delenv("TRITON_FAST_TRITONSERVER")
    assert find_tritonserver().executable == program  # on PATH
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("TRITON_FAST_TRITONSERVER", str(other))
    assert find_tritonserver().executable == other


def test_a_python_that_the_wheel_has_no_stub_for(monkeypatch):
    monkeypatch.setattr(python_backend, "_VERSION", "3.99")
    with pytest.raises(PythonBackendUnavailable, match=r"3\.8, .*3\.13, and this is Python 3\.99"):
        TritonServer(models=["add_sub_python"]).start()
    server = TritonServer()  # needs no Python
    server.start()
    server.kill()


def test_a_python_without_a_shared_library(monkeypatch):
    monkeypatch.setattr(python_backend, "_VERSION", "3.8")
    monkeypatch.setattr(python_backend, "_bundled_libpython", lambda libraries: None)
    with pytest.raises(PythonBackendUnavailable, match=r"apt-get install libpython3\.8\b"):
        TritonServer(models=["add_sub_python"]).start()


NUMPY_2 = int(np.__version__.partition(".")[0]) >= 2


PYTHON_ECHO = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            (tensor,) = request.inputs()
            array = tensor.as_numpy()
            # Sent back is another array, with its elements in another order.
            turned = np.array(array[::-1], order="F")
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor(tensor.name(), turned)]))
        return answers
"""


def test_python_models_see_and_make_tensors_as_they_are(triton_server_factory, tmp_path):
    # With numpy 2, only because of what backends/numpy2.py does.
    kinds = {kind: value for kind, value in VALUES.items() if kind != "BF16"}
    names = {"BYTES": "TYPE_STRING", **{kind: f"TYPE_{kind}" for kind in kinds if kind != "BYTES"}}
    tensors = [f'name: "{kind}", data_type: {names[kind]}, dims: [ -1, -1 ]' for kind in kinds]
    inputs = ", ".join(f"{{ {tensor}, optional: true }}" for tensor in tensors)
    outputs = ", ".join(f"{{ {tensor} }}" for tensor in tensors)
    (tmp_path / "echo" / "1").mkdir(parents=True)
    (tmp_path / "echo" / "1" / "model.py").write_text(PYTHON_ECHO)
    (tmp_path / "echo" / "config.pbtxt").write_text(
        f'backend: "python"\ninput [ {inputs} ]\noutput [ {outputs} ]\n'
    )
    server = triton_server_factory(tmp_path, extra_args=COMPLETE)
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        for kind, values in kinds.items():
            for sent in (np.stack([values, values[::-1]]), values[:1, None], values[:0, None]):
                found = infer(client, "echo", {kind: (kind, sent)}).as_numpy(kind)
                assert (found.dtype, found.shape) == (sent.dtype, sent.shape)
                if kind == "BYTES":
                    assert found.tolist() == sent[::-1].tolist()
                else:
                    assert found.tobytes() == sent[::-1].tobytes()
    server.kill()


@pytest.mark.parametrize(
    ("version", "suffix", "chosen"),
    [
        ("1.26.4", sysconfig.get_config_var("EXT_SUFFIX"), True),
        ("1.26.4", ".cpython-38-x86_64-linux-gnu.so", False),
        ("2.0.0", sysconfig.get_config_var("EXT_SUFFIX"), False),
    ],
)
def test_numpy_1_beside_the_wheel_comes_first(tmp_path, version, suffix, chosen):
    (tmp_path / "nvidia_pytriton.libs").mkdir()
    (tmp_path / "numpy" / "core").mkdir(parents=True)
    (tmp_path / "numpy" / "core" / f"_multiarray_umath{suffix}").touch()
    (tmp_path / f"numpy-{version}.dist-info").mkdir()
    metadata = tmp_path / f"numpy-{version}.dist-info" / "METADATA"
    metadata.write_text(f"Metadata-Version: 2.1\nName: numpy\nVersion: {version}\n")
    wheel = dataclasses.replace(find_tritonserver(), libraries=tmp_path / "nvidia_pytriton.libs")
    backend = python_backend.PythonBackend.of(wheel, "")
    assert (backend.packages[0] == tmp_path) is chosen
    assert (backend.numpy_version == version) is chosen
    assert backend.has_numpy_1 is (chosen or not NUMPY_2)


def test_the_backend_of_a_python_without_numpy(monkeypatch):
    monkeypatch.setattr("importlib.metadata.distributions", lambda **_: iter([]))
    with pytest.raises(PythonBackendUnavailable, match="needs numpy"):
        TritonServer(models=["add_sub_python"]).start()


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    with pytest.raises(BackendBuildFailed, match="'no-such-compiler'.*apt-get install g\\+\\+"):
        TritonServer(models=["identity_fp32"]).start()
    monkeypatch.setenv("CXX", "sh -c 'echo bad words >&2; exit 7'")
    with pytest.raises(BackendBuildFailed, match="exit status 7\\):\nbad words"):
        TritonServer(models=["identity_fp32"]).start()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_backend_is_built_once(monkeypatch, tmp_path):
    # Real compilers have built what all other tests use.
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; echo built > "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    build = functools.partial(backends.build_backend, "triton_fast_computing")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ThreadPoolExecutor(2) as pool:  # at the same time
        built = set(pool.map(build, [tmp_path] * 2))
    (library,) = built
    assert list((tmp_path / "cache").rglob("*")) == [library.parent, library]
    changed = library.stat().st_mtime_ns
    assert build(tmp_path) == library
    assert library.stat().st_mtime_ns == changed
    monkeypatch.setenv("CXX", f"{compiler} -g0")  # another recipe
    assert build(tmp_path) != library
    # A cache folder that cannot be made: built in the folder that the caller removes.
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert build(tmp_path).parent == tmp_path


# The pytest plugin


def run_pytest(folder, **environment):
    (folder / "test_it.py").write_text(
        textwrap.dedent("""
        def test_it(triton_server):
            assert triton_server.is_alive
        """)
    )
    clean = {
        "CI": "",
        "TRITON_FAST_TRITONSERVER": str(folder / "no-such"),
        # Only our plugin: whether the package is installed, and what else is, makes no difference.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        **environment,
    }
    options = ["-rs", "-p", "no:cacheprovider", "-p", "triton_fast.testing.plugin"]
    process = python("-m", "pytest", *options, "test_it.py", cwd=folder, env=clean)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output + errors


@pytest.mark.parametrize(
    ("environment", "fails"),
    [
        ({}, False),
        ({"CI": "true"}, True),
    ],
    ids=str,
)
def test_a_missing_server_skips_but_fails_in_ci(tmp_path, environment, fails, monkeypatch):
    monkeypatch.delenv("TRITON_FAST_REQUIRE_SERVER", raising=False)
    status, output = run_pytest(tmp_path, **environment)
    assert "no-such" in output
    if fails:
        assert status == 1, output
        assert "1 error" in output
        assert "required here" in output
    else:
        assert status == 0, output
        assert "1 skipped" in output


@pytest.mark.parametrize(
    ("value", "required"), [("1", True), ("yes", True), ("0", False), ("False", False), ("", False)]
)
def test_what_counts_as_ci(monkeypatch, value, required):
    monkeypatch.delenv("TRITON_FAST_REQUIRE_SERVER", raising=False)
    monkeypatch.setenv("CI", value)
    assert plugin._required() is required
    # What is asked for counts more, whatever CI is.
    monkeypatch.setenv("TRITON_FAST_REQUIRE_SERVER", value)
    for ci in ("", "true"):
        monkeypatch.setenv("CI", ci)
        assert plugin._required() is required


def test_the_fixtures_serve_all_models(triton_server):
    assert all(f"successfully loaded '{name}'" in triton_server.log() for name in TEST_MODELS)


def test_the_plugin_loads_next_to_nothing():
    code = """
        import sys
        import triton_fast
        import pytest
        before = set(sys.modules)
        import triton_fast.testing.plugin
        print(*sorted(set(sys.modules) - before))
    """
    process = python("-c", textwrap.dedent(code))
    output, errors = process.communicate(timeout=60)
    assert output.split() == ["triton_fast.testing", "triton_fast.testing.plugin"], errors


def test_the_package_offers_its_names():
    import triton_fast.testing

    assert {"TritonServer", "TEST_MODELS"} <= set(dir(triton_fast.testing))
    for name in triton_fast.testing.__all__:
        assert getattr(triton_fast.testing, name) is not None
    with pytest.raises(AttributeError, match="no_such"):
        _ = triton_fast.testing.no_such


def test_a_server_may_be_started_from_any_thread(triton_server_factory):
    servers = []
    thread = threading.Thread(
        target=lambda: servers.append(triton_server_factory(models=["identity_fp32"]))
    )
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert servers[0].is_alive
    servers[0].kill()
