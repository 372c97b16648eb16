"""For the wire tests: how hard hypothesis tries.

TRITON_FAST_SOAK=1 makes every property a long campaign.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

IS_SOAK = os.environ.get("TRITON_FAST_SOAK") == "1"

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
