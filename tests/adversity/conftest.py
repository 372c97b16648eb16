"""What must hold after a test of a server that misbehaves."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import pytest


@pytest.fixture
def nothing_is_left():
    """No descriptor and no thread may be left, whatever happened."""

    def counts():
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    gc.collect()
    before = counts()
    yield
    deadline = time.monotonic() + 10
    while any(now > then for now, then in zip(counts(), before, strict=True)):
        assert time.monotonic() < deadline, (before, counts())
        gc.collect()
        time.sleep(0.05)
