"""The stubs of the compiled modules say what is there: mypy's stubtest compares the two."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from environments import ROOT

CORE = Path("triton_fast", "_core")
MODULES = [
    pytest.param(path.stem, marks=pytest.mark.native if path.stem == "_http2" else ())
    for path in sorted((ROOT / CORE).glob("*.pyi"))
]

# What the two may differ in, as regular expressions.
ALLOWED = r"""
.*\.__(reduce|setstate)_cython__
.*\.__test__
# Names for types, which the stub makes for itself.
.*\._wire\.(Buffer|DecodedOutput|Parameters)
# Made by functions of the module only.
.*\._shm\.(Arenas|Lease|Segment)\.__init__
# Made and seen by the other classes of the module only.
.*\._wire\.Hold
.*\._wire\.Payload\.__init__
# Python has the name since 3.12, and the buffer before.
.*\._(shm|wire)\.(Lease|Payload|Segment)\.__buffer__
"""

PLANTED = {
    "a parameter of another name": (
        "def begin(self, byte_size: int)",
        "def begin(self, size: int)",
    ),
    "a method that there is not": (
        "def begin(self, byte_size: int)",
        "def stop(self) -> None: ...\n    def begin(self, byte_size: int)",
    ),
    "a function that is missing": ("def live_counts() -> dict[str, int]: ...", ""),
}


def stubtest(folder: Path, module: str) -> subprocess.CompletedProcess[str]:
    """Compare a stub in a copy of the source with the module that is tested here."""
    (folder / "allowed").write_text(ALLOWED)
    options = ["--concise", "--ignore-disjoint-bases", "--ignore-unused-allowlist"]
    options += ["--allowlist", "allowed", "--mypy-config-file", ROOT / "pyproject.toml"]
    return subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", *options, f"triton_fast._core.{module}"],
        cwd=folder,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def source(tmp_path):
    """The stubs, and of the rest of the package only what they import: mypy reads no more."""
    shutil.copytree(
        ROOT / CORE,
        tmp_path / CORE,
        ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.p[yx][xd]"),
    )
    (tmp_path / "triton_fast" / "__init__.py").touch()
    return tmp_path


@pytest.mark.parametrize("module", MODULES)
def test_a_stub_is_right(source, module):
    result = stubtest(source, module)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_difference_is_found(source, name):
    right, wrong = PLANTED[name]
    stub = source / CORE / "_wire.pyi"
    assert right in stub.read_text()
    stub.write_text(stub.read_text().replace(right, wrong))
    result = stubtest(source, "_wire")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "triton_fast._core._wire." in result.stdout
