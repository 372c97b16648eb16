"""For the wire tests: the ledger of held memory, and how hard hypothesis tries.

TRITON_FAST_SOAK=1 makes every property a long campaign.
"""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from triton_fast._core import _wire

if TYPE_CHECKING:
    from collections.abc import Iterator

# Time limits are pytest's business: a shared machine has slow moments. The same examples on every
# run, so that a change is to blame for a failure; a soak looks for new ones.
settings.register_profile(
    "push",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile(
    "soak", settings.get_profile("push"), derandomize=False, max_examples=20_000
)
settings.load_profile("soak" if os.environ.get("TRITON_FAST_SOAK") == "1" else "push")


@pytest.fixture(autouse=True)
def ledger() -> Iterator[None]:
    """Every payload is gone and every buffer of somebody else's is given back after a test."""
    yield
    if any(_wire.live_counts().values()):
        gc.collect()  # a traceback may have kept something in a cycle
    assert _wire.live_counts() == {"payloads": 0, "holds": 0}
