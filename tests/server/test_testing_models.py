"""The further test models of `triton_fast.testing` with tritonclient as the client.

What is shown: streams, sequences, cancellation, classification, queues and ensembles are as the
models' description says, so that our own client can be tested on them.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc
from served_models import HASTY, PATIENT
from support.model_calls import repeat
from support.official_client import infer, is_final, request_id, stream, tensors
from support.server_state import of_threads, waiting
from support.waiting import until
from tritonclient.utils import InferenceServerException

from triton_fast.testing import (
    FURTHER_TEST_MODELS,
    PYTHON_TEST_MODELS,
    TEST_MODELS,
    write_test_models,
)

pytestmark = pytest.mark.server


@pytest.fixture
def official_client(server):
    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        yield client


def counts(client, *, reset=False):
    """Return how many requests were cancelled, and how many a model has."""
    result = infer(client, "cancellations", {"RESET": np.array([reset])})
    return result.as_numpy("CANCELLED").item(), result.as_numpy("RUNNING").item()


def values(answers, output="OUT"):
    """Return the elements of the answers that have any, each of which must have one."""
    arrays = [answer.as_numpy(output) for answer in answers]
    return [array.item() for array in arrays if array is not None]


# Which models there are


def test_the_groups_share_no_model(tmp_path):
    groups = [TEST_MODELS, FURTHER_TEST_MODELS, PYTHON_TEST_MODELS]
    names = [name for group in groups for name in group]
    assert len(set(names)) == len(names)
    write_test_models(tmp_path, names)
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_the_further_models_are_served_only_when_named(triton_server, official_client):
    assert all(official_client.is_model_ready(name) for name in FURTHER_TEST_MODELS)
    assert not [name for name in FURTHER_TEST_MODELS if f"'{name}'" in triton_server.log()]


def test_an_ensemble_brings_its_parts(tmp_path):
    write_test_models(tmp_path, ["ensemble_add_sub"])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"ensemble_add_sub", "add_sub", "identity_batched"}


# Many answers


def test_repeat_answers_each_element_and_then_ends(server):
    start = time.monotonic()
    with stream(server.grpc_url) as one:
        one.send("repeat_int32", repeat([7, -8, 9], [20, 0, 50]))
        answers = one.answers()
    assert time.monotonic() - start >= 0.07
    assert values(answers) == [7, -8, 9]
    assert values(answers, "IDX") == [0, 1, 2]
    assert [is_final(answer) for answer in answers] == [False, False, False, True]
    assert len(answers[-1].get_response().outputs) == 0


def test_repeat_of_nothing_only_ends(server):
    with stream(server.grpc_url) as one:
        one.send("repeat_int32", repeat([]))
        (answer,) = one.answers()
    assert len(answer.get_response().outputs) == 0


def test_repeat_makes_only_what_is_asked_for(server):
    wanted = [tritonclient.grpc.InferRequestedOutput("IDX")]
    with stream(server.grpc_url) as one:
        one.send("repeat_int32", repeat([5]), outputs=wanted)
        answers = one.answers()
    assert values(answers, "IDX") == [0]
    assert values(answers, "OUT") == []


def test_requests_on_a_stream_are_answered_at_the_same_time(server):
    count, each = 200, 5
    start = time.monotonic()
    with stream(server.grpc_url) as one:
        for number in range(count):
            elements = range(number * each, (number + 1) * each)
            one.send("repeat_int32", repeat(list(elements), [40] * each), str(number))
        found = {str(number): [] for number in range(count)}
        ends = 0
        while ends < count:
            answer = one.receive()
            found[request_id(answer)].append(answer)
            ends += is_final(answer)
    # One after the other they would take 40 s.
    assert 0.2 <= time.monotonic() - start < 30
    for number, answers in found.items():
        first = int(number) * each
        assert values(answers) == list(range(first, first + each))
        assert is_final(answers[-1])


def test_wait_holds_the_request_and_not_the_answers(server, official_client):
    def finished():
        (model,) = official_client.get_inference_statistics("repeat_int32").model_stats
        return model.inference_count

    before = finished()
    start = time.monotonic()
    with stream(server.grpc_url) as one:
        one.send("repeat_int32", repeat([1], wait=1500))
        one.answers()
        assert finished() == before
    until(lambda: finished() == before + 1)
    assert time.monotonic() - start >= 1.5


@pytest.mark.parametrize(
    ("model", "inputs", "complaint"),
    [
        ("repeat_int32", repeat([1, 2], [0]), "IN has 2 elements and DELAY has 1"),
        ("repeat_int32", repeat([1], [3_600_001]), "at most 3600000 ms"),
        ("repeat_int32", repeat([1], wait=3_600_001), "at most 3600000 ms"),
        ("square_int32", {"IN": np.int32([-1])}, "must not be negative"),
    ],
)
def test_bad_requests_end_alone(server, official_client, model, inputs, complaint):
    with stream(server.grpc_url) as one:
        one.send(model, inputs)
        with pytest.raises(InferenceServerException, match=complaint):
            one.receive()
        one.send("square_int32", {"IN": np.int32([1])})
        assert values(one.answers()) == [1]
    until(lambda: counts(official_client)[1] == 0)


@pytest.mark.parametrize("count", [1, 2, 64, 65, 3000])
def test_the_last_answer_of_square_is_the_final_one(server, count):
    with stream(server.grpc_url) as one:
        one.send("square_int32", {"IN": np.int32([count])})
        answers = one.answers()
    assert values(answers) == [count] * count
    assert len(answers) == count


def test_square_of_zero_only_ends(server):
    with stream(server.grpc_url) as one:
        one.send("square_int32", {"IN": np.int32([0])})
        (answer,) = one.answers()
    assert len(answer.get_response().outputs) == 0


def test_squares_at_the_same_time(server):
    with stream(server.grpc_url) as one:
        for count in (3000, 2, 500):
            one.send("square_int32", {"IN": np.int32([count])}, str(count))
        answers = [one.receive() for _ in range(3502)]
    for count in (3000, 2, 500):
        own = [answer for answer in answers if request_id(answer) == str(count)]
        assert values(own) == [count] * count
        assert [is_final(answer) for answer in own] == [False] * (count - 1) + [True]


# Cancellation


@pytest.mark.server_may_die
@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        ("repeat_int32", repeat([1, 2], [0, 60_000])),
        ("repeat_int32", repeat(range(2000), [5] * 2000)),
        ("repeat_int32", repeat([1, 2], [0, 60_000], wait=60_000)),
        ("square_int32", {"IN": np.int32([2**31 - 1])}),
    ],
    ids=["long delay", "many answers", "held request", "square"],
)
def test_streams_notice_that_they_are_cancelled(server, official_client, model, inputs):
    counts(official_client, reset=True)
    with stream(server.grpc_url) as one:
        for number in range(3):
            one.send(model, inputs, str(number))
        for _ in range(3):  # whichever they are to
            one.receive()
        until(lambda: counts(official_client) == (0, 3))
        one.cancel()
    until(lambda: counts(official_client) == (3, 0))


@pytest.mark.server_may_die
def test_slow_counts_cancelled_calls(official_client):
    counts(official_client, reset=True)
    inputs = {"INPUT0": np.float32([1]), "DELAY": np.float32([300])}
    # On every instance; they are free again when the calls are cancelled.
    calls = [send(official_client, "slow", inputs) for _ in range(8)]
    until(lambda: counts(official_client) == (0, 8))
    for call in calls:
        call.cancel()
    until(lambda: counts(official_client) == (8, 0))
    with pytest.raises(InferenceServerException, match="Deadline"):
        infer(official_client, "slow", inputs, client_timeout=1)
    until(lambda: counts(official_client) == (9, 0))
    infer(official_client, "slow", {**inputs, "DELAY": np.float32([0])})
    assert counts(official_client, reset=True) == (9, 0)
    assert counts(official_client) == (0, 0)


def test_a_model_ends_its_streams_and_its_thread_before_it_is_unloaded(
    triton_server_factory, tmp_path
):
    write_test_models(tmp_path, ["repeat_int32"])
    server = triton_server_factory(
        tmp_path, extra_args=["--model-control-mode=explicit", "--load-model=repeat_int32"]
    )

    def threads():
        return of_threads(server, "comm").count("triton_fast\n")

    with tritonclient.grpc.InferenceServerClient(server.grpc_url) as client:
        assert threads() == 1
        with stream(server.grpc_url) as one:
            one.send("repeat_int32", repeat([1, 2], [0, 1000]))
            one.receive()
            client.unload_model("repeat_int32")
            assert threads() == 1
            assert values(one.answers()) == [2]
        until(lambda: threads() == 0)
        client.load_model("repeat_int32")
        assert threads() == 1
        client.unload_model("repeat_int32")
        until(lambda: threads() == 0)
    server.kill()


# Sequences

NUMBERED = ["accumulate_direct", "accumulate_oldest"]
ACCUMULATE = [*((name, 100) for name in NUMBERED), ("accumulate_string", "a long name, not a ")]


def add(client, model, number, sequence_id, *, start=False, end=False):
    """Add a number to a sequence; return the sum, and how many sequences have ended."""
    result = infer(
        client,
        model,
        {"INPUT": np.int32([number])},
        sequence_id=sequence_id,
        sequence_start=start,
        sequence_end=end,
    )
    return result.as_numpy("OUTPUT").item(), result.as_numpy("ENDED").item()


@pytest.mark.parametrize(("model", "base"), ACCUMULATE)
def test_sequences_are_summed_apart(official_client, model, base):
    ids = [base + (str(number) if isinstance(base, str) else number) for number in range(1, 11)]
    _, before = add(official_client, model, 0, ids[0], start=True, end=True)
    for number, one in enumerate(ids):
        assert add(official_client, model, number, one, start=True) == (number, before)
    for number, one in enumerate(ids):
        assert add(official_client, model, 10, one) == (number + 10, before)
    for number, one in enumerate(ids):
        assert add(official_client, model, -20, one, end=True) == (number - 10, before + number + 1)
    # An id that comes again is a sequence that begins again, also before the first has ended.
    assert add(official_client, model, 5, ids[3], start=True) == (5, before + 10)
    assert add(official_client, model, 6, ids[3], start=True) == (6, before + 10)
    assert add(official_client, model, 1, ids[3], end=True) == (7, before + 11)


@pytest.mark.parametrize("model", NUMBERED)
def test_a_sequence_on_a_stream(server, model):
    with stream(server.grpc_url) as one:
        for number in range(20):
            one.send(
                model,
                {"INPUT": np.int32([number])},
                str(number),
                sequence_id=7,
                sequence_start=number == 0,
                sequence_end=number == 19,
            )
        answers = [one.receive() for _ in range(20)]
    assert [request_id(answer) for answer in answers] == [str(number) for number in range(20)]
    assert values(answers, "OUTPUT") == np.cumsum(range(20)).tolist()


@pytest.mark.parametrize(("model", "base"), ACCUMULATE)
def test_a_sequence_must_start(official_client, model, base):
    with pytest.raises(InferenceServerException, match="must specify the START flag") as caught:
        add(official_client, model, 1, base)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_idle_sequences_are_ended(sequence_server):
    """After 3 s, as `sequence_models` sees in their configuration; here, after less."""
    with tritonclient.grpc.InferenceServerClient(sequence_server.grpc_url) as client:
        add(client, HASTY, 1, 200, start=True)
        for seconds in (1.5, 3, 6):  # the server looks now and then
            time.sleep(seconds)
            try:
                add(client, HASTY, 1, 200)
            except InferenceServerException as error:
                assert "must specify the START flag" in str(error)  # noqa: PT017 - or none yet
                return
    pytest.fail("it is still there")


def test_the_direct_strategy_has_place_for_sixteen(sequence_server):
    with tritonclient.grpc.InferenceServerClient(sequence_server.grpc_url) as client:
        for number in range(16):
            add(client, PATIENT, number, 300 + number, start=True)
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(add, client, PATIENT, 1, 400, start=True, end=True)
            until(lambda: waiting(sequence_server, PATIENT) == 1)
            assert not late.done()
            add(client, PATIENT, 0, 300, end=True)
            assert late.result(timeout=30)[0] == 1
        for number in range(1, 16):
            assert add(client, PATIENT, 1, 300 + number, end=True)[0] == number + 1


# Queues


def delayed(value, seconds, width=1):
    return {
        "INPUT0": np.full((1, width), value, np.float32),
        "DELAY": np.full((1, 1), seconds, np.float32),
    }


def test_batched_identity(official_client):
    sent = np.arange(24, dtype=np.float32).reshape(8, 3)
    result = infer(official_client, "batched_identity_fp32", {"INPUT0": sent})
    assert np.array_equal(result.as_numpy("OUTPUT0"), sent)


def send(client, model, inputs, done=lambda **_: None, **options):
    """Send a request, and have a function called with what comes of it, in the order of that."""
    return client.async_infer(model, tensors(inputs), done, **options)


def test_the_higher_priority_comes_first(server, official_client):
    order = []

    def call(priority, number):
        def done(*, result, error):
            assert result is None or error is None
            order.append(error or (priority, number))

        send(
            official_client, "batched_identity_fp32", delayed(number, 0.03), done, priority=priority
        )
        # The next one comes to the server when this one waits there.
        until(lambda: waiting(server, "batched_identity_fp32") == number)

    send(official_client, "batched_identity_fp32", delayed(0, 1, width=98))
    until(lambda: counts(official_client)[1] == 1)
    # Those that wait become one batch, whose requests are answered one after the other. 0 is the
    # model's own choice, 2.
    for number, priority in enumerate((2, 0, 2, 1, 1, 1), start=1):
        call(priority, number)
    assert not order
    until(lambda: len(order) == 6)
    assert order == [(1, 4), (1, 5), (1, 6), (2, 1), (0, 2), (2, 3)]


def test_batched_identity_gives_up_what_waits_too_long(official_client):
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(infer, official_client, "batched_identity_fp32", delayed(0, 1, 1))
        until(lambda: counts(official_client)[1] == 1)
        with pytest.raises(InferenceServerException, match="Request timeout expired") as caught:
            infer(official_client, "batched_identity_fp32", delayed(1, 0, 2), timeout=20_000)
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        ahead.result()


def test_small_queue_refuses_what_it_has_no_place_for(official_client):
    one = {"INPUT0": np.float32([[4]])}
    start = time.monotonic()
    assert infer(official_client, "small_queue_fp32", one).as_numpy("OUTPUT0").tolist() == [[4]]
    assert time.monotonic() - start >= 0.2
    with ThreadPoolExecutor(8) as pool:
        ahead = pool.submit(infer, official_client, "small_queue_fp32", delayed(4, 1))
        until(lambda: counts(official_client)[1] == 1)
        calls = [
            pool.submit(infer, official_client, "small_queue_fp32", delayed(4, 0)) for _ in range(7)
        ]
        errors = [call.exception() for call in calls]
        ahead.result()
    refused = [error for error in errors if error is not None]
    assert len(refused) == 5, "two have place in the queue"
    assert all("Exceeds maximum queue size" in str(error) for error in refused)
    assert {error.status() for error in refused} == {"StatusCode.UNAVAILABLE"}


# Classification and ensembles


def classes(client, model, rows, count):
    wanted = [tritonclient.grpc.InferRequestedOutput("OUTPUT0", class_count=count)]
    tensor = tritonclient.grpc.InferInput("INPUT0", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return client.infer(model, [tensor], outputs=wanted).as_numpy("OUTPUT0").tolist()


def test_classes_have_labels(official_client):
    rows = np.float32([[0.5, 3, 2, 0], [-1, -2, -3, 8]])
    assert classes(official_client, "classify_fp32", rows, 2) == [
        [b"3.000000:1:dog", b"2.000000:2:owl"],
        [b"8.000000:3:fox", b"-1.000000:0:cat"],
    ]
    # As many as there are; those that have no label come without one.
    rows = np.float32([[5, 4, 3, 2, 1]])
    (found,) = classes(official_client, "classify_fp32", rows, 9)
    assert found[:2] == [b"5.000000:0:cat", b"4.000000:1:dog"]
    assert found[4] == b"1.000000:4"
    assert len(found) == 5


def test_classes_without_labels(official_client):
    rows = np.float32([[1, 3, 2]])
    assert classes(official_client, "classify_unlabelled_fp32", rows, 1) == [[b"3.000000:1"]]


def test_ensemble(official_client):
    def counted():
        (model,) = official_client.get_inference_statistics("identity_batched").model_stats
        return model.inference_count

    before = counted()
    left, right = np.random.default_rng(3).random((2, 8, 16), np.float32)
    result = infer(official_client, "ensemble_add_sub", {"INPUT0": left, "INPUT1": right})
    assert np.array_equal(result.as_numpy("OUTPUT0"), left + right)
    assert np.array_equal(result.as_numpy("OUTPUT1"), left - right)
    until(lambda: counted() >= before + 8)  # Triton counts when it has answered


# Python models


@pytest.fixture
def python_client(python_server):
    with tritonclient.grpc.InferenceServerClient(python_server.grpc_url) as client:
        yield client


def text(*items):
    return np.array([item.encode() for item in items], np.object_)


def prompt_text(prompt, **parameters):
    return "prompt_text_stream", {"prompt": text(prompt)}, parameters


def vllm(prompt, *, stream=True, exclude=None, wanted=(), parameters=None, **sampling):
    inputs = {"text_input": text(prompt), "stream": np.array([stream])}
    if sampling:
        inputs["sampling_parameters"] = text(json.dumps(sampling))
    if exclude is not None:
        inputs["exclude_input_in_output"] = np.array([exclude])
    inputs |= {f"return_{name}": np.array([True]) for name in wanted}
    return "vllm_like", inputs, parameters


def tensorrtllm(prompt, *, max_tokens=100, stream=True, stop=(), bad=(), **others):
    parameters = {name: others.pop(name) for name in ("token_delay",) if name in others}
    inputs = {
        "text_input": text(prompt)[None],
        "max_tokens": np.int32([[max_tokens]]),
        "stream": np.array([[stream]]),
        **others,
    }
    if stop:
        inputs["stop_words"] = text(*stop)[None]
    if bad:
        inputs["bad_words"] = text(*bad)[None]
    return "tensorrtllm_like", inputs, parameters


def texts(answers, output="text_output"):
    return [item.decode() for item in values(answers, output)]


def output_of(request):
    return "text" if request[0].startswith("prompt") else "text_output"


def ask(server, request):
    """Send a request (model, inputs, parameters) on a stream of its own; return its answers."""
    model, inputs, parameters = request
    with stream(server.grpc_url) as one:
        one.send(model, inputs, parameters=parameters)
        return one.answers()


GENERATORS = {
    "prompt_text_stream": prompt_text,
    "vllm_like": vllm,
    "tensorrtllm_like": tensorrtllm,
}
every_generator = pytest.mark.parametrize("make", GENERATORS.values(), ids=GENERATORS)


@every_generator
def test_text_is_generated_word_by_word(python_server, make):
    request = make("Grüße from  東京\nand Zürich")
    answers = ask(python_server, request)
    tokens = [token for token in texts(answers, output_of(request)) if token]
    assert tokens == ["Zürich", " and", " 東京", " from", " Grüße"]
    # The plain one and TensorRT-LLM's end by themselves.
    assert len(answers[-1].get_response().outputs) == (1 if make is vllm else 0)


@every_generator
def test_no_text_for_no_words(python_server, make):
    request = make(" ")
    answers = ask(python_server, request)
    assert len(answers) == 1
    assert texts(answers, output_of(request)) == ([""] if make is vllm else [])


@every_generator
def test_a_generation_fails_in_the_middle(python_server, make):
    model, inputs, _ = make("!error b c d")
    with stream(python_server.grpc_url) as one:
        one.send(model, inputs)
        assert not is_final(one.receive())
        assert not is_final(one.receive())
        with pytest.raises(InferenceServerException, match="failed after 2 tokens"):
            one.receive()
        # The stream is as good as before.
        one.send(*make("a")[:2])
        assert texts(one.answers()[:1], output_of((model,))) == ["a"]


@pytest.mark.server_may_die
@every_generator
def test_generations_notice_that_they_are_cancelled(python_server, make):
    def seen():
        request = make("!cancelled")
        (count, *_) = texts(ask(python_server, request), output_of(request))
        return int(count)

    before = seen()
    delay = {"parameters": {"token_delay": 0.05}} if make is vllm else {"token_delay": 0.05}
    model, inputs, parameters = make("a b c d e f " * 100, **delay)
    with stream(python_server.grpc_url) as one:
        for number in range(3):
            one.send(model, inputs, str(number), parameters=parameters)
        one.receive()
        assert seen() == before
        one.cancel()
    until(lambda: seen() == before + 3)


def test_generations_run_side_by_side(python_server):
    model, inputs, parameters = prompt_text("a b c", token_delay=0.1)
    start = time.monotonic()
    with stream(python_server.grpc_url) as one:
        for number in range(32):
            one.send(model, inputs, str(number), parameters=parameters)
        for _ in range(32):
            one.answers()
    # One after the other they would take 9.6 s.
    assert 0.3 <= time.monotonic() - start < 8


def test_prompt_text_answers_once(python_client):
    def generate(prompt, **parameters):
        result = infer(
            python_client, "prompt_text", {"prompt": text(prompt)}, parameters=parameters
        )
        return result.as_numpy("text").tolist()

    assert generate("one two three") == [b"three two one"]
    assert generate("one two three", max_tokens=2, temperature=0.1, seed=1) == [b"THREE two"]
    assert generate("one two three", stop="one", temperature=1.0) == [b"three TWO"]
    assert generate("") == [b""]
    with pytest.raises(InferenceServerException, match="failed after 1 tokens"):
        generate("!error b c")
    with pytest.raises(InferenceServerException, match="invalid literal"):
        generate("a", max_tokens="many")


@pytest.mark.server_may_die
def test_prompt_text_notices_that_it_is_cancelled(python_client):
    def seen():
        result = infer(python_client, "prompt_text", {"prompt": text("!cancelled")})
        return int(result.as_numpy("text").item())

    before = seen()
    with pytest.raises(InferenceServerException, match="Deadline"):
        infer(
            python_client,
            "prompt_text",
            {"prompt": text("a")},
            parameters={"token_delay": 600.0},
            client_timeout=1,
        )
    until(lambda: seen() == before + 1)


def test_vllm_tells_the_reason_and_the_numbers_when_asked(python_server):
    numbers = ["finish_reason", "num_input_tokens", "num_output_tokens"]
    others = ["cumulative_logprob", "logprobs"]
    request = vllm("a b c d", wanted=[*numbers, *others], max_tokens=3)
    answers = ask(python_server, request)
    assert texts(answers) == ["d", " c", " b"]
    assert texts(answers, "finish_reason") == ["None", "None", "length"]
    assert values(answers, "num_output_tokens") == [1, 1, 1]
    assert values(answers, "num_input_tokens") == [4, 4, 4]
    assert answers[0].as_numpy("num_input_tokens").shape == ()
    assert values(answers, "cumulative_logprob") == [-0.5, -1.0, -1.5]
    assert [is_final(answer) for answer in answers] == [False, False, True]
    # Ended by a stop word, it takes another answer to say so.
    answers = ask(python_server, vllm("a b c d", wanted=["finish_reason"], stop=["b", "x"]))
    assert texts(answers) == ["d", " c", ""]
    assert texts(answers, "finish_reason") == ["None", "None", "stop"]
    assert answers[0].as_numpy("num_input_tokens") is None
    answers = ask(python_server, vllm("a b", wanted=["finish_reason"], max_tokens="2"))
    assert texts(answers, "finish_reason") == ["None", "stop"]


def test_vllm_in_one_answer(python_server):
    (answer,) = ask(python_server, vllm("a b c", stream=False, wanted=["num_output_tokens"]))
    assert texts([answer]) == ["a b cc b a"]
    assert values([answer], "num_output_tokens") == [3]
    (answer,) = ask(python_server, vllm("a b c", stream=False, exclude=True))
    assert texts([answer]) == ["c b a"]
    with pytest.raises(InferenceServerException, match="not allowed"):
        ask(python_server, vllm("a b c", exclude=False))
    # 16 tokens is what vLLM makes without a limit; parameters may be the request's, and strings.
    assert len(ask(python_server, vllm("a " * 99))) == 16
    parameters = {"max_tokens": "3", "temperature": "0.9", "seed": "0"}
    answers = ask(python_server, vllm("a " * 99, parameters=parameters))
    assert texts(answers) == ["a", " A", " a"]


def test_tensorrtllm_settings(python_server):
    answers = ask(
        python_server,
        tensorrtllm(
            "a b c d e",
            stop=["x", "a"],
            bad=["d"],
            temperature=np.float32([[0.5]]),
            seed=np.uint64([[2**63 + 1]]),
            return_log_probs=np.array([[True]]),
            return_num_input_tokens=np.array([[True]]),
        ),
    )
    assert texts(answers) == ["E", " c", " B"]
    assert values(answers, "num_input_tokens") == [5] * 3
    assert values(answers, "num_output_tokens") == []
    assert values(answers, "cum_log_probs") == [-0.5] * 3
    older = {"temperature": np.float32([[0.5]]), "random_seed": np.uint64([[1]])}
    assert texts(ask(python_server, tensorrtllm("a b c", max_tokens=2, **older))) == ["C", " b"]


def test_tensorrtllm_in_one_answer(python_server):
    answer, end = ask(python_server, tensorrtllm("a b c", stream=False))
    assert texts([answer]) == ["a b cc b a"]
    assert len(end.get_response().outputs) == 0
    exclude = {"exclude_input_in_output": np.array([[True]])}
    answer, end = ask(python_server, tensorrtllm("a b c", stream=False, **exclude))
    assert texts([answer]) == ["c b a"]
    inputs = {"text_input": text("a", "b")[:, None], "max_tokens": np.int32([[1], [1]])}
    with pytest.raises(InferenceServerException, match="2 elements instead of one"):
        ask(python_server, ("tensorrtllm_like", inputs, {}))


def test_the_environment_sets_the_pace(triton_server_factory):
    server = triton_server_factory(
        models=["prompt_text_stream"], env={"TRITON_FAST_TOKEN_DELAY": "0.1"}
    )
    start = time.monotonic()
    ask(server, prompt_text("a b c"))
    assert time.monotonic() - start >= 0.3
    start = time.monotonic()
    ask(server, prompt_text("a " * 300, token_delay=0.0))
    assert time.monotonic() - start < 20  # it would take 30 s
    server.kill()


@pytest.mark.server_may_die
def test_cancel_aware_python(python_client):
    def call(seconds, **options):
        result = infer(
            python_client, "cancel_aware_python", {"SECONDS": np.float32([seconds])}, **options
        )
        return [result.as_numpy(name).item() for name in ("COMPLETED", "CANCELLED", "TOOK")]

    before = call(-1)[:2]
    completed, cancelled, took = call(0.1)
    assert (completed, cancelled) == (before[0] + 1, before[1])
    assert took >= 0.1
    with pytest.raises(InferenceServerException, match="Deadline"):
        call(600, client_timeout=1)
    # One call at a time: this one waits until the model has noticed.
    assert call(-1)[:2] == [before[0] + 1, before[1] + 1]
