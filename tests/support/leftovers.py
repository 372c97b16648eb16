"""pytest plugin: what a test leaves behind in this process fails it."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from support.process import descriptors


def nothing_more(
    counts: Callable[[], Mapping[str, int]], *, unless: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Fail a test, in its teardown, that leaves more of anything than there was before it.

    Fewer there may be: what an earlier test that failed had kept is gone. Collecting takes longer
    than most tests; it is for what an exception's traceback keeps, and done where there is any.
    """
    before = counts()
    if any(before.values()):
        gc.collect()
        before = counts()
    yield
    if unless():
        return
    end = time.monotonic() + 10
    while any(count > before[kind] for kind, count in counts().items()):
        # An exception that the test expected may be in a cycle; and an executor's thread lets go of
        # its work when the result is known already.
        gc.collect()
        if time.monotonic() > end:
            break
        time.sleep(0.01)
    after = counts()
    assert all(after[kind] <= before[kind] for kind in after), f"{before} became {after}"


@pytest.fixture(autouse=True)
def ledger() -> Iterator[None]:
    """No test may leave a payload or a held buffer behind."""
    from triton_fast._core import _wire

    yield from nothing_more(_wire.live_counts)


class NothingIsLeft:
    """Which descriptors and threads there are, to be held against those that there are later.

    Which there are is compared, not how many: what goes of earlier tests hides nothing.
    """

    def __init__(self) -> None:
        self.from_now_on()

    def from_now_on(self) -> None:
        """Look again: what there is by now, as what is made once, may stay."""
        self._before = self._now()

    @staticmethod
    def _now() -> set[object]:
        return {*threading.enumerate(), *descriptors().items()}

    def check(self) -> None:
        """Fail if there are others; some threads end, and close what they have, a moment later."""
        end = time.monotonic() + 30
        while left := self._now() - self._before:
            assert time.monotonic() < end, left
            gc.collect()  # takes longer than most tests, and is for what a traceback keeps
            time.sleep(0.01)


@pytest.fixture
def nothing_is_left() -> Iterator[NothingIsLeft]:
    """No descriptor and no thread may be left, whatever happened."""
    seen = NothingIsLeft()
    yield seen
    seen.check()
