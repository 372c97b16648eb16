"""What must hold after a test of a server that misbehaves."""

from __future__ import annotations

import pytest
from meetings import ONE, assert_good, meeting

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
def nothing_is_left(loaded, nothing_is_left):
    return nothing_is_left
