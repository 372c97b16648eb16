"""Clients and models that other processes get, against a real server."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from support.interpreter import run_python

from triton_fast import AsyncClient, Client

pytestmark = pytest.mark.server
VALUES = np.arange(100_000, dtype=np.float32)


def doubled(model, values):
    return model(INPUT0=values)["OUTPUT0"] * 2


def test_models_in_other_processes(triton_server, channel):
    """As a pool's tasks get them, each with its own copy; each gives back what it had shared."""
    with Client(triton_server.grpc_url, channel=channel, timeout=60) as client:
        before = client.shared_memory.registered().keys()  # by other tests' children, say
        model = client.model("identity_fp32")
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(2, mp_context=context) as pool:
            answers = list(pool.map(doubled, [model] * 4, [VALUES + number for number in range(4)]))
        for number, answer in enumerate(answers):
            np.testing.assert_array_equal(answer, (VALUES + number) * 2)
        assert client.shared_memory.registered().keys() <= before


SCRIPT = """
    import asyncio, pickle, sys

    client = pickle.loads(bytes.fromhex(sys.argv[1]))

    async def ready():
        async with client:
            print(await client.is_model_ready("identity_fp32"))

    asyncio.run(ready())
"""


def test_an_async_client_in_another_process(triton_server, channel):
    async def pickled():
        async with AsyncClient(triton_server.grpc_url, channel=channel, timeout=60) as client:
            assert await client.is_ready()  # which has a connection and a loop by now
            return pickle.dumps(client)

    assert run_python(SCRIPT, asyncio.run(pickled()).hex(), quiet=True) == "True\n"
