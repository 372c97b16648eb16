"""One server for the clients of coroutines, which do not get in each other's way."""

from __future__ import annotations

import pytest
from aio_identity import IdentityServer

MODELS = [
    *("identity_fp32", "identity_cpp", "identity_cpp_bytes", "identity_bytes", "identity_mixed"),
    *("add_sub", "slow", "queued", "failing", "cancellations", "identity_batched", "variable"),
]


@pytest.fixture(scope="session")
def aio_server(triton_server_factory):
    with triton_server_factory(models=MODELS) as server:
        yield server


@pytest.fixture(scope="module")
def identity_server():
    server = IdentityServer()
    yield server
    server.stop()
