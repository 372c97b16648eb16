"""For the tests of shared memory: none of them leaves anything behind."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest
from traces import descriptor_count, files, mapping_count

from triton_fast._core import _shm

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


def _counts() -> dict[str, int]:
    return {
        **_shm.live_counts(),
        "files": len(files()),
        "mappings": mapping_count(),
        "descriptors": descriptor_count(),
    }


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test leaves no segment, lease, file, mapping or descriptor behind."""
    before = _counts()
    if any(before.values()):
        # Of another test, perhaps in a cycle. Collecting takes longer than most tests, so it is
        # done where there is something to collect.
        gc.collect()
        before = _counts()
    yield
    if request.node.stash.get(_FAILED, False):
        return  # its traceback keeps what the test had, for the next one to see go
    after = _counts()
    if any(after[kind] > before[kind] for kind in after):
        gc.collect()  # an exception that the test expected may be in a cycle
        after = _counts()
    assert all(after[kind] <= before[kind] for kind in after), f"{before} became {after}"
