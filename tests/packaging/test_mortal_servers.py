"""Tests are repeated only where a server died or hangs, a bounded number of times, and counted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

# Where no home can be written to, every server has its backends compiled anew.
pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]

TESTS = Path(__file__).resolve().parents[1]

PRELUDE = """
import os, signal, threading, pytest
import numpy as np
from support import mortal_servers
from triton_fast import Client
from pathlib import Path

mortal_servers.ANSWER_SECONDS = 2.0
pytestmark = pytest.mark.server_may_die
ONE = {"INPUT0": np.ones(1, np.float32)}
TURNS = Path(__file__).with_suffix(".turns")

@pytest.fixture
def server(shared_server):
    return shared_server(models=["identity_fp32", "repeat_int32"])

def turn():
    with TURNS.open("a") as file:
        file.write("x")
    return TURNS.stat().st_size

def crash(server):
    os.kill(server.pid, signal.SIGSEGV)
    while not mortal_servers._CRASH.search(server.log()):
        pass

def ask(server):
    assert not mortal_servers.what_is_wrong_with(server)
"""
# What is planted: the tests' text, how often they run, which of them fail, how many servers died.
PLANTED = {
    "well": ("def test(server): turn(); ask(server)", 1, 0, 0),
    "fails, and its server is well": ("def test(server): turn(); assert False", 1, 1, 0),
    "crashes once": (
        """
def test(server):
    if turn() == 1:
        crash(server)
    ask(server)
""",
        2,
        0,
        1,
    ),
    "stands as it starts": (
        """
@pytest.fixture
def hanging(monkeypatch):
    from triton_fast.testing import TritonServer, TritonServerFailed
    start = TritonServer.start
    def start_or_not(self):
        if turn() == 1:
            raise TritonServerFailed("not ready in time", timed_out=True)
        return start(self)
    monkeypatch.setattr(TritonServer, "start", start_or_not)

def test(hanging, shared_server):
    ask(shared_server(models=["identity_fp32"]))
""",
        2,
        0,
        1,
    ),
    "hangs once": (
        """
def test(server):
    if turn() == 1:
        os.kill(server.pid, signal.SIGSTOP)
        assert False
    ask(server)
""",
        2,
        0,
        1,
    ),
    "crashes each time": (
        "def test(server): turn(); crash(server); ask(server)",
        4,
        1,
        4,
    ),
    "hangs, which the next finds": (
        """
def test_one(server):
    turn()
    os.kill(server.pid, signal.SIGSTOP)
def test_two(server):
    if turn() == 2:
        assert False
    ask(server)
""",
        3,
        0,
        1,
    ),
    "passes although it died": (
        """
def test(server):
    turn()
    crash(server)
    while server.is_alive:
        pass
""",
        1,
        0,
        1,
    ),
    "killed by somebody": (
        """
def test(server):
    if turn() == 1:
        os.kill(server.pid, signal.SIGKILL)
    ask(server)
""",
        1,
        1,
        1,
    ),
    "what a failed attempt had is let go": (
        """
from support.leftovers import ledger, nothing_is_left
def test(server, nothing_is_left):
    with Client(server.grpc_url, timeout=20) as client:
        result = client.infer("identity_fp32", ONE)
        if turn() == 1:
            crash(server)
            while server.is_alive:
                pass
        client.infer("identity_fp32", ONE)
""",
        2,
        0,
        1,
    ),
    "two things of ours are left": (
        """
@pytest.fixture
def one():
    yield
    assert not "left"
@pytest.fixture
def another():
    yield
    assert not "left"
def test(server, one, another):
    turn()
    crash(server)
    ask(server)
""",
        1,
        2,
        1,
    ),
    "waits until its limit": (
        """
@pytest.mark.timeout(4)
def test(server):
    turn()
    crash(server)
    threading.Event().wait()
""",
        1,
        1,
        1,
    ),
    "something of ours is left": (
        """
@pytest.fixture
def nothing_is_left():
    yield
    assert not "left"
def test(server, nothing_is_left):
    turn()
    crash(server)
    ask(server)
""",
        1,
        2,
        1,
    ),
    "another test's server died": (
        """
@pytest.fixture
def other(shared_server):
    return shared_server(models=["identity_fp32"])
def test_one(other):
    turn()
def test_two(server, request):
    turn()
    servers = request.config.stash[mortal_servers._SERVERS]._servers.values()
    (other,) = [each for each in servers if each is not server]
    crash(other)
    while other.is_alive:
        pass
    assert False
""",
        2,
        1,
        1,
    ),
    "left well, and crashes once": (
        """
pytestmark = []
def test(server):
    if turn() == 1:
        crash(server)
    ask(server)
""",
        2,
        0,
        1,
    ),
    "left well, and crashes again": (
        """
pytestmark = []
def test(server):
    turn()
    crash(server)
    ask(server)
def test_another_that_wants_it(server):
    turn()
    ask(server)
""",
        2,
        1,
        1,
    ),
    "left well, and hangs": (
        """
pytestmark = []
def test(server):
    turn()
    os.kill(server.pid, signal.SIGSTOP)
    try:
        assert False
    finally:
        threading.Timer(1, os.kill, (server.pid, signal.SIGCONT)).start()
""",
        1,
        1,
        0,
    ),
    "not of the group": (
        """
pytestmark = []
def test(triton_server_factory):
    turn()
    with triton_server_factory(models=["identity_fp32"]) as server:
        server.kill()
        assert server.is_alive
""",
        1,
        1,
        0,
    ),
}


@pytest.fixture(scope="module")
def planted_run(tmp_path_factory):
    """Run all that is planted, each in a file of its own; return the folder, and what was said."""
    folder = tmp_path_factory.mktemp("planted")
    for number, (text, *_) in enumerate(PLANTED.values()):
        (folder / f"test_{number}.py").write_text(PRELUDE + text)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers =\n  server\n  server_may_die\n")
    plugins = ["support.mortal_servers", "triton_fast.testing.plugin", "pytest_timeout"]
    plugins.append("no:cacheprovider")
    options = [word for name in plugins for word in ("-p", name)]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--junit-xml=report.xml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.stderr == ""
    assert result.returncode == 1
    return folder, result.stdout


@pytest.mark.parametrize("name", PLANTED)
def test_repeats(planted_run, name):
    folder, output = planted_run
    number = list(PLANTED).index(name)
    _, turns, failed, died = PLANTED[name]
    assert (folder / f"test_{number}.turns").stat().st_size == turns, output
    report = ET.parse(folder / "report.xml")
    cases = report.findall(f".//testcase[@classname='test_{number}']")
    assert sum(len(case.findall("failure") + case.findall("error")) for case in cases) == failed
    deaths = [found.get("value") for case in cases for found in case.iter("property")]
    assert len(deaths) == died, output
    for death in deaths:
        assert f"test_{number}.py::" in output
        start = {
            "hangs": "it hangs (",
            "killed": "its process ended, and not of a crash; ",
            "stands": "it hung as it started",
        }
        assert death.startswith(
            start.get(name.split(",")[0].split()[0], "its process ended (Signal")
        )


def test_the_summary_counts(planted_run):
    _, output = planted_run
    total = sum(died for *_, died in PLANTED.values())
    assert f"servers that died: {total}" in output
