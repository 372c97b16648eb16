"""What must hold after a test of a server that misbehaves."""

from __future__ import annotations

import pytest
from rogue_meetings import assert_good, meeting
from support.model_calls import ONE

from triton_fast import DeadlineExceeded


@pytest.fixture(scope="session")
def loaded():
    """The first call loads modules, which takes longer than some deadlines here."""
    with meeting(lambda peer: None) as (_, client):
        assert_good(client)
        client.submit("m", ONE).result(60)
        with pytest.raises(DeadlineExceeded):
            client.infer("m", ONE, timeout=0)
