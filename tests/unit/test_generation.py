"""From a model's results to events, and the two faces that ask for them."""

from __future__ import annotations

import asyncio
import gc
import math
from contextlib import aclosing, closing
from types import SimpleNamespace

import numpy as np
import pytest

from triton_fast import (
    DeadlineExceeded,
    Finished,
    InferResult,
    InvalidArgument,
    InvalidOption,
    NotFound,
    Started,
    TextMapping,
    Token,
    Unavailable,
    Unimplemented,
    Usage,
    WireError,
)
from triton_fast.management.metadata import ModelConfig, ModelMetadata, TensorMetadata
from triton_fast.options import deadline
from triton_fast.protocol.messages import message_class
from triton_fast.text import text_request
from triton_fast.text.events import TextDecoder
from triton_fast.text.generation import Generation
from triton_fast.text.generation_async import AsyncGeneration
from triton_fast.text.text_request import TextRequest

PIECES = TextMapping(
    prompt="p", text="t", finish_reason="r", prompt_tokens="i", completion_tokens="o"
)
SO_FAR = TextMapping(prompt="p", text="t", cumulative=True, completion_tokens="o")


def result(text=None, reason=None, i=None, o=None, **others):
    arrays = dict(others)
    for name, value in (("t", text), ("r", reason)):
        if value is not None:
            arrays[name] = np.array([value], object)
    for name, value in (("i", i), ("o", o)):
        if value is not None:
            arrays[name] = np.array([value], np.uint32)
    return InferResult("llm", "3", "id7", {}, arrays)


def decoded(mapping, *texts):
    """Return the tokens and the end that texts amount to."""
    decoder = TextDecoder(mapping, "llm", "")
    events = [event for text in texts for event in decoder.take(result(text))] + decoder.finish()
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    tokens = events[1:-1]
    assert [token.index for token in tokens] == list(range(len(tokens)))
    return [token.text for token in tokens], events[-1].text


# Results to events ------------------------------------------------------------------------------


def test_events():
    decoder = TextDecoder(PIECES, "llm", "")
    assert decoder.take(result(b"Hel", b"None", 5, 1)) == [
        Started("id7", "llm", "3"),
        Token("Hel", 0),
    ]
    assert decoder.take(result(b"", b"None", 5, 0)) == []
    assert decoder.take(result(b"lo", b"length", 5, 2)) == [Token("lo", 1)]
    assert decoder.finish() == [Finished("length", Usage(5, 3), "Hello")]


def test_a_model_that_says_little():
    decoder = TextDecoder(PIECES, "llm", "mine")
    assert decoder.take(result(b"Hi")) == [Started("id7", "llm", "3"), Token("Hi", 0)]
    assert decoder.finish() == [Finished(None, Usage(None, None), "Hi")]


def test_a_model_that_says_nothing():
    decoder = TextDecoder(PIECES, "llm", "mine")
    assert decoder.finish() == [Started("mine", "llm", ""), Finished(None, Usage(), "")]
    decoder = TextDecoder(PIECES, "llm", "mine")
    assert decoder.take(result()) == [Started("id7", "llm", "3")]
    assert decoder.take(result(t=np.empty(0, object))) == []
    assert decoder.finish() == [Finished(None, Usage(), "")]


def test_the_reason_may_come_before_the_end():
    decoder = TextDecoder(PIECES, "llm", "")
    decoder.take(result(b"a", b"stop"))
    decoder.take(result(None, b"", o=1))
    decoder.take(result(None, b"None", o=1))
    assert decoder.finish() == [Finished("stop", Usage(None, 2), "a")]


def test_characters_are_never_cut():
    text = "Grüße, 世界 🌍!"
    encoded = text.encode()
    tokens, whole = decoded(PIECES, *(encoded[i : i + 1] for i in range(len(encoded))))
    assert tokens == list(text)
    assert whole == text
    tokens, whole = decoded(PIECES, encoded[:3], encoded[3:])
    assert tokens == ["Gr", "üße, 世界 🌍!"]


def test_bytes_that_are_no_text():
    assert decoded(PIECES, b"a\xff", b"b") == (["a\ufffd", "b"], "a\ufffdb")
    assert decoded(PIECES, b"a\xe4\xb8") == (["a", "\ufffd"], "a\ufffd")
    assert decoded(PIECES, b"a\xe4\xb8", b"b") == (["a", "\ufffdb"], "a\ufffdb")
    # So far: what was half a character is none of the new text's.
    assert decoded(SO_FAR, b"a\xc3", b"bxyz") == (["a", "yz"], "bxyz")
    assert decoded(PIECES, b"\xed\xa0\x80") == (["\ufffd\ufffd\ufffd"], "\ufffd\ufffd\ufffd")


def test_texts_so_far():
    assert decoded(SO_FAR, b"Hel", b"Hel", b"Hello", b"Hello!") == (["Hel", "lo", "!"], "Hello!")
    text = "Grüße 🌍".encode()
    tokens, whole = decoded(SO_FAR, *(text[:end] for end in range(1, len(text) + 1)))
    assert "".join(tokens) == whole == "Grüße 🌍"
    decoder = TextDecoder(SO_FAR, "llm", "")
    decoder.take(result(b"a", o=1))
    decoder.take(result(b"ab", o=2))
    assert decoder.finish()[-1].usage == Usage(None, 2)


def test_texts_so_far_with_half_a_character():
    # As tokenizers write it: U+FFFD, until the rest is there.
    texts = [text.encode() for text in ("a", "a\ufffd", "a\ufffd\ufffd", "a🌍", "a🌍b")]
    assert decoded(SO_FAR, *texts) == (["a", "🌍", "b"], "a🌍b")
    # If it never comes, that is what there is.
    assert decoded(SO_FAR, *texts[:2]) == (["a", "\ufffd"], "a\ufffd")


@pytest.mark.parametrize(
    ("texts", "tokens"),
    [
        (["do n", "do n't", "don't go"], ["do n", "'t", "go"]),
        (["abcdef", "abc", "abcdefg"], ["abcdef", "g"]),
        (["abc", "aü"], ["abc"]),
        (["abc", "aüüx"], ["abc", "üx"]),
        (["abc", "ab世x"], ["abc", "x"]),
        (["abc", "", "abcd"], ["abc", "d"]),
        (["ab", "xyz"], ["ab", "z"]),
    ],
)
def test_texts_so_far_that_change_in_hindsight(texts, tokens):
    assert decoded(SO_FAR, *(text.encode() for text in texts)) == (tokens, texts[-1])


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"t": np.array([b"a", b"b"], object)}, "output 't' of model 'llm' has 2 elements"),
        ({"t": np.zeros(1, np.float32)}, "output 't' of model 'llm' is float32, not BYTES"),
        ({"r": np.zeros(1, np.int32)}, "output 'r' of model 'llm' is int32, not BYTES"),
        ({"i": np.array([b"5"], object)}, "output 'i' of model 'llm' is object, and no number"),
        ({"o": np.array([np.nan])}, "output 'o' of model 'llm' is float64, and no number"),
        ({"o": np.zeros((1, 2), np.int32)}, "output 'o' of model 'llm' has 2 elements"),
    ],
)
def test_outputs_that_are_something_else(output, message):
    with pytest.raises(WireError, match=message):
        TextDecoder(PIECES, "llm", "").take(InferResult("llm", "1", "", {}, output))


def test_outputs_of_any_rank():
    arrays = {"t": np.array([[b"a"]], object), "i": np.array(5, np.int32), "o": np.array([[2]])}
    decoder = TextDecoder(PIECES, "llm", "")
    assert decoder.take(InferResult("llm", "1", "", {}, arrays))[1] == Token("a", 0)
    assert decoder.finish()[-1].usage == Usage(5, 2)


# The two faces ----------------------------------------------------------------------------------


def metadata(inputs, outputs):
    def those(names):
        return tuple(TensorMetadata(name, kind, (1,)) for name, kind in names.items())

    return ModelMetadata("llm", ("3",), "", those(inputs), those(outputs))


PLAIN = metadata({"prompt": "BYTES", "seed": "INT32"}, {"text": "BYTES"})


def config(*, decoupled, required=("prompt",)):
    message = message_class("ModelConfig")(
        name="llm",
        input=[{"name": name} for name in required],
        model_transaction_policy={"decoupled": decoupled},
    )
    return ModelConfig.from_message(message)


def answer(text):
    return InferResult("llm", "3", "id7", {}, {"text": np.array([text], object)})


class Stream:
    """What `Client.stream` returns: results, and perhaps an error after them."""

    def __init__(self, results, error):
        self.results = iter(results)
        self.error = error
        self.closed = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed += 1

    def __iter__(self):
        return self

    def __next__(self):
        for one in self.results:
            return one
        if self.error is not None:
            raise self.error
        raise StopIteration


class AsyncStream:
    def __init__(self, stream):
        self.stream = stream

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        self.stream.closed += 1

    def __aiter__(self):
        return self

    async def __anext__(self):
        await asyncio.sleep(0)
        try:
            return next(self.stream)
        except StopIteration:
            raise StopAsyncIteration from None


class Fake:
    """A client that knows one model, and notes what it is asked."""

    def __init__(self, metadata=PLAIN, config=None, results=(), error=None):
        self.metadata = metadata
        self.config = config or Unimplemented("no such call")
        self.results = results
        self.error = error
        self.calls = []
        self.streams = []

    def told(self, what, arguments):
        self.calls.append((what, arguments))

    def model_metadata(self, name, **arguments):
        self.told("model_metadata", {"name": name, **arguments})
        return self.metadata

    def model_config(self, name, **arguments):
        self.told("model_config", {"name": name, **arguments})
        if isinstance(self.config, Exception):
            raise self.config
        return self.config

    def infer(self, **arguments):
        self.told("infer", arguments)
        if self.error is not None:
            raise self.error
        return self.results[0]

    def stream(self, **arguments):
        self.told("stream", arguments)
        stream = Stream(self.results, self.error)
        self.streams.append(stream)
        return stream

    @property
    def names(self):
        return [what for what, _ in self.calls]


class AsyncFake(Fake):
    async def model_metadata(self, name, **arguments):
        await asyncio.sleep(0)
        return super().model_metadata(name, **arguments)

    async def model_config(self, name, **arguments):
        await asyncio.sleep(0)
        return super().model_config(name, **arguments)

    async def infer(self, **arguments):
        await asyncio.sleep(0)
        return super().infer(**arguments)

    def stream(self, **arguments):
        return AsyncStream(super().stream(**arguments))


PLAINLY = {
    "mapping": None,
    "model_version": "",
    "request_id": "",
    "parameters": None,
    "priority": 0,
    "queue_timeout": None,
    "timeout": None,
    "headers": None,
}


class Face:
    """Either face, as if it were blocking."""

    def __init__(self, kind):
        self.asynchronous = kind == "coroutines"
        self.known = {}

    def client(self, *args, **kwargs):
        return (AsyncFake if self.asynchronous else Fake)(*args, **kwargs)

    def events(self, client, most=None, **changes):
        """Return what comes, up to ``most`` events, after which the iterator is closed."""
        arguments = {
            "model": "llm",
            "prompt": "Hi",
            **PLAINLY,
            **changes,
        }
        request = TextRequest(**arguments)
        self.seen = []
        if self.asynchronous:
            asyncio.run(self._gather(AsyncGeneration(client, self.known, request), most))
        else:
            with closing(Generation(client, self.known, request)) as events:
                for event in events:
                    self.seen.append(event)
                    if len(self.seen) == most:
                        break
        return self.seen

    async def _gather(self, events, most):
        async with aclosing(events):
            async for event in events:
                self.seen.append(event)
                if len(self.seen) == most:
                    break


@pytest.fixture(params=["threads", "coroutines"])
def fake_face(request):
    return Face(request.param)


STARTED = Started("id7", "llm", "3")


def test_a_model_that_answers_once(fake_face):
    client = fake_face.client(config=config(decoupled=False), results=[answer(b"Hello")])
    assert fake_face.events(
        client,
        seed=3,
        model_version="3",
        request_id="id7",
        headers=(("a", "b"),),
        priority=2,
    ) == [STARTED, Token("Hello", 0), Finished(None, Usage(), "Hello")]
    assert client.names == ["model_metadata", "model_config", "infer"]
    asked = {"name": "llm", "version": "3", "timeout": None, "headers": (("a", "b"),)}
    assert client.calls[0][1] == client.calls[1][1] == asked
    sent = client.calls[2][1]
    assert {name: array.tolist() for name, array in sent.pop("inputs").items()} == {
        "prompt": [b"Hi"],
        "seed": [3],
    }
    assert sent == {
        "model": "llm",
        "outputs": ["text"],
        "model_version": "3",
        "request_id": "id7",
        "timeout": None,
        "headers": (("a", "b"),),
        "parameters": None,
        "priority": 2,
        "queue_timeout": None,
    }


def test_a_decoupled_model(fake_face):
    results = [answer(b"Hel"), answer(b""), answer(b"lo")]
    client = fake_face.client(config=config(decoupled=True), results=results)
    tokens = [Token("Hel", 0), Token("lo", 1)]
    assert fake_face.events(client) == [STARTED, *tokens, Finished(None, Usage(), "Hello")]
    assert client.names == ["model_metadata", "model_config", "stream"]
    assert client.streams[0].closed == 1


def test_a_stream_without_answers(fake_face):
    client = fake_face.client(config=config(decoupled=True))
    assert fake_face.events(client, request_id="mine") == [
        Started("mine", "llm", ""),
        Finished(None, Usage(), ""),
    ]


def test_a_server_that_is_no_triton(fake_face):
    client = fake_face.client(results=[answer(b"Hello")])
    assert fake_face.events(client)[1] == Token("Hello", 0)
    assert client.names[-1] == "infer"


def test_a_server_that_does_not_say_what_a_model_takes(fake_face):
    client = fake_face.client(metadata({}, {}), results=[answer(b"Hello")])
    with pytest.raises(InvalidOption, match="pass mapping"):
        fake_face.events(client)
    mapping = TextMapping(prompt="q", text="text")
    assert fake_face.events(client, mapping=mapping)[1] == Token("Hello", 0)
    assert list(client.calls[-1][1]["inputs"]) == ["q"]
    assert client.calls[-1][1]["outputs"] is None


def test_a_model_is_asked_about_once(fake_face):
    client = fake_face.client(config=config(decoupled=False), results=[answer(b"a")])
    for _ in range(3):
        fake_face.events(client)
    assert client.names == ["model_metadata", "model_config", "infer", "infer", "infer"]
    fake_face.events(client, model_version="3")  # which may be another one
    assert client.names[5:] == ["model_metadata", "model_config", "infer"]


def test_a_model_that_was_replaced(fake_face):
    client = fake_face.client(config=config(decoupled=False), results=[answer(b"a")])
    fake_face.events(client)
    # By one that takes what the other did not: the server is asked again before it is refused.
    client.metadata = metadata({"prompt": "BYTES", "top_k": "INT32"}, {"text": "BYTES"})
    assert fake_face.events(client, top_k=1)[1] == Token("a", 0)
    assert client.names[3:] == ["model_metadata", "model_config", "infer"]
    # By one that is decoupled, which the server says.
    client.config = config(decoupled=True)
    client.error = Unimplemented("ModelInfer RPC doesn't support models with decoupled …")
    with pytest.raises(Unimplemented, match="ModelInfer"):
        fake_face.events(client)
    client.error = None
    assert fake_face.events(client)[1] == Token("a", 0)
    assert client.names[-1] == "stream"


@pytest.mark.parametrize("kind", [InvalidArgument, NotFound])
def test_refusals_are_raised_and_what_is_known_forgotten(fake_face, kind):
    client = fake_face.client(config=config(decoupled=True), error=kind("no"))
    with pytest.raises(kind):
        fake_face.events(client)
    assert fake_face.known == {}
    assert client.streams[0].closed == 1


def test_options_that_the_model_does_not_take(fake_face):
    client = fake_face.client(config=config(decoupled=False))
    with pytest.raises(InvalidOption, match="model 'llm' has no input for max_tokens"):
        fake_face.events(client, max_tokens=1)
    assert client.names == ["model_metadata", "model_config"]


def test_an_error_amid_the_text(fake_face):
    client = fake_face.client(
        config=config(decoupled=True), results=[answer(b"Hel")], error=Unavailable("gone")
    )
    with pytest.raises(Unavailable, match="gone"):
        fake_face.events(client)
    assert fake_face.seen == [STARTED, Token("Hel", 0)]
    assert client.streams[0].closed == 1
    assert ("llm", "") in fake_face.known


@pytest.mark.parametrize("most", [1, 2])
def test_closing_early_cancels(fake_face, most):
    client = fake_face.client(config=config(decoupled=True), results=[answer(b"x")] * 5)
    assert len(fake_face.events(client, most)) == most
    assert client.streams[0].closed == 1


def test_options_that_are_parameters(fake_face):
    client = fake_face.client(config=config(decoupled=False), results=[answer(b"x")])
    mapping = TextMapping(prompt="prompt", text="text", option_parameters=True)
    fake_face.events(client, mapping=mapping, seed=1, options={"n": 2}, parameters={"a": "b"})
    assert client.calls[-1][1]["parameters"] == {"a": "b", "n": 2}
    assert sorted(client.calls[-1][1]["inputs"]) == ["prompt", "seed"]
    with pytest.raises(InvalidOption, match="n is given twice, as an option and a parameter"):
        fake_face.events(client, mapping=mapping, options={"n": 2}, parameters={"n": 2})


def test_one_deadline_for_all_calls(fake_face, monkeypatch):
    """By a clock on which each call takes two seconds, and nothing else any time."""
    clock = SimpleNamespace(now=10**15)
    clock.monotonic_ns = lambda: clock.now
    for module in (deadline, text_request):
        monkeypatch.setattr(module, "time", clock)
    client = fake_face.client(config=config(decoupled=True), results=[answer(b"x")])
    calls = client.calls

    def told(what, arguments):
        calls.append((what, arguments))
        clock.now += 2 * 10**9

    client.told = told
    fake_face.events(client, timeout=5)
    assert [arguments["timeout"] for _, arguments in calls] == [5.0, 3.0, 1.0]
    fake_face.events(client, timeout=None)  # which leaves it to the client, for each call
    assert calls[-1][1]["timeout"] is None
    fake_face.events(client, timeout=math.inf)
    assert calls[-1][1]["timeout"] == math.inf
    # The first may take all of it.
    fake_face.known.clear()
    calls.clear()
    fake_face.events(client, timeout=1)
    assert [arguments["timeout"] for _, arguments in calls] == [1.0, 0.0, 0.0]


def test_many_models_are_not_kept(fake_face):
    client = fake_face.client(config=config(decoupled=False), results=[answer(b"a")])
    for number in range(300):
        fake_face.known[str(number), ""] = None
    fake_face.events(client)
    assert len(fake_face.known) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": b"Hi"}, "the prompt must be a str, got bytes"),
        ({"prompt": ["Hi"]}, "the prompt must be a str, got list"),
        ({"prompt": "\ud800"}, "UTF-8"),
        ({"timeout": -1}, "timeout"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"mapping": "vllm"}, "mapping must be a TextMapping, got 'vllm'"),
    ],
)
def test_requests_that_make_no_sense(fake_face, changes, message):
    client = fake_face.client()
    with pytest.raises(InvalidOption, match=message):
        fake_face.events(client, **changes)
    assert client.calls == []


def request():
    return TextRequest("llm", "Hi", **PLAINLY)


def test_dropping_an_iterator_cancels():
    client = Fake(config=config(decoupled=True), results=[answer(b"x")] * 5)
    for _ in Generation(client, {}, request()):
        break
    gc.collect()
    assert client.streams[0].closed == 1


def test_context_managers():
    client = Fake(config=config(decoupled=True), results=[answer(b"x")] * 5)
    with Generation(client, {}, request()) as events:
        assert next(events) == STARTED
    assert client.streams[0].closed == 1
    assert list(events) == []
    events.close()
    with Generation(client, {}, request()):
        pass
    assert len(client.streams) == 1  # nothing was asked

    async def main():
        client = AsyncFake(config=config(decoupled=True), results=[answer(b"x")] * 5)
        async with AsyncGeneration(client, {}, request()) as events:
            assert await anext(events) == STARTED
        assert client.streams[0].closed == 1
        assert [event async for event in events] == []

    asyncio.run(main())


def test_cancelling_a_task_closes_its_stream():
    async def main():
        waiting = asyncio.Event()

        class Waiting(AsyncStream):
            async def __anext__(self):
                waiting.set()
                await asyncio.Event().wait()

        class Endless(AsyncFake):
            def stream(self, **arguments):
                return Waiting(Fake.stream(self, **arguments))

        client = Endless(config=config(decoupled=True))
        events = AsyncGeneration(client, {}, request())
        task = asyncio.ensure_future(anext(events))
        await waiting.wait()
        assert client.streams[0].closed == 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.streams[0].closed == 1

    asyncio.run(main())


def test_deadlines_are_typed(fake_face):
    client = fake_face.client(config=config(decoupled=True), error=DeadlineExceeded("late"))
    with pytest.raises(TimeoutError):
        fake_face.events(client, timeout=1)
