"""Whose regions and files are left behind: told by their names, and by what processes there are."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from triton_fast.shared_memory import ownership
from triton_fast.shared_memory.ownership import region_name, remove_orphans, stale_region
from triton_fast.shared_memory.registration import RegisteredRegion


def region(name: str) -> RegisteredRegion:
    return RegisteredRegion(name, "/key", 0, 100)


@pytest.fixture
def name_parts() -> tuple[str, str]:
    """Return our namespace and our pid, as names have them."""
    _, space, pid, *_ = region_name().split("-")
    return space, pid


@pytest.fixture(scope="module")
def gone() -> Iterator[int]:
    """Return the number of a process that has ended; as its parent, we keep others from it."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_regions_of_those_who_are_there_are_not_stale(name_parts: tuple[str, str]) -> None:
    assert stale_region(region(region_name())) is None
    space, pid = name_parts
    assert stale_region(region(f"triton_fast-{space}-{pid}-{int(time.time())}-0a")) is None


def test_regions_of_a_process_that_is_gone(name_parts: tuple[str, str], gone: int) -> None:
    made = int(time.time()) - 100
    name = f"triton_fast-{name_parts[0]}-{gone}-{made}-0a"
    stale = stale_region(region(name))
    assert stale is not None
    assert (stale.name, stale.byte_size, stale.pid) == (name, 100, gone)
    assert 99 <= stale.age < 160


def test_another_process_may_have_got_the_number(name_parts: tuple[str, str]) -> None:
    """This one's, say: it had not begun when the region was made."""
    space, pid = name_parts
    stale = stale_region(region(f"triton_fast-{space}-{pid}-1000000000-0a"))
    assert stale is not None
    assert stale.pid == int(pid)


def test_of_others_nothing_can_be_said(name_parts: tuple[str, str], gone: int) -> None:
    space = name_parts[0]
    for name in (
        "camera",
        f"triton_fast-{int(space) + 1}-{gone}-1000000000-0a",  # on another machine, say
        f"triton_fast-{space}-{gone}-1000000000-0a-more",
        f"other-{space}-{gone}-1000000000-0a",
    ):
        assert stale_region(region(name)) is None, name


def test_only_orphans_files_are_removed(
    name_parts: tuple[str, str], gone: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space, pid = name_parts
    orphan = f"triton_fast-{space}-{gone}-0a"
    others = {f"triton_fast-{space}-{pid}-0a", f"triton_fast-{int(space) + 1}-{gone}-0a", "camera"}
    for name in (orphan, *others):
        (tmp_path / name).touch()
    monkeypatch.setattr(ownership, "_FILES", tmp_path)
    remove_orphans()
    assert {path.name for path in tmp_path.iterdir()} == others
    monkeypatch.setattr(ownership, "_FILES", tmp_path / "none")
    remove_orphans()


# What somebody else may call a file or a region.
NUMBERS = ["99999999999999999999", "4294967297", "2147483648", "0", "٣", "9" * 5000, "-1", ""]


@pytest.mark.parametrize("number", NUMBERS)
def test_numbers_that_no_process_has(
    name_parts: tuple[str, str], number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are nobody's: not stale, not removed, and no error for a call that looks."""
    space = name_parts[0]
    for name in (
        f"triton_fast-{space}-{number}-1000000000-0a",
        f"triton_fast-{space}-{os.getpid()}-{number}9999999999-0a",
        f"triton_fast-{number}-1-1000000000-0a",
    ):
        assert stale_region(region(name)) is None, name
    names = {f"triton_fast-{space}-{number}-ab", f"triton_fast-{number}-1-ab"}
    for name in [name for name in names if len(name.encode()) < 256]:
        (tmp_path / name).touch()
    before = set(tmp_path.iterdir())
    monkeypatch.setattr(ownership, "_FILES", tmp_path)
    remove_orphans()
    assert set(tmp_path.iterdir()) == before


def test_what_cannot_be_removed_stays(
    name_parts: tuple[str, str], gone: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"triton_fast-{name_parts[0]}-{gone}-0a").mkdir()
    monkeypatch.setattr(ownership, "_FILES", tmp_path)
    remove_orphans()
    assert len(list(tmp_path.iterdir())) == 1
