"""The server of the tests of streams."""

from __future__ import annotations

import pytest

from triton_fast.testing import FURTHER_TEST_MODELS

STREAM_MODELS = [
    *FURTHER_TEST_MODELS,
    *("identity_fp32", "identity_bytes", "identity_batched", "failing"),
]


@pytest.fixture
def server(shared_server):
    return shared_server(models=STREAM_MODELS)
