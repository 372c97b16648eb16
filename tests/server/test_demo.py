"""The demo of examples/digits, as its user runs it: what it prints, and what its exit status says.

That it fails when something is wrong is shown on copies of it with a fault.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.server
# The fixture skips, or fails in CI, where there is no Triton.
needs_triton = pytest.mark.usefixtures("triton_server")

DEMO = Path(__file__).resolve().parents[2] / "examples" / "digits"
CONTENDERS = ("triton_fast", "tritonclient.grpc", "tritonclient.http")
WORKLOADS = 5
ROW = re.compile(r"^.{20}(triton\S+) +[\d,]+ +[\d,]+ +[\d,]+ \S+/s +([\d.]+|-)$")


def environment(**variables: str) -> dict[str, str]:
    # A script's own folder is on its path, unless this says otherwise.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return {**inherited, "PYTHONIOENCODING": "utf-8", **variables}


def run(folder: Path = DEMO, *, seconds: float = 0.01, **variables: str):
    return subprocess.run(
        [sys.executable, folder / "demo.py", f"--seconds={seconds}"],
        env=environment(**variables),
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )


def hidden(folder: Path, package: str) -> str:
    """Return a PYTHONPATH on which a package is not installed."""
    (folder / f"{package}.py").write_text(
        f"raise ModuleNotFoundError('No module named {package}', name='{package}')\n"
    )
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def answers(port: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) == 0


def port_in(output: str) -> str:
    found = re.search(r"serves it at 127\.0\.0\.1:(\d+)", output)
    assert found, output
    return found[1]


def rows(output: str) -> list[str]:
    """Return the contenders of the table's rows."""
    lines = [line for line in output.splitlines() if "/s  " in line]
    matches = [ROW.fullmatch(line) for line in lines]
    assert all(matches), output
    return [match[1] for match in matches if match]


@needs_triton
def test_all_is_well():
    result = run()
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "✓ 1,797 of 1,797 answers" in result.stdout
    recognized = re.search(r"✓ ([\d.]+)% of the 450 held-out", result.stdout)
    assert recognized
    assert 95 <= float(recognized[1]) <= 100
    assert rows(result.stdout) == [*CONTENDERS] * WORKLOADS
    # tritonclient.grpc, beside itself.
    assert len(re.findall(r"tritonclient\.grpc .* 1\.00\n", result.stdout)) == WORKLOADS
    assert "✗" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert not answers(port_in(result.stdout))


RIGHT = "digits = scores.argmax(axis=1, keepdims=True)\n"
LINE = "\n            "  # as far in as that one
COUNT = f"{RIGHT}{LINE}self.calls = getattr(self, 'calls', 0) + 1{LINE}"


@needs_triton
@pytest.mark.parametrize(
    ("file", "right", "wrong", "complaint"),
    [
        pytest.param(
            "model.py",
            RIGHT,
            f"{COUNT}digits += self.calls == 900\n",
            "✗ 1,796 of 1,797 answers",
            id="one answer",
        ),
        pytest.param(
            "model.py",
            RIGHT,
            f"{RIGHT}{LINE}scores[:, 0] += 1e-3\n",
            "✗ scores are scikit-learn's; the largest difference is 0.001",
            id="scores",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "training.py",
            "network.fit(pixels[fitted], data.target[fitted])",
            "network.fit(pixels[fitted], np.roll(data.target[fitted], 1))",
            r"✗ \d?\d\.\d% of the 450 held-out",
            id="accuracy",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "model.py",
            RIGHT,
            f"{COUNT}digits += self.calls > 1810\n",
            "✗ digits, 1 image: triton_fast got a wrong answer from 'digits'",
            id="in the table",
        ),
    ],
)
def test_a_fault_is_seen(tmp_path, file, right, wrong, complaint):
    folder = tmp_path / "digits"
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = (folder / file).read_text(encoding="utf-8")
    assert text.count(right) == 1
    (folder / file).write_text(text.replace(right, wrong), encoding="utf-8")
    result = run(folder)
    assert result.returncode == 1, result.stdout
    assert re.search(complaint, result.stdout + result.stderr), result.stdout + result.stderr
    assert not answers(port_in(result.stdout))


@needs_triton
def test_without_tritonclient(tmp_path):
    result = run(PYTHONPATH=hidden(tmp_path, "tritonclient"))
    assert result.returncode == 0, result.stderr
    assert rows(result.stdout) == ["triton_fast"] * WORKLOADS
    assert "pip install 'tritonclient[grpc,http]'" in result.stdout


@pytest.mark.parametrize("package", ["sklearn", "triton_fast"])
def test_without_a_package(tmp_path, package):
    result = run(PYTHONPATH=hidden(tmp_path, package))
    assert result.returncode == 1
    assert f"No module named {package}" in result.stderr
    assert "make demo" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_a_server(tmp_path):
    result = run(TRITON_FAST_TRITONSERVER=str(tmp_path / "none"))
    assert result.returncode == 1
    assert result.stderr.startswith("✗ ")
    assert "cannot be run" in result.stderr
    assert "Traceback" not in result.stderr


@needs_triton
def test_interrupted(tmp_path):
    demo = subprocess.Popen(
        [sys.executable, DEMO / "demo.py", "--seconds=60"],
        env=environment(TMPDIR=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        assert demo.stdout is not None
        output = ""
        while "ratio" not in output:  # the table has begun
            line = demo.stdout.readline()
            assert line, output
            output += line
        port = port_in(output)
        assert answers(port)
        os.killpg(demo.pid, signal.SIGINT)  # as Ctrl-C does
        _, errors = demo.communicate(timeout=60)
    finally:
        demo.kill()
        demo.communicate()
    assert demo.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert not answers(port)
    assert not list(tmp_path.iterdir())
