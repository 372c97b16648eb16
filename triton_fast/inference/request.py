"""Requests: a caller's arguments, checked and encoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import InvalidOption, InvalidTensor
from ..options.deadline import microseconds
from ..options.values import (
    checked_mapping,
    checked_text,
    instead,
    plain_parameters,
    whole_number,
)
from .tensor import InputTensor, input_tensor

if TYPE_CHECKING:
    from ..protocol.codec import Codec, Header, RequestEncoder

__all__ = [
    "UNSET",
    "Outputs",
    "Prepared",
    "PreparedCalls",
    "RequestedOutput",
    "check_inputs",
    "encode_request",
    "input_tensors",
    "merged_inputs",
    "prepare",
    "prepare_streamed",
    "shared_memory_parameters",
]


class _Unset:
    """Stands for the client's own setting where None has a meaning."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<the client's own>"


UNSET: Any = _Unset()
"""The default of arguments that override what the client was made with."""

# Of models that are called by name; somebody may put a counter into the name.
_MOST_PREPARED = 256

# Parameters that have an argument of their own, and what that is.
_RESERVED = {
    "priority": "the argument priority=",
    "timeout": "the argument queue_timeout=",
    "binary_data_output": "nothing: it belongs to HTTP",
    "headers": "the argument headers=",
}


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that a call asks for, with parameters of its own.

    Parameters
    ----------
    name : str
        As the model calls it.
    parameters : mapping of str to bool, int, float or str, optional
        Such as the region, offset and byte size that have it written to shared memory.
    class_count : int, optional
        Ask for the best so many classes in place of the tensor; `InferResult.classes` reads them.
        With a model that batches, so many for each row; no more than there are elements. For
        outputs of numbers only: a Triton 2.51 that is asked for the classes of BYTES crashes.

    Raises
    ------
    InvalidOption
        If the name is no str, the parameters are no mapping, or ``class_count`` is not 1 or more,
        or comes with shared memory, which has no classes.

    Source
    ------
    inference.proto, ModelInferRequest.InferRequestedOutputTensor; Triton's "classification
    extension".
    """

    name: str
    parameters: Mapping[str, Any] | None = field(default=None, hash=False)
    class_count: int | None = None

    def __post_init__(self) -> None:
        checked_text(self.name, "an output's name", empty=True)
        checked_mapping(self.parameters, f"output {self.name!r}: parameters", "name to value")
        if self.class_count is None:
            return
        what = f"output {self.name!r}: class_count must be a number of classes"
        object.__setattr__(
            self, "class_count", whole_number(self.class_count, what, 1, (1 << 31) - 1)
        )
        for name in ("classification", "shared_memory_region"):
            if name in (self.parameters or ()):
                raise InvalidOption(
                    f"output {self.name!r}: class_count and the parameter {name!r} exclude each "
                    "other"
                )


Outputs: TypeAlias = Iterable[str | RequestedOutput]
"""The outputs that a call asks for: their names, or more about them."""

RequestedPair: TypeAlias = tuple[str, Mapping[str, Any] | None]
"""An output's name and parameters."""


def shared_memory_parameters(region: str, offset: int, byte_size: int) -> dict[str, str | int]:
    """Return the parameters that say where in shared memory a tensor is; both numbers in bytes.

    Source
    ------
    Triton's "system shared memory extension".
    """
    return {
        "shared_memory_region": region,
        "shared_memory_offset": offset,
        "shared_memory_byte_size": byte_size,
    }


def check_inputs(inputs: Any) -> None:
    """Raise InvalidTensor unless a call's inputs are a mapping."""
    if not isinstance(inputs, Mapping):
        raise InvalidTensor(
            f"inputs must be a mapping of name to array, got {type(inputs).__name__}"
        )


def input_tensors(inputs: Mapping[str, Any]) -> list[InputTensor]:
    """Return a call's inputs as tensors; see `triton_fast.Client.infer` for what they may be."""
    # A dict is what nearly all give, and an abstract class takes long to ask.
    if type(inputs) is not dict:
        check_inputs(inputs)
    return [input_tensor(name, value) for name, value in inputs.items()]


def merged_inputs(
    inputs: Mapping[str, Any] | None, tensors: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return a call's inputs, however they were given; InvalidOption if one was given twice."""
    if inputs is None:
        return tensors
    check_inputs(inputs)
    both = inputs.keys() & tensors.keys()
    if both:
        raise InvalidOption(f"input {min(both)!r} was given twice")
    return {**inputs, **tensors} if tensors else inputs


@dataclass(frozen=True, slots=True)
class Prepared:
    """What stays the same from one call of a model to the next.

    Parameters
    ----------
    model_name, model_version : str
        Which model; the server chooses an empty version.
    output_names : tuple of str
        Outputs that are asked for; none for all that the model gives.
    header : Header
        All of it, encoded.
    call : str
        What errors call it.
    requested : sequence of (str, mapping or None)
        The outputs that are asked for, with their parameters.
    settings : mapping
        What else the header was made of.
    codec : Codec
        What made it.
    """

    model_name: str
    model_version: str
    output_names: tuple[str, ...]
    header: Header
    call: str
    requested: Sequence[RequestedPair]
    settings: Mapping[str, Any]
    codec: Codec

    def __reduce__(self) -> tuple[Any, ...]:
        # The header is bytes of C++'s, and made again of the rest.
        names = self.model_name, self.model_version
        return _prepared_of, (self.codec, *names, self.requested, self.settings, self.call)

    def asking_for(self, outputs: Sequence[RequestedPair]) -> Header:
        """Return a header like this one's, but for the outputs."""
        return self.codec.header(
            self.model_name, self.model_version, outputs=outputs, **self.settings
        )


class PreparedCalls:
    """What stays the same of calls by name, kept from call to call where it is plain.

    Thread-safe.

    Parameters
    ----------
    codec : Codec
        The protocol that the calls are in.
    """

    __slots__ = ("_codec", "_plain")

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._plain: dict[tuple[str, str], Prepared] = {}

    def get(
        self,
        model: str,
        version: str,
        outputs: Outputs | None,
        parameters: Mapping[str, Any] | None,
        priority: int,
        queue_timeout: float | None,
    ) -> Prepared:
        """Return what `prepare` makes of the same arguments."""
        plain = outputs is None and parameters is None and queue_timeout is None
        plain = plain and type(priority) is int and priority == 0
        if plain and type(model) is str and type(version) is str:
            known = self._plain.get((model, version))
            if known is not None:
                return known
        prepared = prepare(
            self._codec, model, version, outputs, parameters, priority, queue_timeout
        )
        if plain:
            if len(self._plain) >= _MOST_PREPARED:
                self._plain.clear()
            self._plain[model, version] = prepared
        return prepared


def prepare(
    codec: Codec,
    model_name: str,
    model_version: str,
    outputs: Outputs | None,
    parameters: Mapping[str, Any] | None,
    priority: int,
    queue_timeout: float | None,
    method: str = "ModelInfer",
) -> Prepared:
    """Encode what a request has beside its id and its tensors.

    Parameters
    ----------
    codec : Codec
        The protocol that the request is in.
    model_name, model_version, outputs, parameters, priority, queue_timeout
        As in `triton_fast.Client.infer`.
    method : str
        What errors call it.

    Raises
    ------
    InvalidOption
        If a value cannot be sent, or a parameter has an argument of its own.
    """
    model_name = checked_text(model_name, "the model's name")
    model_version = checked_text(model_version, "the model's version", empty=True)
    own = plain_parameters(parameters)
    for name in own or ():
        if name in _RESERVED:
            raise InvalidOption(f"parameter {name!r} is reserved; use {_RESERVED[name]}")
    settings: dict[str, Any] = {
        "parameters": own or None,
        "priority": whole_number(priority, "priority must be a whole number", 0, (1 << 64) - 1),
        "queue_timeout_us": microseconds(queue_timeout, "queue_timeout"),
    }
    call = f"{method}({model_name!r})"
    return _prepared_of(codec, model_name, model_version, _requested(outputs), settings, call)


def _prepared_of(
    codec: Codec,
    model_name: str,
    model_version: str,
    requested: Sequence[RequestedPair],
    settings: Mapping[str, Any],
    call: str,
) -> Prepared:
    header = codec.header(model_name, model_version, outputs=requested, **settings)
    names = tuple(name for name, _ in requested)
    return Prepared(model_name, model_version, names, header, call, requested, settings, codec)


# Has a decoupled model's last answer sent though it has nothing in it, so that one knows it is the
# last.
_FINAL_ANSWER = {"triton_enable_empty_final_response": True}


def prepare_streamed(
    codec: Codec,
    model_name: str,
    model_version: str,
    outputs: Outputs | None,
    parameters: Mapping[str, Any] | None,
    priority: int,
    queue_timeout: float | None,
) -> Prepared:
    """Encode a request for a stream, which always asks for the model's final answer; see `prepare`.

    Raises
    ------
    InvalidOption
        Also if an output is to be in shared memory, where answers would overwrite each other.

    Source
    ------
    Triton's "decoupled models": triton_enable_empty_final_response, triton_final_response.
    """
    prepared = prepare(
        codec,
        model_name,
        model_version,
        outputs,
        {**_FINAL_ANSWER, **(plain_parameters(parameters) or {})},
        priority,
        queue_timeout,
        "ModelStreamInfer",
    )
    shared = prepared.header.shared_memory_outputs
    if shared:
        raise InvalidOption(
            f"output {shared[0]!r} of a stream cannot be in shared memory: each answer would "
            "overwrite the one before"
        )
    return prepared


def _requested(outputs: Outputs | None) -> list[RequestedPair]:
    if outputs is None:
        return []
    if isinstance(outputs, str | RequestedOutput):
        one = instead(outputs) if isinstance(outputs, str) else "RequestedOutput(…)"
        raise InvalidOption(f"outputs must be a sequence of names; write [{one}]")
    try:
        each = iter(outputs)
    except TypeError:
        raise InvalidOption(
            f"outputs must be a sequence of names, got {instead(outputs)}"
        ) from None
    requested: list[RequestedPair] = []
    for output in each:
        if isinstance(output, RequestedOutput):
            requested.append((output.name, _own_parameters(output)))
        elif isinstance(output, str):
            requested.append((output, None))
        else:
            raise InvalidOption(
                "outputs must be a sequence of names or RequestedOutput, and has "
                f"{instead(output)} in it"
            )
    return requested


def _own_parameters(output: RequestedOutput) -> Mapping[str, Any] | None:
    own = plain_parameters(output.parameters, f"output {output.name!r}: parameters")
    if output.class_count is None:
        return own
    return {**(own or {}), "classification": output.class_count}


def encode_request(
    header: Header, request_id: str, tensors: Iterable[InputTensor]
) -> RequestEncoder:
    """Encode a request around tensors that stay where they are.

    Returns
    -------
    RequestEncoder
        Holds the tensors' memory until its ``release()``, which is the caller's to call.

    Raises
    ------
    InvalidTensor
        If the message would be longer than the two gibibytes that protobuf allows.
    """
    request = header.request(request_id)
    try:
        for name, datatype, shape, payload, parameters in tensors:
            request.add_input(name, datatype, shape, payload, parameters)
        request.byte_size  # noqa: B018 - completes the message, which checks its length
    except BaseException:
        request.release()
        raise
    return request
