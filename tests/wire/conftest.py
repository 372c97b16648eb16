"""For the wire tests: the ledger of held memory, and how hard hypothesis tries.

TRITON_FAST_SOAK=1 makes every property a long campaign.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from triton_fast._core import _wire

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

IS_SOAK = os.environ.get("TRITON_FAST_SOAK") == "1"
_FAILED = pytest.StashKey[bool]()

# Time limits are pytest's business: a shared machine has slow moments. The same examples on every
# run, so that a change is to blame for a failure; a soak looks for new ones.
settings.register_profile(
    "push",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile(
    "soak", settings.get_profile("push"), derandomize=False, max_examples=10_000
)
settings.load_profile("soak" if IS_SOAK else "push")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if IS_SOAK:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.timeout(0))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report


@pytest.fixture(autouse=True)
def ledger(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every payload is gone and every buffer of somebody else's is given back after a test."""
    before = _wire.live_counts()
    yield
    if request.node.stash.get(_FAILED, False):
        return  # its traceback keeps what the test had
    if any(_wire.live_counts().values()):
        gc.collect()  # an exception that the test expected may be in a cycle
    after = _wire.live_counts()
    # Compared with what was there before, which only the traceback of a failed test leaves behind.
    assert all(after[kind] <= before[kind] for kind in after), f"{before} became {after}"
