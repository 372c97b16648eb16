"""None as a call's timeout is the client's own, which wrappers pass through; infinity lifts it."""

from __future__ import annotations

import asyncio
import math
import time

import numpy as np
import pytest
from support.memory_channel import MemoryChannel, async_client_on, client_on

from triton_fast import Client, InvalidOption
from triton_fast.protocol.messages import message_class

ONE = {"x": np.zeros(1, np.float32)}
# What a call says, and what it then has, of a client that has 100 seconds for each.
LEFT = [({}, 100), ({"timeout": None}, 100), ({"timeout": 20}, 20), ({"timeout": math.inf}, None)]


def answer(method, request):
    if method == "ModelMetadata":
        tensor = {"name": "x", "datatype": "FP32", "shape": [-1]}
        return message_class("ModelMetadataResponse")(name="m", inputs=[tensor])
    return message_class(f"{method}Response")()


def left(options):
    """Return the seconds that are left, as they were given."""
    if options.deadline_ns is None:
        return None
    return math.ceil((options.deadline_ns - time.monotonic_ns()) / 1e10) * 10


CALLS = {
    "infer": lambda client, **own: client.infer("m", ONE, **own),
    "is_live": lambda client, **own: client.is_live(**own),
    "is_ready": lambda client, **own: client.is_ready(**own),
    "is_model_ready": lambda client, **own: client.is_model_ready("m", **own),
    "server_metadata": lambda client, **own: client.server_metadata(**own),
    "model_metadata": lambda client, **own: client.model_metadata("m", **own),
    "model_config": lambda client, **own: client.model_config("m", **own),
    "model": lambda client, **own: client.model("m")(ONE, **own),
    "sequence": lambda client, **own: client.sequence("m", stream=False, **own).infer(ONE),
    "its own": lambda client, **own: client.sequence("m", stream=False).infer(ONE, **own),
}
BLOCKING = {
    "submit": lambda client, **own: client.submit("m", ONE, **own).result(),
    "model.submit": lambda client, **own: client.model("m").submit(ONE, **own).result(),
}


@pytest.mark.parametrize(("own", "expected"), LEFT)
@pytest.mark.parametrize("name", [*CALLS, *BLOCKING])
def test_calls(name, own, expected):
    channel = MemoryChannel(answer)
    with client_on(channel, timeout=100) as client:
        (CALLS | BLOCKING)[name](client, **own)
    assert {left(options) for options in channel.options} == {expected}


@pytest.mark.parametrize(("own", "expected"), LEFT)
@pytest.mark.parametrize("name", CALLS)
def test_calls_of_coroutines(name, own, expected):
    channel = MemoryChannel(answer)

    async def work():
        async with async_client_on(channel, timeout=100) as client:
            await CALLS[name](client, **own)

    asyncio.run(work())
    assert {left(options) for options in channel.options} == {expected}


@pytest.mark.parametrize(("own", "expected"), [({}, 10), *LEFT[1:]])
def test_health_has_five_seconds_of_its_own(own, expected):
    channel = MemoryChannel(answer)
    with client_on(channel, timeout=100) as client:
        assert client.health(**own) is not None
    assert left(channel.options[0]) == expected


@pytest.mark.parametrize(("own", "expected"), LEFT)
def test_streams(own, expected):
    with Client("localhost:1", timeout=100) as client, client.open_stream(**own) as stream:
        assert left(stream._state.options) == expected


@pytest.mark.parametrize(("own", "expected"), LEFT)
def test_a_sequences_requests_share_a_stream_that_has_no_limit(own, expected):
    with Client("localhost:1", timeout=100) as client, client.sequence("m", **own) as sequence:
        assert left(sequence._stream._state.options) is None
        deadline_ns = client._endpoint.deadline_ns(sequence._timeout)
        assert (deadline_ns is None) == (expected is None)


@pytest.mark.parametrize("own", [None, math.inf])
def test_a_client_without_a_limit(own):
    channel = MemoryChannel(answer)
    with client_on(channel, timeout=own) as client:
        for timeout, expected in ((None, None), (math.inf, None), (20, 20)):
            client.infer("m", ONE, timeout=timeout)
            assert left(channel.options[-1]) == expected


@pytest.mark.parametrize("name", [*CALLS, *BLOCKING])
def test_what_is_none(name):
    with client_on(MemoryChannel(answer)) as client:
        for timeout in ("5", True, -1, 10**400):
            with pytest.raises(InvalidOption, match="timeout must be"):
                (CALLS | BLOCKING)[name](client, timeout=timeout)
