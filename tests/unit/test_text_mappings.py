"""Prompts and options on their way into a model's tensors, whatever those are called."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from triton_fast import PLAIN_TEXT, TENSORRT_LLM, VLLM, InvalidOption, TextMapping
from triton_fast.management.metadata import ModelConfig, ModelMetadata, TensorMetadata
from triton_fast.protocol.messages import message_class
from triton_fast.text.mappings import (
    TextModel,
    checked_options,
    choose_mapping,
    text_outputs,
)
from triton_fast.text.mappings import text_inputs as inputs_and_parameters


def tensors(**known):
    """Metadata from ``name="BYTES 1"``: a datatype and a shape."""
    return {
        name: TensorMetadata(name, kind.split()[0], tuple(map(int, kind.split()[1:])))
        for name, kind in known.items()
    }


def text_inputs(*args):
    inputs, parameters = inputs_and_parameters(*args)
    assert parameters == {}
    return inputs


VLLM_MODEL = TextModel(
    "llm",
    tensors(
        text_input="BYTES 1",
        image="BYTES -1",
        stream="BOOL 1",
        sampling_parameters="BYTES 1",
        exclude_input_in_output="BOOL 1",
        return_finish_reason="BOOL 1",
        return_cumulative_logprob="BOOL 1",
        return_num_input_tokens="BOOL 1",
        return_num_output_tokens="BOOL 1",
    ),
    tensors(
        text_output="BYTES -1",
        finish_reason="BYTES -1",
        cumulative_logprob="FP32 -1",
        num_input_tokens="UINT32 1",
        num_output_tokens="UINT32 -1",
    ),
    frozenset({"text_input"}),
    decoupled=True,
)
TENSORRT_MODEL = TextModel(
    "ensemble",
    tensors(
        text_input="BYTES -1 1",
        max_tokens="INT32 -1 1",
        stop_words="BYTES -1 -1",
        bad_words="BYTES -1 -1",
        exclude_input_in_output="BOOL -1 1",
        top_k="INT32 -1 1",
        top_p="FP32 -1 1",
        temperature="FP32 -1 1",
        repetition_penalty="FP32 -1 1",
        seed="UINT64 -1 1",
        return_num_input_tokens="BOOL -1 1",
        return_num_output_tokens="BOOL -1 1",
        stream="BOOL -1 1",
    ),
    tensors(
        text_output="BYTES -1 -1",
        context_logits="FP32 -1 -1 -1",
        num_input_tokens="INT32 -1 1",
        num_output_tokens="INT32 -1 1",
    ),
    frozenset({"text_input", "max_tokens"}),
    decoupled=True,
)


def simple(inputs, outputs, required=(), decoupled=False):
    return TextModel("m", tensors(**inputs), tensors(**outputs), frozenset(required), decoupled)


def plain(inputs):
    return {name: (array.dtype.str, array.tolist()) for name, array in inputs.items()}


def test_vllm():
    options = checked_options(
        max_tokens=5,
        temperature=0.5,
        top_p=1,
        top_k=-1,
        seed=7,
        stop="\n",
        options={"min_p": np.float32(0.5), "stop_token_ids": (1, 2), "logit_bias": None},
    )
    inputs = text_inputs(VLLM, VLLM_MODEL, "Grüße", options)
    sampling = json.loads(inputs.pop("sampling_parameters").item())
    assert sampling == {
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": -1,
        "seed": 7,
        "stop": ["\n"],
        "min_p": 0.5,
        "stop_token_ids": [1, 2],
    }
    true = ("|b1", [True])
    assert plain(inputs) == {
        "text_input": ("|O", ["Grüße".encode()]),
        "stream": true,
        "exclude_input_in_output": true,
        "return_finish_reason": true,
        "return_num_input_tokens": true,
        "return_num_output_tokens": true,
    }
    assert text_outputs(VLLM, VLLM_MODEL) == [
        "text_output",
        "finish_reason",
        "num_input_tokens",
        "num_output_tokens",
    ]
    assert "sampling_parameters" not in text_inputs(VLLM, VLLM_MODEL, "a", {})


def test_an_older_vllm():
    old = simple(
        {"text_input": "BYTES 1", "stream": "BOOL 1", "sampling_parameters": "BYTES 1"},
        {"text_output": "BYTES -1"},
        ["text_input"],
        decoupled=True,
    )
    assert list(text_inputs(VLLM, old, "a", {"seed": 1})) == [
        "text_input",
        "stream",
        "sampling_parameters",
    ]
    assert text_outputs(VLLM, old) == ["text_output"]


def test_tensorrt_llm():
    options = checked_options(
        max_tokens=5,
        temperature=0.5,
        top_k=np.int64(3),
        seed=2**64 - 1,
        stop=["a", "bc"],
        options={"repetition_penalty": 1.5, "bad_words": ["x"]},
    )
    assert plain(text_inputs(TENSORRT_LLM, TENSORRT_MODEL, "Hi", options)) == {
        "text_input": ("|O", [[b"Hi"]]),
        "max_tokens": ("<i4", [[5]]),
        "temperature": ("<f4", [[0.5]]),
        "top_k": ("<i4", [[3]]),
        "seed": ("<u8", [[2**64 - 1]]),
        "stop_words": ("|O", [[b"a", b"bc"]]),
        "repetition_penalty": ("<f4", [[1.5]]),
        "bad_words": ("|O", [[b"x"]]),
        "stream": ("|b1", [[True]]),
        "exclude_input_in_output": ("|b1", [[True]]),
        "return_num_input_tokens": ("|b1", [[True]]),
        "return_num_output_tokens": ("|b1", [[True]]),
    }
    # Logits are not asked for: they would be larger than all else.
    assert text_outputs(TENSORRT_LLM, TENSORRT_MODEL) == [
        "text_output",
        "num_input_tokens",
        "num_output_tokens",
    ]


def test_an_older_tensorrt_llm_that_answers_once():
    old = simple(
        {
            "text_input": "BYTES -1 -1",
            "max_tokens": "UINT32 -1 -1",
            "random_seed": "UINT64 -1 1",
            "min_length": "UINT32 -1 1",
            "stream": "BOOL -1 1",
        },
        {"text_output": "BYTES -1 -1"},
        ["text_input", "max_tokens"],
    )
    options = checked_options(max_tokens=5, seed=1, options={"min_tokens": 2})
    assert plain(text_inputs(TENSORRT_LLM, old, "Hi", options)) == {
        "text_input": ("|O", [[b"Hi"]]),
        "max_tokens": ("<u4", [[5]]),
        "random_seed": ("<u8", [[1]]),
        "min_length": ("<u4", [[2]]),
        "stream": ("|b1", [[False]]),
    }


def test_plain_text():
    model = simple({"prompt": "BYTES 1", "temperature": "FP64"}, {"text": "BYTES 1"}, ["prompt"])
    inputs = text_inputs(PLAIN_TEXT, model, "Hi", {"temperature": 0.1})
    assert plain(inputs) == {"prompt": ("|O", [b"Hi"]), "temperature": ("<f8", 0.1)}
    assert inputs["temperature"].shape == ()


def test_servers_that_do_not_say():
    nothing = TextModel("m", {}, {})
    mapping = TextMapping(prompt="p", text="t", options={"stop": ("s1", "s2")}, stream="stream")
    options = checked_options(max_tokens=1, temperature=1, stop="x", options={"echo": True})
    assert plain(text_inputs(mapping, nothing, "a", options)) == {
        "p": ("|O", [b"a"]),
        "max_tokens": ("<i4", [1]),
        "temperature": ("<f4", [1.0]),
        "s1": ("|O", [b"x"]),
        "echo": ("|b1", [True]),
    }
    batched = TextMapping(prompt="p", text="t", batched=True)
    assert text_inputs(batched, nothing, "a", {})["p"].tolist() == [[b"a"]]
    assert text_outputs(mapping, nothing) is None


def test_options_as_parameters_of_the_request():
    model = simple({"prompt": "BYTES 1", "seed": "INT32 1"}, {"text": "BYTES 1"}, ["prompt"])
    mapping = replace(PLAIN_TEXT, option_parameters=True)
    options = checked_options(max_tokens=3, seed=4, stop="x", options={"a": 0.5, "b": True})
    inputs, parameters = inputs_and_parameters(mapping, model, "a", options)
    assert sorted(inputs) == ["prompt", "seed"]
    assert parameters == {"max_tokens": 3, "stop": "x", "a": 0.5, "b": True}
    inputs, parameters = inputs_and_parameters(mapping, TextModel("m", {}, {}), "a", options)
    assert list(inputs) == ["prompt"]
    assert len(parameters) == 5
    with pytest.raises(InvalidOption, match=r"model 'm' takes stop as a parameter.*got list"):
        inputs_and_parameters(mapping, model, "a", {"stop": ["a", "b"]})


def test_choosing():
    assert choose_mapping(VLLM_MODEL) is VLLM
    assert choose_mapping(TENSORRT_MODEL) is TENSORRT_LLM
    model = simple({"prompt": "BYTES 1", "max_tokens": "INT32 1"}, {"text": "BYTES 1"})
    assert choose_mapping(model) is PLAIN_TEXT


def test_choosing_by_what_is_a_string():
    only = simple({"QUERY": "BYTES 1"}, {"ANSWER": "BYTES 1", "SCORE": "FP32 1"})
    assert choose_mapping(only) == TextMapping(prompt="QUERY", text="ANSWER")
    inputs = {"Q": "BYTES 1", "SYSTEM": "BYTES 1", "TOP": "INT32 1"}
    optional = simple(inputs, {"A": "BYTES 1"}, ["Q"])
    assert choose_mapping(optional) == TextMapping(prompt="Q", text="A")


@pytest.mark.parametrize(
    "model",
    [
        simple({"A": "BYTES 1", "B": "BYTES 1"}, {"T": "BYTES 1"}),
        simple({"A": "BYTES 1", "B": "BYTES 1"}, {"T": "BYTES 1"}, ["A", "B"]),
        simple({"A": "BYTES 1"}, {"T": "BYTES 1", "U": "BYTES 1"}),
        simple({"A": "FP32 1"}, {"T": "BYTES 1"}),
        simple({"A": "BYTES 1", "N": "INT32 1"}, {"T": "BYTES 1"}, ["A", "N"]),
        simple({"text_input": "BYTES 1", "max_tokens": "INT32 1"}, {"O": "FP32 1"}),
        TextModel("m", {}, {}),
    ],
)
def test_what_cannot_be_told(model):
    with pytest.raises(InvalidOption, match=r"model 'm'.*pass mapping=TextMapping") as caught:
        choose_mapping(model)
    for name in (*model.inputs, *model.outputs):
        assert repr(name) in str(caught.value)


def test_options_that_a_model_does_not_take():
    model = simple({"prompt": "BYTES 1", "seed": "INT32 1"}, {"text": "BYTES 1"}, ["prompt"])
    for options, message in (
        ({"max_tokens": 3}, "model 'm' has no input for max_tokens; it takes 'prompt'"),
        ({"min_p": 0.1}, "model 'm' has no input for min_p"),
        ({"seed": 2**31}, "model 'm': seed must be INT32, got 2147483648"),
        ({"seed": 0.5}, "model 'm': seed must be INT32, got 0.5"),
        ({"seed": True}, "model 'm': seed must be INT32, got True"),
        ({"seed": "a"}, "model 'm': seed must be INT32, got 'a'"),
        ({"prompt": "again"}, "input 'prompt' is given twice"),
    ):
        with pytest.raises(InvalidOption, match=message):
            text_inputs(PLAIN_TEXT, model, "a", options)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("BOOL 1", 1),
        ("BOOL 1", "true"),
        ("FP32 1", "0.5"),
        ("FP32 1", True),
        ("BYTES 1", 1),
        ("BYTES 1", ["a", 1]),
        ("UINT8 1", -1),
        ("UINT8 -1", [1, 256]),
        ("BF16 1", 1.0),
        ("BYTES 1", "\ud800"),
        ("FP32 1", {"a": 1}),
    ],
)
def test_values_that_do_not_fit(kind, value):
    model = simple({"prompt": "BYTES 1", "x": kind}, {"text": "BYTES 1"})
    with pytest.raises(InvalidOption, match=f"model 'm': x must be {kind.split()[0]}, got "):
        text_inputs(PLAIN_TEXT, model, "a", {"x": value})


def test_values_that_fit():
    model = simple(
        {"prompt": "BYTES 1", "f": "FP16 1", "i": "INT64 -1", "b": "BOOL 1"}, {"text": "BYTES 1"}
    )
    inputs = text_inputs(PLAIN_TEXT, model, "a", {"f": 1, "i": [-1, 2], "b": False})
    assert plain(inputs) == {
        "prompt": ("|O", [b"a"]),
        "f": ("<f2", [1.0]),
        "i": ("<i8", [-1, 2]),
        "b": ("|b1", [False]),
    }
    assert np.isinf(text_inputs(PLAIN_TEXT, model, "a", {"f": 1e9})["f"]).all()


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}])
def test_values_that_json_has_not(value):
    with pytest.raises(InvalidOption, match=r"model 'llm' takes its options as JSON, which x "):
        text_inputs(VLLM, VLLM_MODEL, "a", {"x": value})


def test_what_a_model_needs():
    with pytest.raises(InvalidOption, match="model 'ensemble' needs max_tokens$"):
        text_inputs(TENSORRT_LLM, TENSORRT_MODEL, "a", {})
    model = simple(
        {"prompt": "BYTES 1", "LANG": "BYTES 1", "W": "BYTES -1"},
        {"text": "BYTES 1"},
        ["prompt", "LANG", "W"],
    )
    mapping = TextMapping(prompt="prompt", text="text", options={"stop": ("W",)})
    with pytest.raises(InvalidOption, match=r"model 'm' needs options=\{'LANG': …\}, stop"):
        text_inputs(mapping, model, "a", {})
    assert len(text_inputs(mapping, model, "a", {"LANG": "de", "stop": ["x"]})) == 3


def test_mappings_that_do_not_fit():
    with pytest.raises(InvalidOption, match="model 'llm' has no input 'prompt' for the prompt"):
        text_inputs(PLAIN_TEXT, VLLM_MODEL, "a", {})
    with pytest.raises(InvalidOption, match="model 'llm' has no BYTES output 'text'"):
        text_outputs(PLAIN_TEXT, VLLM_MODEL)
    numbers = simple({"prompt": "BYTES 1"}, {"text": "FP32 1"})
    with pytest.raises(
        InvalidOption, match="no BYTES output 'text' with the text; it gives 'text'"
    ):
        text_outputs(PLAIN_TEXT, numbers)
    wrong = simple({"prompt": "INT32 1"}, {"text": "BYTES 1"})
    with pytest.raises(InvalidOption, match="model 'm': the prompt must be INT32") as caught:
        text_inputs(PLAIN_TEXT, wrong, "a secret", {})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be a whole number, 1 or more, got 0"),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number"),
        ({"max_tokens": True}, "max_tokens must be a whole number"),
        ({"temperature": -0.1}, "temperature must be a number, 0 or more, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"temperature": float("inf")}, "temperature must be a number"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"temperature": False}, "temperature must be a number"),
        ({"top_p": 1.1}, "top_p must be a number, 0 to 1, got 1.1"),
        ({"top_k": -2}, "top_k must be a whole number, -1 or more"),
        ({"seed": -1}, "seed must be a whole number, 0 or more"),
        ({"stop": []}, "stop must be one text or several"),
        ({"stop": ""}, "stop must be one text or several"),
        ({"stop": ["a", ""]}, "stop must be one text or several"),
        ({"stop": b"a"}, "stop must be one text or several"),
        ({"stop": 5}, "stop must be one text or several"),
        ({"options": {"seed": 1}}, "'seed' is an argument of its own"),
        ({"options": {5: 1}}, "5 is an argument of its own, or no name"),
        ({"options": [1]}, r"options must be a mapping of name to value, got list"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(InvalidOption, match=message):
        checked_options(**options)


def test_options_as_they_are_given():
    assert checked_options() == {}
    given = checked_options(temperature=np.float32(0), top_k=np.uint8(4), stop=iter("ab"))
    assert given == {"temperature": 0.0, "top_k": 4, "stop": ["a", "b"]}
    assert type(given["temperature"]) is float
    assert type(given["top_k"]) is int


def test_what_a_server_says():
    metadata = ModelMetadata(
        "m", ("1",), "", tuple(tensors(a="BYTES 1").values()), tuple(tensors(b="BYTES 1").values())
    )
    message = message_class("ModelConfig")(
        name="m",
        input=[{"name": "a"}, {"name": "o", "optional": True}],
        model_transaction_policy={"decoupled": True},
    )
    model = TextModel.from_metadata(metadata, ModelConfig.from_message(message))
    assert (model.name, model.required, model.decoupled) == ("m", {"a"}, True)
    assert (list(model.inputs), list(model.outputs)) == (["a"], ["b"])
    assert not TextModel.from_metadata(metadata, None).decoupled
