"""What must hold after a test of a server that misbehaves."""

from __future__ import annotations

import gc
import time

import pytest
from meetings import ONE, assert_good, meeting, open_now

from triton_fast import DeadlineExceeded


@pytest.fixture(scope="session")
def loaded():
    """The first call loads modules, which takes longer than some deadlines here."""
    with meeting(lambda peer: None) as (_, client):
        assert_good(client)
        client.submit("m", ONE).result(60)
        with pytest.raises(DeadlineExceeded):
            client.infer("m", ONE, timeout=0)


@pytest.fixture
def nothing_is_left(loaded):
    """No descriptor and no thread may be left, whatever happened.

    Which there are is compared, not how many: what goes of earlier tests hides nothing.
    """
    before = open_now()
    yield
    end = time.monotonic() + 30
    while left := open_now() - before:
        assert time.monotonic() < end, left
        gc.collect()  # takes longer than most tests, and is for what an exception's traceback keeps
        time.sleep(0.01)
