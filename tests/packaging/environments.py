"""Environments made from nothing, and a real inference in one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# What lies about in the source of somebody who has worked in it.
STALE = (
    "triton_fast/_core/_wire.cpython-311-x86_64-linux-gnu.so",
    "triton_fast/_core/_http2.cpython-311-x86_64-linux-gnu.so",
    "triton_fast/inference.descriptors",
    "triton_fast/__pycache__/client.cpython-311.pyc",
    "build/stale.o",
    "results/benchmark.json",
    "dist/stale.whl",
    ".venv/stale.py",
)

# What a newcomer does first, and whether the values are right: what imports may still be broken.
INFERENCE = """
import sys
import numpy as np
import triton_fast
from triton_fast import Client, ServerError

def says_what(name, sent, received):
    assert received.dtype == sent.dtype and np.array_equal(received, sent), name

with Client(sys.argv[1], timeout=60) as client:
    assert client.is_ready()
    assert client.server_metadata().name
    numbers = np.linspace(-1, 1, 150_528, dtype=np.float32)
    says_what("FP32", numbers, client.infer("identity_fp32", {"INPUT0": numbers})["OUTPUT0"])
    future = client.submit("identity_fp32", {"INPUT0": numbers})
    says_what("submit", numbers, future.result(60)["OUTPUT0"])
    text = np.array([b"", "Z\\u00fcrich".encode(), b"a\\0b"], np.object_)
    says_what("BYTES", text, client.infer("identity_bytes", {"INPUT0": text})["OUTPUT0"])
    try:
        client.infer("no such model", {"INPUT0": numbers})
    except ServerError as error:
        assert "no such model" in str(error)
    else:
        raise AssertionError("a model that there is not answered")
print(triton_fast.__file__)
"""


class Environment:
    """A virtual environment without anything in it, not even pip."""

    def __init__(self, folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.folder = folder
        self.python = folder / "bin" / "python"

    def install(self, *arguments: str | Path) -> None:
        run(sys.executable, "-m", "pip", "--python", self.python, "install", "-q", *arguments)

    def versions(self) -> dict[str, str]:
        listing = run(sys.executable, "-m", "pip", "--python", self.python, "freeze", "--all")
        return dict(line.split("==") for line in listing.splitlines() if "==" in line)

    def infer(self, url: str) -> None:
        """Make inferences of several kinds in this environment; raise if one is not right."""
        imported = run(self.python, "-W", "error", "-c", INFERENCE, url).strip()
        assert Path(imported).is_relative_to(self.folder)


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """Run a program without this project on its path; return its output."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        command,
        cwd=cwd,
        env={**inherited, "PYTHONSAFEPATH": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, f"{command} failed:\n{result.stdout}\n{result.stderr}"
    return result.stdout
