"""The rule that CI must not skip the real-server level: each way to skip it makes the run fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

RUNS = {
    "ran": "import pytest\n@pytest.mark.server\ndef test(): pass",
    "ran, by fixture": """
import pytest
@pytest.fixture
def triton_server(): pass
def test(triton_server): pass
""",
    "expected to fail": """
import pytest
@pytest.mark.server
def test(): pass
@pytest.mark.server
@pytest.mark.xfail(strict=True)
def test_later(): assert False
""",
    "another level skipped": """
import pytest
@pytest.mark.server
def test(): pass
def test_other(): pytest.skip("no torch")
""",
}
SKIPS = {
    "by mark": """
import pytest
@pytest.mark.server
def test(): pass
@pytest.mark.server
@pytest.mark.skip(reason="no server")
def test_skipped(): pass
""",
    "by the body": """
import pytest
pytestmark = pytest.mark.server
def test(): pass
def test_skipped(): pytest.skip("no server")
""",
    "by a fixture": """
import pytest
@pytest.fixture
def triton_server(): pytest.skip("no server")
@pytest.mark.server
def test(): pass
def test_skipped(triton_server): pass
""",
    "the whole file": """
import pytest
pytest.skip("no server", allow_module_level=True)
pytestmark = pytest.mark.server
""",
    "none of the level": "def test(): pass",
    "no test at all": "",
}


def run(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_planted.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = server\n")
    plugins = ["-p", "support.server_level", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", RUNS)
def test_the_level_ran(tmp_path, name):
    result = run(tmp_path, RUNS[name], "--require-server")
    assert result.returncode == 0, result.stdout
    assert "none was skipped" in result.stdout


@pytest.mark.parametrize("name", ["ran", "by the body", "the whole file"])
def test_what_workers_did_counts(tmp_path, name):
    text = {**RUNS, **SKIPS}[name]
    result = run(tmp_path, text, "-p", "xdist", "--numprocesses=1", "--require-server")
    assert result.returncode == (0 if name in RUNS else 1), result.stdout
    assert ("none was skipped" if name in RUNS else "no server") in result.stdout


@pytest.mark.parametrize("name", SKIPS)
def test_the_level_was_skipped(tmp_path, name):
    result = run(tmp_path, SKIPS[name], "--require-server")
    assert result.returncode == 1, result.stdout
    assert "a Triton server is required here" in result.stdout
    assert ("no server" if "no server" in SKIPS[name] else "not one test") in result.stdout


def test_elsewhere_a_skip_is_a_skip(tmp_path):
    result = run(tmp_path, SKIPS["by mark"])
    assert result.returncode == 0, result.stdout
    assert "required" not in result.stdout
