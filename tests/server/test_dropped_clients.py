"""Clients that are dropped, not closed: the server lets go of their shared memory all the same."""

from __future__ import annotations

import asyncio
import gc
import os

import numpy as np
import pytest
from support.waiting import until

from triton_fast import AsyncClient, Client

pytestmark = pytest.mark.server

LARGE = np.arange(1 << 18, dtype=np.float32)


@pytest.fixture
def url(shared_server):
    return shared_server(models=["identity_cpp"]).grpc_url


@pytest.fixture
def witness(url):
    with Client(url, shared_memory=False, timeout=60) as client:
        assert client.is_live()  # over a connection that stays
        yield client


def infer(client):
    return client.infer("identity_cpp", {"INPUT0": LARGE})["OUTPUT0"]


async def dropped(url, channel):
    """Make a call, and forget the client; return the answer."""
    client = AsyncClient(url, channel=channel, timeout=60)
    return (await client.infer("identity_cpp", {"INPUT0": LARGE}))["OUTPUT0"]


def test_a_client(url, channel, witness, nothing_is_left):
    kept = []
    for _ in range(10):
        client = Client(url, channel=channel, timeout=60)
        kept += [infer(client) for _ in range(2)]
        assert len(witness.shared_memory.registered()) >= 1
        with pytest.warns(ResourceWarning, match="without close"):
            del client
    until(lambda: not witness.shared_memory.registered())
    for array in kept:
        np.testing.assert_array_equal(array, LARGE)


def test_an_async_client(url, channel, witness):
    kept = []

    def drop_some():
        kept.extend(asyncio.run(dropped(url, channel)) for _ in range(5))
        gc.collect()

    with pytest.warns(ResourceWarning, match="without close"):
        drop_some()
    until(lambda: not witness.shared_memory.registered())
    for array in kept:
        np.testing.assert_array_equal(array, LARGE)


def test_its_parts_keep_a_client(url, witness):
    """A model, a future and a stream are of use without the client's own name."""
    model = Client(url, timeout=60).model("identity_cpp")
    model({"INPUT0": LARGE})
    gc.collect()
    assert len(witness.shared_memory.registered()) == 1
    np.testing.assert_array_equal(model({"INPUT0": LARGE})["OUTPUT0"], LARGE)
    with pytest.warns(ResourceWarning, match="without close"):
        del model
    until(lambda: not witness.shared_memory.registered())

    def submit():
        future = Client(url, timeout=60).submit("identity_cpp", {"INPUT0": LARGE})
        np.testing.assert_array_equal(future.result(60)["OUTPUT0"], LARGE)
        del future
        until(lambda: not witness.shared_memory.registered())

    with pytest.warns(ResourceWarning, match="without close"):
        submit()


def test_a_closed_client_says_nothing(url, witness, recwarn):
    with Client(url, timeout=60) as client:
        infer(client)
    del client
    client = Client(url, timeout=60)  # and one that had nothing
    client.is_live()
    del client
    gc.collect()
    assert not recwarn.list
    assert not witness.shared_memory.registered()


def test_a_forked_child_leaves_the_parents_alone(url, channel, witness):
    client = Client(url, channel=channel, timeout=60)
    infer(client)
    before = set(witness.shared_memory.registered())
    pid = os.fork()
    if not pid:
        del client
        gc.collect()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert set(witness.shared_memory.registered()) == before
    np.testing.assert_array_equal(infer(client), LARGE)
    client.close()
