"""Servers of other makes and of earlier years, each in an environment of its own.

`make matrix` says by TRITON_FAST_MATRIX where the environments are; what is there already is not
made again. Without it these tests are skipped: each takes a large download.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from commands import run


@pytest.fixture(scope="session")
def matrix():
    """Return the folder of the environments."""
    folder = os.environ.get("TRITON_FAST_MATRIX")
    if not folder:
        pytest.skip("make matrix runs it: it takes large downloads")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


@pytest.fixture(scope="session")
def environment(matrix):
    """Return what makes an environment with packages in it, and returns its folder of programs."""

    def make(name: str, *requirements: str) -> Path:
        folder = matrix / name
        ready = folder / "ready"
        if not ready.exists():
            run(sys.executable, "-m", "venv", "--clear", folder)
            run(folder / "bin" / "python", "-m", "pip", "install", "-q", *requirements)
            ready.touch()
        return folder / "bin"

    return make
