"""Text from real models with the signatures of vLLM's backend, TensorRT-LLM's, and a plain one.

They answer with the prompt's words, last to first, each a token; "!error" makes them fail half way.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest
from support.waiting import until

from triton_fast import (
    PLAIN_TEXT,
    TENSORRT_LLM,
    AsyncClient,
    Client,
    DeadlineExceeded,
    Finished,
    InvalidOption,
    NotFound,
    ServerError,
    Started,
    TextMapping,
    Token,
    Usage,
)

pytestmark = pytest.mark.server

SLOW = {"token_delay": 0.2}


class Face:
    """Either client's ``generate``, as if it were blocking."""

    def __init__(self, kind, url, channel):
        self.asynchronous = kind == "coroutines"
        self.url = url
        self.channel = channel

    def events(self, model, prompt, **arguments):
        """Return what comes; before an error, that is in ``seen``."""
        self.seen = []
        if self.asynchronous:
            asyncio.run(self._gather(model, prompt, arguments))
            return self.seen
        with Client(self.url, channel=self.channel, timeout=60) as client:
            with client.generate(model, prompt, **arguments) as events:
                for event in events:
                    self.seen.append(event)
        return self.seen

    async def _gather(self, model, prompt, arguments):
        async with AsyncClient(self.url, channel=self.channel, timeout=60) as client:
            async with client.generate(model, prompt, **arguments) as events:
                async for event in events:
                    self.seen.append(event)

    def text(self, model, prompt, **arguments):
        return self.events(model, prompt, **arguments)[-1].text


@pytest.fixture(params=["threads", "coroutines"])
def generating_face(request, python_server, channel):
    return Face(request.param, python_server.grpc_url, channel)


def tokens(*texts):
    return [Token(text, index) for index, text in enumerate(texts)]


@pytest.mark.parametrize("model", ["vllm_like", "tensorrtllm_like"])
def test_events(generating_face, model):
    events = generating_face.events(model, "one two three", max_tokens=16, request_id="mine")
    assert events[0] == Started("mine", model, "1")
    assert events[1:-1] == tokens("three", " two", " one")
    reason = "stop" if model == "vllm_like" else None
    assert events[-1] == Finished(reason, Usage(3, 3), "three two one")


def test_a_plain_model_in_a_stream(generating_face):
    events = generating_face.events("prompt_text_stream", "one two", request_id="mine")
    assert events == [
        Started("mine", "prompt_text_stream", "1"),
        *tokens("two", " one"),
        Finished(None, Usage(None, None), "two one"),
    ]


def test_a_model_that_is_not_decoupled(generating_face):
    events = generating_face.events("prompt_text", "one two", request_id="mine")
    assert events == [
        Started("mine", "prompt_text", "1"),
        Token("two one", 0),
        Finished(None, Usage(None, None), "two one"),
    ]


@pytest.mark.parametrize("model", ["vllm_like", "tensorrtllm_like"])
def test_options(generating_face, model):
    words = "one two three four"
    assert generating_face.text(model, words, max_tokens=2) == "four three"
    assert generating_face.text(model, words, max_tokens=9, stop="two") == "four three"
    assert generating_face.text(model, words, max_tokens=9, stop=["one", "three"]) == "four"
    assert generating_face.text(model, words, max_tokens=9, temperature=0.5) == "four THREE two ONE"
    assert (
        generating_face.text(model, words, max_tokens=9, temperature=0.5, seed=1)
        == "FOUR three TWO one"
    )
    assert (
        generating_face.text(model, words, max_tokens=9, options={"bad_words": ["two"]})
        == "four three one"
    )
    assert (
        generating_face.text(model, words, max_tokens=9, top_p=0.5, top_k=3) == "four three two one"
    )


def test_the_end_and_its_reason(generating_face):
    finished = generating_face.events("vllm_like", "one two three", max_tokens=2)[-1]
    assert finished == Finished("length", Usage(3, 2), "three two")
    finished = generating_face.events("vllm_like", "one two three", stop="two")[-1]
    assert finished == Finished("stop", Usage(3, 1), "three")
    assert generating_face.events("vllm_like", "")[-1] == Finished("stop", Usage(0, 0), "")


def test_options_as_parameters(generating_face):
    mapping = replace(PLAIN_TEXT, option_parameters=True)
    for model in ("prompt_text", "prompt_text_stream"):
        assert (
            generating_face.text(model, "one two three", mapping=mapping, max_tokens=2)
            == "three two"
        )
        assert generating_face.text(model, "one two three", parameters={"max_tokens": 1}) == "three"


def test_options_that_a_model_does_not_take(generating_face):
    with pytest.raises(InvalidOption, match="model 'prompt_text' has no input for max_tokens"):
        generating_face.events("prompt_text", "one", max_tokens=1)
    with pytest.raises(InvalidOption, match="model 'tensorrtllm_like' needs max_tokens"):
        generating_face.events("tensorrtllm_like", "one")
    with pytest.raises(InvalidOption, match="model 'tensorrtllm_like' has no input for no_such"):
        generating_face.events("tensorrtllm_like", "one", max_tokens=1, options={"no_such": 1})
    with pytest.raises(InvalidOption, match="temperature must be a number"):
        generating_face.events("vllm_like", "one", temperature="hot")


def test_mappings_that_do_not_fit(generating_face):
    with pytest.raises(InvalidOption, match="model 'vllm_like' has no input 'prompt'"):
        generating_face.events("vllm_like", "one", mapping=PLAIN_TEXT)
    wrong = replace(TENSORRT_LLM, text="no_such")
    with pytest.raises(InvalidOption, match="no BYTES output 'no_such'"):
        generating_face.events("tensorrtllm_like", "one", mapping=wrong, max_tokens=1)
    own = TextMapping(prompt="prompt", text="text")
    assert generating_face.text("prompt_text", "one two", mapping=own) == "two one"


def test_every_character_comes_whole(generating_face):
    text = generating_face.text("vllm_like", "Grüße 世界 🌍 e\u0301")
    assert text == "e\u0301 🌍 世界 Grüße"


@pytest.mark.parametrize("model", ["vllm_like", "tensorrtllm_like", "prompt_text_stream"])
def test_an_error_amid_the_text(generating_face, model):
    arguments = {} if model == "prompt_text_stream" else {"max_tokens": 9}
    with pytest.raises(ServerError, match="the generation failed after 2 tokens"):
        generating_face.events(model, "!error one two three", **arguments)
    assert generating_face.seen[0].model_name == model
    assert generating_face.seen[1:] == tokens("three", " two")


def test_an_error_of_a_model_that_answers_once(generating_face):
    with pytest.raises(ServerError, match="the generation failed after 1 tokens"):
        generating_face.events("prompt_text", "!error one two")
    assert generating_face.seen == []


def test_no_such_model(generating_face):
    with pytest.raises(NotFound, match="nope"):
        generating_face.events("nope", "one")


def cancelled(python_server, channel):
    """Return how many texts the model was told not to finish."""
    return int(Face("threads", python_server.grpc_url, channel).text("vllm_like", "!cancelled"))


def wait_for_more_than(before, python_server, channel):
    until(lambda: cancelled(python_server, channel) > before)


LONG = {"prompt": "one two three " * 50, "options": SLOW, "max_tokens": 200}


@pytest.mark.server_may_die
def test_closing_early_cancels(python_server, channel):
    """And tokens come as they are made: the first ones when all would take half a minute."""
    before = cancelled(python_server, channel)
    with Client(python_server.grpc_url, channel=channel, timeout=60) as client:
        with client.generate("vllm_like", **LONG) as events:
            assert [type(next(events)), type(next(events))] == [Started, Token]
        wait_for_more_than(before, python_server, channel)
        for event in client.generate("vllm_like", **LONG):
            if isinstance(event, Token):
                break
        wait_for_more_than(before + 1, python_server, channel)


@pytest.mark.server_may_die
def test_closing_early_cancels_for_coroutines_too(python_server, channel):
    async def main():
        before = cancelled(python_server, channel)
        async with AsyncClient(python_server.grpc_url, channel=channel, timeout=60) as client:
            async with client.generate("vllm_like", **LONG) as events:
                assert [type(await anext(events)), type(await anext(events))] == [Started, Token]
            await asyncio.to_thread(wait_for_more_than, before, python_server, channel)

            begun = asyncio.Event()

            async def read():
                async for event in client.generate("vllm_like", **LONG):
                    if isinstance(event, Token):
                        begun.set()

            task = asyncio.create_task(read())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(wait_for_more_than, before + 1, python_server, channel)

    asyncio.run(main())


@pytest.mark.server_may_die
def test_the_deadline_is_that_of_the_whole_text(generating_face):
    options = {"token_delay": 0.1}  # 20 s for the whole
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        generating_face.events(
            "vllm_like", "one " * 200, timeout=1, max_tokens=200, options=options
        )
    assert 0.99 < time.monotonic() - began < 15
    assert len(generating_face.seen) > 1


def test_many_texts_at_once(python_server, channel):
    async def one(client, number):
        prompt = f"of {number} text"
        return [event async for event in client.generate("vllm_like", prompt)][-1].text

    async def main():
        async with AsyncClient(python_server.grpc_url, channel=channel, timeout=60) as client:
            return await asyncio.gather(*(one(client, number) for number in range(50)))

    assert asyncio.run(main()) == [f"text {number} of" for number in range(50)]
