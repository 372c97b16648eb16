"""The blocking twins are what tools/twins.py writes, and it finds one that is not."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from types import ModuleType

import pytest
from environments import ROOT

TOOL = ROOT / "tools" / "twins.py"


@pytest.fixture(scope="module")
def twins() -> ModuleType:
    spec = importlib.util.spec_from_file_location("twins", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copy(tmp_path):
    """The tool and the package, by themselves."""
    for name in ("tools", "triton_fast"):
        shutil.copytree(
            ROOT / name,
            tmp_path / name,
            ignore=shutil.ignore_patterns("__pycache__", "*.so"),
        )
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run(copy, *arguments):
    return subprocess.run(
        [sys.executable, copy / "tools" / "twins.py", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_drift_is_found(copy):
    """In a twin or in a source, and also if the twin is gone; it is written anew then."""
    twin = copy / "triton_fast" / "shared_memory" / "regions.py"
    source = twin.with_name("regions_async.py")
    right = twin.read_text("utf-8")

    assert run(copy, "--check").returncode == 0
    twin.write_text(right.replace("removal(name)", 'removal("")'), "utf-8")
    done = run(copy, "--check")
    assert done.returncode == 1
    assert '-                self._ask(removal(""))\n' in done.stdout
    assert "+                self._ask(removal(name))\n" in done.stdout
    assert "make twins" in done.stderr

    twin.unlink()
    assert run(copy, "--check").returncode == 1
    assert run(copy).returncode == 0
    assert twin.read_text("utf-8") == right

    source.write_text(source.read_text("utf-8").replace("since = ", "began = since = "), "utf-8")
    assert run(copy).returncode == 0
    assert twin.read_text("utf-8") == right.replace("since = ", "began = since = ")


def test_a_twin_says_where_it_is_from(twins):
    for name in twins.SOURCES:
        source = twins.PACKAGE / f"{name}.py"
        first = twins.twin_of(source).read_text("utf-8").splitlines()[0]
        assert source.name in first
        assert "make twins" in first


def test_every_name_is_used(twins):
    """Each line of the tables is for something that is there."""
    texts = [(twins.PACKAGE / f"{name}.py").read_text("utf-8") for name in twins.SOURCES]
    for name in twins.ASYNC_ONLY:
        assert any(f"async def {name}(" in text for text in texts)
    texts = [twins.without_async_only(text) for text in texts]
    for pattern, replacement in twins.RENAMED:
        changed = [re.sub(pattern, replacement, text) for text in texts]
        assert changed != texts, f"{pattern} is found nowhere"
        texts = changed


def test_nothing_asynchronous_is_left(twins):
    for name in twins.SOURCES:
        text = twins.twin_of(twins.PACKAGE / f"{name}.py").read_text("utf-8")
        body = text.partition("\n")[2]
        assert re.findall(r"(?i)\w*async\w*|\bawait\w*|\bcoroutines?\b", body) == []
