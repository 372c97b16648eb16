"""Tests are repeated only where a server died or hangs, a bounded number of times, and counted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

pytestmark = pytest.mark.server

TESTS = Path(__file__).resolve().parents[1]

PRELUDE = """
import os, signal, threading, pytest
import mortal_servers
from pathlib import Path

mortal_servers.ANSWER_SECONDS = 2.0
pytestmark = pytest.mark.server_may_die
TURNS = Path(__file__).with_suffix(".turns")

@pytest.fixture
def server(shared_server):
    return shared_server(models=["identity_fp32", "repeat_int32"])

def turn():
    with TURNS.open("a") as file:
        file.write("x")
    return TURNS.stat().st_size

def ask(server):
    assert not mortal_servers.what_is_wrong_with(server)
"""
# What is planted: the tests' text, how often they run, which of them fail, how many servers died.
PLANTED = {
    "well": ("def test(server): turn(); ask(server)", 1, 0, 0),
    "fails, and its server is well": ("def test(server): turn(); assert False", 1, 1, 0),
    "killed once": (
        """
def test(server):
    if turn() == 1:
        os.kill(server.pid, signal.SIGKILL)
    ask(server)
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
    "killed each time": (
        "def test(server): turn(); os.kill(server.pid, signal.SIGKILL); ask(server)",
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
    os.kill(server.pid, signal.SIGKILL)
    while server.is_alive:
        pass
""",
        1,
        0,
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
    os.kill(server.pid, signal.SIGKILL)
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
    os.kill(other.pid, signal.SIGKILL)
    while other.is_alive:
        pass
    assert False
""",
        2,
        1,
        1,
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
def run(tmp_path_factory):
    """Run all that is planted, each in a file of its own; return the folder, and what was said."""
    folder = tmp_path_factory.mktemp("planted")
    for number, (text, *_) in enumerate(PLANTED.values()):
        (folder / f"test_{number}.py").write_text(PRELUDE + text)
    (folder / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n  server\n  server_may_die\n  timeout\n"
    )
    plugins = ["mortal_servers", "triton_fast.testing.plugin", "no:cacheprovider"]
    options = [word for name in plugins for word in ("-p", name)]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--junit-xml=report.xml"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.stderr == ""
    assert result.returncode == 1
    return folder, result.stdout


@pytest.mark.parametrize("name", PLANTED)
def test_repeats(run, name):
    folder, output = run
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
        assert death.startswith("it hangs (" if "hangs" in name else "its process ended")


def test_the_summary_counts(run):
    _, output = run
    total = sum(died for *_, died in PLANTED.values())
    assert f"servers that died: {total}" in output
