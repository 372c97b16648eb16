"""The stubs of the compiled modules say what is there: mypy's stubtest compares the two."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from environments import ROOT

from triton_fast.channels.native.channel import why_not_native

CORE = Path("triton_fast", "_core")
PACKAGE = "triton_fast._core"
MODULES = sorted(path.stem for path in (ROOT / CORE).glob("*.pyi"))

# What the two may differ in, as regular expressions.
ALLOWED = r"""
.*\.__(reduce|setstate)_cython__
.*\.(__test__|__pyx_capi__)
# Names for types, which the stub makes for itself.
.*\._wire\.(Buffer|DecodedOutput|Parameters)
# Made by functions of the module only.
.*\._shm\.(Arenas|Lease|Segment)\.__init__
# Made and seen by the other classes of the module only.
.*\._wire\.Hold
.*\._wire\.Payload\.__init__
.*\._http2\.Exchange\.__init__
# Python has the name since 3.12, and the buffer before.
.*\._(shm|wire)\.(Lease|Payload|Segment)\.__buffer__
"""


# What is planted in a copy, and what must be said of it.
RIGHT = "    def finish(self) -> None: ...\n"
PLANTED = RIGHT + "    def stop(self) -> None: ...\n"
FOUND = f"{PACKAGE}._wire.Response.stop is not present at runtime"


def stubtest(folder: Path, *modules: str) -> list[str]:
    """Compare stubs with the modules that are tested here; return what differs, in lines."""
    # The stubs, and of the rest of the package only what they import: mypy reads no more.
    (folder / "triton_fast" / "__init__.py").touch()
    (folder / "allowed").write_text(ALLOWED)
    options = ["--concise", "--ignore-disjoint-bases", "--ignore-unused-allowlist"]
    options += ["--allowlist", "allowed", "--mypy-config-file", ROOT / "pyproject.toml"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", *options, *(f"{PACKAGE}.{m}" for m in modules)],
        cwd=folder,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert all(line.startswith(f"{PACKAGE}._") for line in lines), done.stdout + done.stderr
    assert (done.returncode == 0) == (not lines), done.stderr
    return lines


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stubs")
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "*.p[yx][xd]")
    shutil.copytree(ROOT / CORE, folder / CORE, ignore=unwanted)
    stub = folder / CORE / "_wire.pyi"
    text = stub.read_text()
    assert text.count(RIGHT) == 1
    stub.write_text(text.replace(RIGHT, PLANTED))
    return stubtest(folder, *(m for m in MODULES if m != "_http2" or not why_not_native()))


def test_a_planted_difference_is_found(differences):
    """Or the tests below show nothing."""
    assert [line for line in differences if line.startswith(FOUND)]


@pytest.mark.parametrize(
    "module",
    [pytest.param(m, marks=pytest.mark.native if m == "_http2" else ()) for m in MODULES],
)
def test_a_stub_is_right(differences, module):
    wrong = [line for line in differences if line.startswith(f"{PACKAGE}.{module}.")]
    assert [line for line in wrong if not line.startswith(FOUND)] == []
