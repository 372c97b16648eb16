"""For the packaging tests: the wheel that make built, and environments made from nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from environments import ROOT, STALE, Environment


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


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """The source, as it looks to somebody who has worked in it: with old products lying about."""
    folder = tmp_path_factory.mktemp("source") / "triton_fast"
    unwanted = {".git", ".venv", ".build-venv", "build", "dist", "results", "__pycache__"}
    shutil.copytree(
        ROOT,
        folder,
        ignore=lambda _, names: [n for n in names if n in unwanted or n.endswith("_cache")],
    )
    for name in STALE:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"of another day")
    return folder
