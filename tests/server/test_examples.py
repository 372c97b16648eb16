"""The examples, as their readers run them: each starts a Triton of its own, or is given a URL."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.required import need
from support.waiting import until

pytestmark = pytest.mark.server

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WHAT_THEY_SAY = {
    "hello": [
        r"Triton \d+\.\d+\.\d+ at 127\.0\.0\.1:\d+",
        r"sum: +\[1\. 2\. 3\. 4\. 5\.\] …",
        r"difference: \[-1\. +0\. +1\. +2\. +3\.\] …",
        r"100 calls gave 52,800",
        r"not sent: +input 'INPUT0' of model 'add_sub' is FP32, and the tensor is FP64; .*",
        r"refused: +Request for unknown model: 'add_sup' is not found .*",
    ],
    "image_batch": [
        r"shared memory: 40 images, 24 MB there and back in \d+ ms, all right",
        r" +wire: 40 images, 24 MB there and back in \d+ ms, all right",
    ],
    "stateful_audio": [
        *(r"after 0\.\d s: 26[012]\.\d Hz and 440\.0 Hz" for _ in range(9)),
        r"after 1\.0 s: 262\.0 Hz and 440\.0 Hz",
    ],
    "streaming_chat": [
        r"you:   made are they as tokens my you show I",
        r"model: I show you my tokens as they are made",
        r" +9 tokens in \d\.\d\d s, the first after \d\.\d\d s; ended by 'stop'",
        r"you:   time in cut be can that answer long very a is this",
        r"model: this is a very long answer that can be",
        r" +9 tokens in \d\.\d\d s, the first after \d\.\d\d s; ended by 'length'",
        r"you:   made are they as tokens my you show I",
        r"model: I show you …",
    ],
    "service": [
        r"health: +200 \{'triton': 'healthy', 'seconds': [\d.e-]+\}",
        r"300 rows: +\{200: 300\}, all right, in \d+ ms",
        r"too short: 422 input 'INPUT0' of model 'add_sub' has shape \[-1, 16\] .*",
    ],
}


def run(name, *arguments, **variables):
    # A script's own folder is on its path, unless this says otherwise.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments],
        env={**inherited, "PYTHONIOENCODING": "utf-8", **variables},
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )


def said(result, expected):
    """Whether an example has said what it should, and nothing else."""
    assert result.stderr == "", result.stdout
    assert result.returncode == 0, result.stdout
    lines = result.stdout.splitlines()
    assert len(lines) == len(expected), result.stdout
    for line, pattern in zip(lines, expected, strict=True):
        assert re.fullmatch(pattern, line), line
    return True


def test_all_examples_are_tested():
    others = {"any_server"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} - others == set(WHAT_THEY_SAY)


@pytest.fixture(scope="module")
def all_at_once(triton_server):
    """Run all examples side by side: each waits for seconds until its server has stopped.

    `triton_server` skips, or fails in CI, where there is no Triton.
    """
    assert triton_server
    with ThreadPoolExecutor(len(WHAT_THEY_SAY)) as pool:
        yield {name: pool.submit(run, name) for name in WHAT_THEY_SAY}


@pytest.mark.parametrize("name", WHAT_THEY_SAY)
def test_with_a_server_of_its_own(all_at_once, name):
    assert said(all_at_once[name].result(), WHAT_THEY_SAY[name])


def test_with_another_server(triton_server):
    """As all of them find it: with any_server.py."""
    assert said(run("hello", triton_server.grpc_url), WHAT_THEY_SAY["hello"])


def test_without_a_server(tmp_path):
    result = run("hello", TRITON_FAST_TRITONSERVER=str(tmp_path / "none"))
    assert result.returncode == 1
    assert result.stderr.startswith("✗ ")
    assert "Traceback" not in result.stderr


def test_with_a_server_that_does_not_answer():
    result = run("hello", "127.0.0.1:9")
    assert result.returncode == 1
    assert "Unavailable" in result.stderr


def test_the_service_as_uvicorn_finds_it(triton_server, monkeypatch):
    """The factory takes the server's address from the environment."""
    script = "import asyncio, service; asyncio.run(service.visit(service.service()))"
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=EXAMPLES,
        env={
            **os.environ,
            "TRITON_FAST_URL": triton_server.grpc_url,
            "PYTHONPATH": os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    assert said(result, WHAT_THEY_SAY["service"])


@pytest.fixture
def service(triton_server, monkeypatch):
    """The service under a real uvicorn, a model that never answers, and what became of calls."""
    need("uvicorn")
    uvicorn = importlib.import_module("uvicorn")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    app = importlib.import_module("service").service(triton_server.grpc_url)
    ends = []

    async def never(**inputs):
        ends.append("begun")
        try:
            await asyncio.Event().wait()
        finally:
            ends.append("cancelled")

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield app, never, ends, port
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


def post(port, body):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(
        b"POST /add_sub HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    return connection


def test_a_visitor_who_leaves(service):
    app, never, ends, port = service
    body = json.dumps({"one": [1] * 16, "other": [2] * 16}).encode()
    with post(port, body) as connection:
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"sum":[3.0,' in answer
    app.state.add_sub = never
    with post(port, body):
        until(lambda: ends == ["begun"])
    until(lambda: ends == ["begun", "cancelled"])
