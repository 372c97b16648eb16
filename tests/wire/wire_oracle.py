"""What a message means: by the official protobuf package, and by ours, in one form.

`answer` reads a response with tritonclient's messages and applies, in plain Python, the rules by
which the fields make tensors. `decode` has our reader do the same. Tests compare the two.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from tritonclient.grpc.service_pb2 import ModelInferResponse

from triton_fast._core import _wire

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from google.protobuf.internal.containers import MessageMap

# Datatype, then bytes of one element, then its field of InferTensorContents and the format of one
# element there: of the element, not of the field.
DATATYPES: dict[str, tuple[int, str, str]] = {
    "BOOL": (1, "bool_contents", "?"),
    "INT8": (1, "int_contents", "b"),
    "INT16": (2, "int_contents", "h"),
    "INT32": (4, "int_contents", "i"),
    "INT64": (8, "int64_contents", "q"),
    "UINT8": (1, "uint_contents", "B"),
    "UINT16": (2, "uint_contents", "H"),
    "UINT32": (4, "uint_contents", "I"),
    "UINT64": (8, "uint64_contents", "Q"),
    "FP16": (2, "", ""),
    "BF16": (2, "", ""),
    "FP32": (4, "fp32_contents", "f"),
    "FP64": (8, "fp64_contents", "d"),
    "BYTES": (0, "bytes_contents", ""),
}
CONTENT_FIELDS = (
    "bool_contents",
    "int_contents",
    "int64_contents",
    "uint_contents",
    "uint64_contents",
    "fp32_contents",
    "fp64_contents",
    "bytes_contents",
)

MAX_RANK = 32
MAX_ENTRIES = 4096

# A parameter's type and value, the value in a form in which NaN equals itself.
Exact = tuple[str, Any]


class RefusedError(Exception):
    """The message is no answer that can be given to a user, and why."""


@dataclass(frozen=True)
class Output:
    name: str
    datatype: str
    shape: tuple[int, ...]
    payload: bytes | bool | None
    parameters: dict[str, Exact]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Output):
            return NotImplemented
        mine, theirs = self.payload, other.payload
        if self.datatype == "FP32" and isinstance(mine, bytes) and isinstance(theirs, bytes):
            # The official package reads each float through a double, which quiets NaNs.
            mine, theirs = quieted(mine), quieted(theirs)
        return (self.name, self.datatype, self.shape, mine, self.parameters) == (
            other.name,
            other.datatype,
            other.shape,
            theirs,
            other.parameters,
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Answer:
    model_name: str = ""
    model_version: str = ""
    id: str = ""
    parameters: dict[str, Exact] = field(default_factory=dict)
    outputs: list[Output] = field(default_factory=list)
    error: str = ""


def quieted(payload: bytes) -> bytes:
    values = np.frombuffer(payload, "<u4").copy()
    values[(values & 0x7FFFFFFF) > 0x7F800000] |= 0x00400000
    return values.tobytes()


def exact(value: object) -> Exact:
    if isinstance(value, float):
        return "float", struct.pack("<d", value)
    return type(value).__name__, value


def parameters_of(entries: MessageMap[str, Any]) -> dict[str, Exact]:
    parameters: dict[str, Exact] = {}
    for key, value in entries.items():
        kind = value.WhichOneof("parameter_choice")
        parameters[key] = exact(None if kind is None else getattr(value, kind))
    return parameters


def bytes_payload(elements: Iterable[bytes]) -> bytes:
    """Encode a BYTES tensor, as Triton's "binary tensor data" extension has it."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def split_bytes_payload(payload: bytes) -> list[bytes]:
    """Take a BYTES tensor apart; struct.error or ValueError if it is cut off."""
    elements: list[bytes] = []
    position = 0
    while position < len(payload):
        (size,) = struct.unpack_from("<I", payload, position)
        position += 4
        if size > len(payload) - position:
            raise ValueError("cut off in the middle of an element")
        elements.append(payload[position : position + size])
        position += size
    return elements


def parse(encoded: bytes) -> ModelInferResponse | None:
    """Have the official package read a response; None if it refuses."""
    message = ModelInferResponse()
    try:
        message.ParseFromString(encoded)
    except DecodeError:
        return None
    return message


def canonical(message: Any) -> bytes:
    """Encode a message in a form that is the same for equal ones; unknown fields are dropped."""
    known = type(message)()
    known.CopyFrom(message)
    known.DiscardUnknownFields()
    encoded: bytes = known.SerializeToString(deterministic=True)
    return encoded


def drops_parameters(message: ModelInferResponse) -> bool:
    """Whether the official package hides parameters that the message has.

    Its C and Python implementations disagree: a map's entry that has an unknown field in it is an
    entry for the one and an unknown field for the other. Ours takes it for an entry.
    """
    return any(
        unknown.field_number == 4 and unknown.wire_type == 2
        for part in (message, *message.outputs)
        for unknown in UnknownFieldSet(part)
    )


def without_parameters(answered: Answer) -> Answer:
    outputs = [replace(output, parameters={}) for output in answered.outputs]
    return replace(answered, parameters={}, outputs=outputs)


def answer(message: ModelInferResponse, shared_memory: Sequence[str] = ()) -> Answer:
    """Return what a response says to a user. Raise RefusedError if it cannot mean anything."""
    raws = list(message.raw_output_contents)
    if len(message.outputs) > MAX_ENTRIES or len(raws) > MAX_ENTRIES:
        raise RefusedError("too many outputs")
    if raws and len(raws) != len(message.outputs):
        raise RefusedError("raw_output_contents does not match outputs")
    if len({output.name for output in message.outputs}) != len(message.outputs):
        raise RefusedError("two outputs of one name")
    parameters = parameters_of(message.parameters)
    if len(parameters) > MAX_ENTRIES:
        raise RefusedError("too many parameters")
    outputs: list[Output] = []
    for index, output in enumerate(message.outputs):
        shape = tuple(output.shape)
        if output.datatype not in DATATYPES:
            raise RefusedError("unknown datatype")
        size = DATATYPES[output.datatype][0]
        if len(shape) > MAX_RANK or any(dimension < 0 for dimension in shape):
            raise RefusedError("impossible shape")
        if math.prod(max(dimension, 1) for dimension in shape) * (size or 8) >= 2**63:
            raise RefusedError("shape too large for any array")
        payload = _payload(output, raws[index] if raws else None, shared_memory)
        if payload is not None:
            count = math.prod(shape)
            if output.datatype == "BYTES":
                try:
                    came = len(split_bytes_payload(payload))
                except (ValueError, struct.error) as error:
                    raise RefusedError("BYTES cut off") from error
                if came != count:
                    raise RefusedError("wrong number of BYTES elements")
            elif len(payload) != count * size:
                raise RefusedError("byte size does not match the shape")
        output_parameters = parameters_of(output.parameters)
        if len(output_parameters) > MAX_ENTRIES:
            raise RefusedError("too many parameters")
        outputs.append(Output(output.name, output.datatype, shape, payload, output_parameters))
    return Answer(message.model_name, message.model_version, message.id, parameters, outputs)


def _payload(
    output: ModelInferResponse.InferOutputTensor, raw: bytes | None, shared_memory: Sequence[str]
) -> bytes | None:
    filled = [name for name in CONTENT_FIELDS if len(getattr(output.contents, name))]
    if raw is not None:
        if filled:
            raise RefusedError("raw and contents")
        return None if not raw and output.name in shared_memory else raw
    if not filled:
        return None if output.name in shared_memory else b""
    if filled != [DATATYPES[output.datatype][1]]:
        raise RefusedError("contents in the wrong field")
    values = getattr(output.contents, filled[0])
    if output.datatype == "BYTES":
        return bytes_payload(values)
    try:
        return struct.pack(f"<{len(values)}{DATATYPES[output.datatype][2]}", *values)
    except struct.error as error:
        raise RefusedError("out of the datatype's range") from error


def pieces(encoded: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """Cut a message at the given places."""
    ends = sorted({min(cut, len(encoded)) for cut in cuts} | {0, len(encoded)})
    for begin, end in itertools.pairwise(ends):
        yield encoded[begin:end]


def every_byte(encoded: bytes) -> range:
    return range(len(encoded))


def decode(
    encoded: bytes,
    cuts: Iterable[int] = (),
    *,
    announced: int | None = None,
    shared_memory: Sequence[str] = (),
    out: Mapping[str, tuple[str, Any]] | None = None,
    envelope: bool = False,
) -> Answer:
    """Have our reader read a response; raises what it raises.

    ``out`` has, by output name, a datatype and an array to be placed.
    """
    response = _wire.Response(shared_memory, envelope=envelope)
    try:
        for name, (datatype, array) in (out or {}).items():
            response.place(name, datatype, array.shape, array)
        response.begin(len(encoded) if announced is None else announced)
        for piece in pieces(encoded, cuts):
            response.feed(piece)
        response.finish()
        error = response.error_message
        model_name, model_version, request_id, parameters, outputs = response.take()
    finally:
        response.release()
    return Answer(
        model_name,
        model_version,
        request_id,
        {key: exact(value) for key, value in parameters.items()},
        [
            Output(
                name,
                datatype,
                shape,
                bytes(payload) if isinstance(payload, _wire.Payload) else payload,
                {key: exact(value) for key, value in own.items()},
            )
            for name, datatype, shape, payload, own in outputs
        ],
        error,
    )
