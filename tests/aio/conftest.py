"""One server for the clients of coroutines, which do not get in each other's way."""

from __future__ import annotations

import pytest
from aio_identity import IdentityServer
from aio_tools import PAIRS
from support.event_loops import Runner
from support.required import need

from triton_fast import AsyncClient

MODELS = [
    *("identity_fp32", "identity_cpp", "identity_cpp_bytes", "identity_bytes", "identity_mixed"),
    *("add_sub", "slow", "queued", "failing", "cancellations", "identity_batched", "variable"),
    "late",
]


@pytest.fixture(params=PAIRS)
def loop_and_channel(request):
    return request.param


@pytest.fixture
def aio_run(loop_and_channel):
    """Return a function that runs a coroutine, in a kind of event loop that goes with a channel."""
    kind, _ = loop_and_channel
    if kind == "uvloop":
        need("uvloop")
    return Runner(kind)


@pytest.fixture
def aio_channel(loop_and_channel):
    return loop_and_channel[1]


@pytest.fixture
def aio_server(shared_server):
    return shared_server(models=MODELS)


@pytest.fixture(scope="module")
def identity_server():
    server = IdentityServer()
    yield server
    server.stop()


@pytest.fixture
def new_client(aio_server, aio_channel):
    """Return what makes clients; over the wire unless told otherwise."""

    def make(**settings) -> AsyncClient:
        settings = {"channel": aio_channel, "timeout": 60, "shared_memory": False, **settings}
        return AsyncClient(aio_server.grpc_url, **settings)

    return make
