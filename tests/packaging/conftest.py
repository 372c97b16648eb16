"""For the packaging tests: the wheel that make built, and environments made from nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from environments import ROOT, Environment


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The wheel that `make` built. The Makefile says which, and has installed it."""
    named = os.environ.get("TRITON_FAST_WHEEL")
    wheels = [Path(named)] if named else sorted((ROOT / "dist").glob("*.whl"))
    if len(wheels) != 1 or not wheels[0].is_file():
        pytest.fail(f"there is no one wheel ({wheels}): `make wheel` builds it", pytrace=False)
    return wheels[0]


@pytest.fixture
def new_environment(tmp_path):
    def make(name: str) -> Environment:
        return Environment(tmp_path / name)

    return make
