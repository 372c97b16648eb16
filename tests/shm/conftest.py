"""For the tests of shared memory: none of them leaves anything behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from shm_programs import descriptor_count, mapping_count
from support.leftovers import nothing_more
from support.process import segments

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
        "files": len(segments()),
        "mappings": mapping_count(),
        "descriptors": descriptor_count(),
    }


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test leaves no segment, lease, file, mapping or descriptor behind."""
    # The traceback of one that has failed keeps what it had, for the next one to see go.
    yield from nothing_more(_counts, unless=lambda: request.node.stash.get(_FAILED, False))
