"""How text-generating models call their tensors, and a prompt's way into them.

Owns `TextMapping`, the ready ones, the choice among them, and the encoding of a prompt and its
options as inputs. Does no I/O.
"""

from __future__ import annotations

import contextlib
import json
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ..errors import InvalidOption
from ..options.values import (
    checked_flag,
    checked_mapping,
    checked_text,
    instead,
    whole_number,
)
from ..protocol.datatypes import dtype_of

if TYPE_CHECKING:
    from ..management.metadata import ModelConfig, ModelMetadata, TensorMetadata

__all__ = [
    "PLAIN_TEXT",
    "TENSORRT_LLM",
    "VLLM",
    "TextMapping",
    "TextModel",
    "checked_options",
    "choose_mapping",
    "text_inputs",
    "text_outputs",
]


_NAMES_OF_TENSORS = (
    "json_options",
    "stream",
    "finish_reason",
    "prompt_tokens",
    "completion_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextMapping:
    """How a text-generating model calls its tensors.

    Datatypes and dimensions are the model's own, as its metadata has them: a mapping has names.

    Parameters
    ----------
    prompt : str
        The input that takes the prompt; BYTES.
    text : str
        The output that has the generated text, in UTF-8; BYTES.
    options : mapping of str to tuple of str, optional
        Which input takes an option (``"max_tokens"``, ``"stop"``), if it is not called like the
        option; the first of several that the model has. Those that nobody asks for are not sent.
    json_options : str, optional
        An input that takes all other options, as one JSON object; BYTES.
    option_parameters : bool, default False
        Whether options for which there is no input are sent as parameters of the request, as
        Triton's generate extension does it. Models that do not know them ignore them.
    stream : str, optional
        The input that says whether answers are to come in pieces; BOOL. True is sent to decoupled
        models and False to others, if the model has the input.
    constants : mapping of str to bool, int, float or str, optional
        Further inputs and what they are given with every call, if the model has them.
    finish_reason, prompt_tokens, completion_tokens : str, optional
        Outputs with the reason for the end (BYTES), and the numbers of tokens; they are asked for
        if the model has them.
    cumulative : bool, default False
        Whether each answer has all there is so far, the text and the number of its tokens, and
        not what is new alone. Text that a model changes in hindsight cannot be taken back:
        `Finished` then has what it said last.
    batched : bool, default False
        Whether tensors have a batch dimension, where the server does not say (KServe servers other
        than Triton may not); numbers are then INT32 or FP32.

    Raises
    ------
    InvalidOption
        If an argument is not of its type.

    Examples
    --------
    >>> from triton_fast import TextMapping
    >>> TextMapping(prompt="QUERY", text="ANSWER", options={"stop": ("STOP_WORDS",)}).text
    'ANSWER'
    """

    prompt: str
    text: str
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    json_options: str = ""
    option_parameters: bool = False
    stream: str = ""
    constants: Mapping[str, Any] = field(default_factory=dict, hash=False)
    finish_reason: str = ""
    prompt_tokens: str = ""
    completion_tokens: str = ""
    cumulative: bool = False
    batched: bool = False

    def __post_init__(self) -> None:
        for name in ("prompt", "text"):
            checked_text(getattr(self, name), f"mapping: {name}")
        for name in _NAMES_OF_TENSORS:
            checked_text(getattr(self, name), f"mapping: {name}", empty=True)
        for name in ("option_parameters", "cumulative", "batched"):
            checked_flag(getattr(self, name), f"mapping: {name}")
        for name in ("options", "constants"):
            if checked_mapping(given := getattr(self, name), f"mapping: {name}", "names") is None:
                raise InvalidOption(f"mapping: {name} must be a mapping of names, got None")
            for key in given:
                checked_text(key, f"mapping: a name in {name}")
        for option, inputs in self.options.items():
            if not isinstance(inputs, tuple | list):
                raise InvalidOption(
                    f"mapping: options[{option!r}] must be a tuple of names, got {instead(inputs)}"
                )
            for one in inputs:
                checked_text(one, f"mapping: options[{option!r}]")


VLLM: Final = TextMapping(
    prompt="text_input",
    text="text_output",
    json_options="sampling_parameters",
    stream="stream",
    constants={
        "exclude_input_in_output": True,
        "return_finish_reason": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    },
    finish_reason="finish_reason",
    prompt_tokens="num_input_tokens",
    completion_tokens="num_output_tokens",
)
"""Models of Triton's vLLM backend. Any of vLLM's sampling parameters is an option."""

TENSORRT_LLM: Final = TextMapping(
    prompt="text_input",
    text="text_output",
    options={
        "min_tokens": ("min_tokens", "min_length"),
        "seed": ("seed", "random_seed"),
        "stop": ("stop_words",),
    },
    stream="stream",
    constants={
        "exclude_input_in_output": True,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
    },
    prompt_tokens="num_input_tokens",
    completion_tokens="num_output_tokens",
)
"""The ``ensemble`` and ``tensorrt_llm_bls`` models of Triton's TensorRT-LLM backend.

They need ``max_tokens``. A ``tensorrt_llm_bls`` that is set to accumulate tokens is
``dataclasses.replace(TENSORRT_LLM, cumulative=True)``.
"""

PLAIN_TEXT: Final = TextMapping(prompt="prompt", text="text")
"""A model that makes a text of a prompt; options go to inputs that are called like them."""

# What tells one of the ready ones: inputs that a model has. The most particular comes first.
_MARKS: tuple[tuple[TextMapping, frozenset[str]], ...] = (
    (VLLM, frozenset({"text_input", "sampling_parameters"})),
    (TENSORRT_LLM, frozenset({"text_input", "max_tokens"})),
    (PLAIN_TEXT, frozenset({"prompt"})),
)


@dataclass(frozen=True, slots=True)
class TextModel:
    """What is known of a model that generates text.

    Parameters
    ----------
    name : str
        The model's.
    inputs, outputs : mapping of str to TensorMetadata
        With the batch dimension, if the model has one. Empty if the server does not say.
    required : frozenset of str
        Inputs that each request must have, as far as the server says.
    decoupled : bool
        Whether it may give many answers, and needs a stream.
    """

    name: str
    inputs: Mapping[str, TensorMetadata]
    outputs: Mapping[str, TensorMetadata]
    required: frozenset[str] = frozenset()
    decoupled: bool = False

    @classmethod
    def from_metadata(cls, metadata: ModelMetadata, config: ModelConfig | None) -> TextModel:
        """Return what a server's answers amount to; a ``config`` of None is that of no Triton."""
        required = frozenset[str]()
        if config is not None:
            required = frozenset(tensor.name for tensor in config.inputs if not tensor.optional)
        return cls(
            metadata.name,
            {tensor.name: tensor for tensor in metadata.inputs},
            {tensor.name: tensor for tensor in metadata.outputs},
            required,
            config is not None and config.decoupled,
        )


def choose_mapping(model: TextModel) -> TextMapping:
    """Return the mapping that a model's tensors suggest.

    Raises
    ------
    InvalidOption
        If they suggest none.
    """
    for mapping, marks in _MARKS:
        if marks <= model.inputs.keys() and mapping.text in model.outputs:
            return mapping
    prompts = [tensor.name for tensor in model.inputs.values() if tensor.datatype == "BYTES"]
    prompts = [name for name in prompts if name in model.required] or prompts
    texts = [tensor.name for tensor in model.outputs.values() if tensor.datatype == "BYTES"]
    if len(prompts) == len(texts) == 1 and model.required <= {prompts[0]}:
        return replace(PLAIN_TEXT, prompt=prompts[0], text=texts[0])
    raise InvalidOption(
        f"model {model.name!r}: it cannot be told which of its tensors are the prompt and the "
        f"text; pass mapping=TextMapping(…). It takes {_names(model.inputs)} and gives "
        f"{_names(model.outputs)}"
    )


def checked_options(
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    seed: int | None = None,
    stop: str | Iterable[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the options that were given, by name, as plain bool, int, float, str and list.

    Raises
    ------
    InvalidOption
        If one makes no sense; what a model takes is not known here.
    """
    checked: dict[str, Any] = {}
    if max_tokens is not None:
        checked["max_tokens"] = _integer("max_tokens", max_tokens, 1)
    if temperature is not None:
        checked["temperature"] = _number("temperature", temperature, np.inf)
    if top_p is not None:
        checked["top_p"] = _number("top_p", top_p, 1)
    if top_k is not None:
        checked["top_k"] = _integer("top_k", top_k, -1)
    if seed is not None:
        checked["seed"] = _integer("seed", seed, 0)
    if stop is not None:
        words = [stop] if isinstance(stop, str) else _listed(stop)
        if not words or not all(isinstance(word, str) and word for word in words):
            raise InvalidOption(
                f"stop must be one text or several at which to stop, got {instead(stop)}"
            )
        checked["stop"] = [checked_text(word, "stop") for word in words]
    if options is not None and not isinstance(options, Mapping):
        raise InvalidOption(f"options must be a mapping of name to value, got {instead(options)}")
    for name, value in (options or {}).items():
        if not isinstance(name, str) or name in _ARGUMENTS:
            raise InvalidOption(f"options: {instead(name)} is an argument of its own, or no name")
        if value is not None:
            checked[name] = _plain(value)
    return checked


_ARGUMENTS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop")


def _integer(name: str, value: Any, least: int) -> int:
    return whole_number(value, f"{name} must be a whole number", least, (1 << 64) - 1)


def _number(name: str, value: Any, most: float) -> float:
    if not isinstance(value, bool) and isinstance(value, numbers.Real):
        with contextlib.suppress(OverflowError):
            number = float(value)
            if 0 <= number <= most and number != np.inf:
                return number
    limit = "or more" if most == np.inf else f"to {most}"
    raise InvalidOption(f"{name} must be a number, 0 {limit}, got {instead(value)}")


def _listed(value: Any) -> list[Any]:
    try:
        return list(value)
    except TypeError:
        return []


def _plain(value: Any) -> Any:
    """Return numpy's scalars and arrays as Python's own, which json knows."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value


def text_inputs(
    mapping: TextMapping, model: TextModel, prompt: str, options: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """Return a request's inputs and parameters.

    Parameters
    ----------
    mapping : TextMapping
        How the tensors are called.
    model : TextModel
        What the model takes.
    prompt : str
        What to continue or answer.
    options : mapping
        As `checked_options` returns them.

    Returns
    -------
    inputs : dict of str to numpy.ndarray
        With the datatypes and dimensions of the model's own metadata.
    parameters : dict of str to bool, int, float or str
        Options that are parameters of the request.

    Raises
    ------
    InvalidOption
        If an option cannot be passed on, does not fit its tensor, or one is missing that the model
        needs. It names option and model.
    """
    inputs: dict[str, np.ndarray[Any, Any]] = {}

    def put(what: str, name: str, value: Any) -> None:
        if name in inputs:
            raise InvalidOption(f"model {model.name!r}: input {name!r} is given twice, as {what}")
        inputs[name] = _tensor(mapping, model, what, name, value)

    if model.inputs and mapping.prompt not in model.inputs:
        raise InvalidOption(
            f"model {model.name!r} has no input {mapping.prompt!r} for the prompt; it takes "
            f"{_names(model.inputs)}"
        )
    put("the prompt", mapping.prompt, prompt)
    if mapping.stream in model.inputs:
        put("stream", mapping.stream, model.decoupled)
    for name, value in mapping.constants.items():
        if name in model.inputs:
            put(name, name, value)
    json_options = {}
    parameters = {}
    for option, value in options.items():
        tensor = _tensor_of(mapping, model, option)
        if tensor is not None:
            put(option, tensor, value)
        elif mapping.json_options:
            json_options[option] = value
        elif mapping.option_parameters:
            parameters[option] = _parameter(model, option, value)
        else:
            raise InvalidOption(
                f"model {model.name!r} has no input for {option}; it takes {_names(model.inputs)}"
            )
    if json_options:
        put("its options", mapping.json_options, _json(model, json_options))
    missing = sorted(model.required - inputs.keys())
    if missing:
        needed = [_option_of(mapping, name) for name in missing]
        raise InvalidOption(f"model {model.name!r} needs {', '.join(needed)}")
    return inputs, parameters


def text_outputs(mapping: TextMapping, model: TextModel) -> list[str] | None:
    """Return which outputs to ask for; None for all, if the server does not say what there is.

    Raises
    ------
    InvalidOption
        If there is no such text.
    """
    if not model.outputs:
        return None
    text = model.outputs.get(mapping.text)
    if text is None or text.datatype != "BYTES":
        raise InvalidOption(
            f"model {model.name!r} has no BYTES output {mapping.text!r} with the text; it gives "
            f"{_names(model.outputs)}"
        )
    others = (mapping.finish_reason, mapping.prompt_tokens, mapping.completion_tokens)
    return [mapping.text, *(name for name in others if name in model.outputs)]


def _tensor_of(mapping: TextMapping, model: TextModel, option: str) -> str | None:
    """Return the input that takes an option, if there is one of its own."""
    named = mapping.options.get(option)
    if named is None and mapping.json_options:
        return None
    candidates = named or (option,)
    if not model.inputs:
        return None if named is None and mapping.option_parameters else candidates[0]
    return next((name for name in candidates if name in model.inputs), None)


def _option_of(mapping: TextMapping, tensor: str) -> str:
    """Return what fills an input, for the reader of an error."""
    for option, names in mapping.options.items():
        if tensor in names:
            return option
    return tensor if tensor in _ARGUMENTS else f"options={{{tensor!r}: …}}"


def _parameter(model: TextModel, option: str, value: Any) -> Any:
    element = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(element, bool | int | float | str):
        raise InvalidOption(
            f"model {model.name!r} takes {option} as a parameter: it must be one bool, int, float "
            f"or str, got {instead(value)}"
        )
    return element


def _json(model: TextModel, options: Mapping[str, Any]) -> str:
    try:
        return json.dumps(options, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidOption(
            f"model {model.name!r} takes its options as JSON, which {', '.join(options)} cannot "
            f"be: {error}"
        ) from error


def _tensor(
    mapping: TextMapping, model: TextModel, what: str, name: str, value: Any
) -> np.ndarray[Any, Any]:
    """Return an input of one element, or of one dimension if the value is a list."""
    known = model.inputs.get(name)
    datatype = _usual_datatype(value) if known is None else known.datatype
    rank = (2 if mapping.batched else 1) if known is None else len(known.shape)
    elements = value if isinstance(value, list) else [value]
    try:
        array = _elements(datatype, elements)
    except (TypeError, ValueError, OverflowError) as error:
        shown = "" if what == "the prompt" else f", got {instead(value)}"
        raise InvalidOption(
            f"model {model.name!r}: {what} must be {datatype}{shown} ({error})"
        ) from error
    if rank == 0 and len(elements) == 1:
        return array.reshape(())
    return array.reshape((1,) * (rank - 1) + (len(elements),))


def _usual_datatype(value: Any) -> str:
    element = value[0] if isinstance(value, list) and value else value
    if isinstance(element, bool):
        return "BOOL"
    if isinstance(element, int):
        return "INT32"
    return "FP32" if isinstance(element, float) else "BYTES"


def _elements(datatype: str, elements: list[Any]) -> np.ndarray[Any, Any]:
    """Return elements as an array, of one dimension, if they are of that datatype."""
    if datatype == "BYTES":
        array = np.empty(len(elements), np.object_)
        for index, element in enumerate(elements):
            if not isinstance(element, str):
                raise TypeError(f"{type(element).__name__} is no str")
            array[index] = element.encode()
        return array
    if datatype == "BF16":
        raise TypeError("there are no such scalars in Python")
    dtype = dtype_of(datatype)
    for element in elements:
        if isinstance(element, bool) != (datatype == "BOOL"):
            raise TypeError(f"{type(element).__name__} is no {datatype}")
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            if not isinstance(element, int) or not limits.min <= element <= limits.max:
                raise ValueError(f"it is a whole number, {limits.min} to {limits.max}")
        elif dtype.kind != "b" and not isinstance(element, int | float):
            raise TypeError(f"{type(element).__name__} is no number")
    with np.errstate(over="ignore"):  # infinity is what it is then
        return np.array(elements, dtype)


def _names(tensors: Mapping[str, TensorMetadata]) -> str:
    return ", ".join(f"{name!r} ({tensor.datatype})" for name, tensor in tensors.items()) or (
        "nothing that the server would tell of"
    )
