"""What users see of an object when they print it: what it is, and in what state."""

from __future__ import annotations

import asyncio
import inspect

import numpy as np
import pytest

import triton_fast
from triton_fast import AsyncClient, Client

ONE = {"x": np.zeros(1, np.float32)}


@pytest.mark.parametrize("name", triton_fast.__all__)
def test_every_public_class_has_one(name):
    kind = getattr(triton_fast, name)
    if inspect.isclass(kind):
        assert kind.__repr__ is not object.__repr__


def test_what_is_made_by_a_client():
    with Client("localhost:1") as client:
        stream = client.open_stream()
        assert repr(stream) == "<Stream to localhost:1; requests without their last answer: 0>"
        stream.half_close()
        assert repr(stream).endswith("answer: 0, half closed>")
        stream.close()
        assert repr(stream) == "<Stream to localhost:1; over>"
        sequence = client.sequence("m", sequence_id=5)
        assert repr(sequence) == "<InferSequence 5 of model 'm'; not begun>"
        sequence.close()
        assert repr(sequence) == "<InferSequence 5 of model 'm'; ended>"
        generation = client.generate("m", "Hi")
        assert repr(generation) == "<Generation by model 'm'; open>"
        generation.close()
        assert repr(generation) == "<Generation by model 'm'; over>"
        assert repr(client.model("m")) == "Model('m' at localhost:1)"
        assert repr(client) == "Client('localhost:1')"
    assert repr(client) == "Client('localhost:1', closed)"


def test_what_is_made_by_an_async_client():
    async def work():
        async with AsyncClient("localhost:1") as client:
            async with client.open_stream() as stream:
                answers = stream.stream("m", ONE, request_id="a")
                name = "ModelStreamInfer('m', request 'a')"
                assert repr(answers) == f"<AsyncResponseStream of {name}; not sent>"
                await answers.aclose()
                assert repr(answers) == f"<AsyncResponseStream of {name}; over>"
                assert repr(stream).startswith("<AsyncStream to localhost:1; requests")
            assert repr(stream) == "<AsyncStream to localhost:1; over>"
            sequence = client.sequence("m", sequence_id="s")
            assert repr(sequence) == "<AsyncInferSequence 's' of model 'm'; not begun>"
            generation = client.generate("m", "Hi")
            assert repr(generation) == "<AsyncGeneration by model 'm'; open>"
            await generation.aclose()
            assert repr(generation) == "<AsyncGeneration by model 'm'; over>"
        assert repr(client) == "AsyncClient('localhost:1', closed)"

    asyncio.run(work())
