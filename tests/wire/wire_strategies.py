"""Strategies for hypothesis: requests, responses in every layout that is allowed, hostile bytes."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import wire_fields as wf
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferRequest, ModelInferResponse
from wire_oracle import CONTENT_FIELDS, DATATYPES, bytes_payload

if TYPE_CHECKING:
    from collections.abc import Sequence

INT64_MIN, INT64_MAX, UINT64_MAX = -(2**63), 2**63 - 1, 2**64 - 1

# Any text that UTF-8 can hold, NULs and astral characters among it.
texts = st.text(max_size=12) | st.sampled_from(["", "x", "Größe", "输入", "🜚" * 3, "a\0b", "/-_.:"])
names = st.text(min_size=1, max_size=8) | st.sampled_from(["INPUT0", "naïve", "x" * 200])
int64s = st.integers(INT64_MIN, INT64_MAX) | st.sampled_from([0, 1, -1, INT64_MIN, INT64_MAX])
uint64s = st.integers(0, UINT64_MAX) | st.sampled_from([0, 1, 2**63, UINT64_MAX])
doubles = st.floats() | st.sampled_from(
    [0.0, -0.0, 5e-324, float("inf"), float("-inf"), float("nan")]
)
plain_parameters = st.booleans() | int64s | doubles | texts
parameter_maps = st.dictionaries(texts, plain_parameters, max_size=4)


@st.composite
def shapes(draw: st.DrawFn, most: int = 48) -> tuple[int, ...]:
    """Draw a shape of any rank with few elements, or with none."""
    if draw(st.integers(0, 9)) == 9:
        # Ranks that nobody uses, and dimensions that need long varints.
        return draw(
            st.sampled_from([(1,) * 32, (0, 2**40), (2**31, 0, 7), (1,) * 20 + (3,), (0,) * 9])
        )
    shape: list[int] = []
    for _ in range(draw(st.integers(0, 5))):
        room = most // math.prod(max(dimension, 1) for dimension in shape)
        shape.append(draw(st.integers(0, min(room, 6))))
    return tuple(shape)


def payloads(datatype: str, count: int) -> st.SearchStrategy[bytes]:
    """Draw the raw elements of a tensor."""
    if datatype == "BYTES":
        element = st.binary(max_size=9) | st.just(b"\0" * 130) | texts.map(str.encode)
        return st.lists(element, min_size=count, max_size=count).map(bytes_payload)
    size = count * DATATYPES[datatype][0]
    return st.binary(min_size=size, max_size=size)


# ------------------------------------------------------------------------------------------------
# Requests
# ------------------------------------------------------------------------------------------------


@dataclass
class RequestCase:
    """The arguments of one request."""

    model_name: str
    model_version: str
    request_id: str
    parameters: dict[str, Any] | None
    priority: int
    queue_timeout_us: int | None
    outputs: list[tuple[str, dict[str, Any] | None]]
    inputs: list[tuple[str, str, tuple[int, ...], bytes | None, dict[str, Any] | None]]


@st.composite
def requests(draw: st.DrawFn) -> RequestCase:
    optional_parameters = st.none() | parameter_maps
    inputs = []
    for _ in range(draw(st.integers(0, 4))):
        datatype = draw(st.sampled_from(list(DATATYPES)))
        shape = draw(shapes())
        in_shared_memory = draw(st.integers(0, 4)) == 0
        payload = None if in_shared_memory else draw(payloads(datatype, math.prod(shape)))
        inputs.append((draw(names), datatype, shape, payload, draw(optional_parameters)))
    return RequestCase(
        model_name=draw(names),
        model_version=draw(st.sampled_from(["", "1", "9223372036854775807"]) | texts),
        request_id=draw(texts),
        parameters=draw(optional_parameters),
        priority=draw(uint64s),
        queue_timeout_us=draw(st.none() | int64s),
        outputs=draw(st.lists(st.tuples(names, optional_parameters), max_size=4)),
        inputs=inputs,
    )


def set_parameter(message: Any, value: object) -> None:
    """Set an InferParameter's choice by the value's Python type."""
    if value is None:
        message.SetInParent()
    elif isinstance(value, bool):
        message.bool_param = value
    elif isinstance(value, int):
        message.int64_param = value
    elif isinstance(value, float):
        message.double_param = value
    else:
        message.string_param = value


def official_request(case: RequestCase) -> ModelInferRequest:
    """Build the request with the official package."""
    message = ModelInferRequest(
        model_name=case.model_name, model_version=case.model_version, id=case.request_id
    )
    for key, value in (case.parameters or {}).items():
        set_parameter(message.parameters[key], value)
    if case.priority:
        message.parameters["priority"].uint64_param = case.priority
    if case.queue_timeout_us is not None:
        message.parameters["timeout"].int64_param = case.queue_timeout_us
    for name, parameters in case.outputs:
        output = message.outputs.add(name=name)
        for key, value in (parameters or {}).items():
            set_parameter(output.parameters[key], value)
    for name, datatype, shape, payload, parameters in case.inputs:
        tensor = message.inputs.add(name=name, datatype=datatype, shape=shape)
        for key, value in (parameters or {}).items():
            set_parameter(tensor.parameters[key], value)
        if payload is not None:
            message.raw_input_contents.append(payload)
    return message


# ------------------------------------------------------------------------------------------------
# Responses
# ------------------------------------------------------------------------------------------------

# Which wire types each known field takes; with any other it is an unknown field.
RESPONSE_FIELDS = {field: {wf.LENGTH} for field in range(1, 7)}
OUTPUT_FIELDS = {field: {wf.LENGTH} for field in (1, 2, 4, 5)} | {3: {wf.VARINT, wf.LENGTH}}
CONTENTS_FIELDS = {field: {wf.VARINT, wf.LENGTH} for field in range(1, 6)} | {
    6: {wf.FIXED32, wf.LENGTH},
    7: {wf.FIXED64, wf.LENGTH},
    8: {wf.LENGTH},
}
VALUE_FIELDS = {
    1: {wf.VARINT},
    2: {wf.VARINT},
    3: {wf.LENGTH},
    4: {wf.FIXED64},
    5: {wf.VARINT},
}

paddings = st.sampled_from([0] * 8 + [1, 4, 2])


@st.composite
def unknown_fields(draw: st.DrawFn, known: dict[int, set[int]], depth: int = 0) -> bytes:
    """Draw a field that this message does not have, of any wire type."""
    field = draw(st.integers(1, 12) | st.sampled_from([15, 16, 2047, 2048, 2**29 - 1]))
    allowed = {wf.VARINT, wf.FIXED64, wf.LENGTH, wf.GROUP, wf.FIXED32} - known.get(field, set())
    wire_type = draw(st.sampled_from(sorted(allowed)))
    if wire_type == wf.VARINT:
        return wf.number(field, draw(uint64s))
    if wire_type == wf.FIXED64:
        return wf.fixed64(field, draw(st.binary(min_size=8, max_size=8)))
    if wire_type == wf.FIXED32:
        return wf.fixed32(field, draw(st.binary(min_size=4, max_size=4)))
    if wire_type == wf.LENGTH:
        return wf.text(field, draw(st.binary(max_size=20)))
    if depth == 3:
        return wf.group(field)
    # Inside a group every field is unknown, whatever its number.
    return wf.group(field, *draw(st.lists(unknown_fields({}, depth + 1), max_size=3)))


@st.composite
def interleaved(
    draw: st.DrawFn, tracks: Sequence[Sequence[bytes]], known: dict[int, set[int]] | None
) -> bytes:
    """Join fields in any order that keeps each track's own, with unknown ones in between."""
    everything = [list(track) for track in tracks]
    if known is not None and draw(st.integers(0, 3)) == 0:
        everything += [[junk] for junk in draw(st.lists(unknown_fields(known), max_size=3))]
    order = [index for index, track in enumerate(everything) for _ in track]
    if draw(st.booleans()):
        order = draw(st.permutations(order))
    waiting = [iter(track) for track in everything]
    return b"".join(next(waiting[index]) for index in order)


@st.composite
def text_fields(draw: st.DrawFn, field: int, value: str) -> list[bytes]:
    """Write a string field: perhaps after a stale one, perhaps not at all if it is empty."""
    fields = [wf.text(field, stale) for stale in draw(st.lists(texts, max_size=1))]
    if value or fields or draw(st.booleans()):
        fields.append(wf.text(field, value, draw(paddings)))
    return fields


response_parameters = st.none() | plain_parameters | uint64s.map(lambda value: ("uint64", value))


@st.composite
def choice_field(draw: st.DrawFn, value: Any) -> bytes:
    """Write a member of InferParameter's oneof."""
    if value is None:
        return b""
    if isinstance(value, tuple):
        return wf.number(5, value[1])
    if isinstance(value, bool):
        # Whatever is not zero is true.
        return wf.number(1, draw(uint64s.filter(bool)) if value else 0)
    if isinstance(value, int):
        return wf.number(2, value)
    if isinstance(value, float):
        return wf.double(4, value)
    return wf.text(3, value, draw(paddings))


@st.composite
def entry_fields(draw: st.DrawFn, field: int, key: str, value: Any) -> bytes:
    """Write an entry of a parameter map; its value perhaps in pieces, which protobuf merges."""
    choices = []
    if value is not None:
        stale = draw(st.lists(plain_parameters, max_size=1))
        choices = [draw(choice_field(choice)) for choice in [*stale, value]]
    values = []
    if draw(st.integers(0, 5)) == 0:
        values = [wf.text(2, choice) for choice in choices] + [wf.text(2, b"")]
    else:
        body = draw(interleaved([choices], VALUE_FIELDS))
        if body or draw(st.booleans()):
            values = [wf.text(2, body, draw(paddings))]
    # No unknown fields here: see drops_parameters().
    body = draw(interleaved([draw(text_fields(1, key)), values], None))
    return wf.text(field, body, draw(paddings))


@st.composite
def parameter_fields(draw: st.DrawFn, field: int, parameters: dict[str, Any]) -> list[bytes]:
    entries = []
    for key, value in parameters.items():
        if draw(st.integers(0, 4)) == 0:
            entries.append(draw(entry_fields(field, key, draw(plain_parameters))))
        entries.append(draw(entry_fields(field, key, value)))
    return entries


@st.composite
def number_chunks(draw: st.DrawFn, field: int, numbers: list[bytes], wire_type: int) -> list[bytes]:
    """Write a repeated number: packed, unpacked, or some of each."""
    chunks = []
    rest = numbers
    while rest:
        size = draw(st.just(len(rest)) | st.integers(1, len(rest)))
        chunk, rest = rest[:size], rest[size:]
        if draw(st.integers(0, 3)) == 0:
            chunks += [wf.tag(field, wire_type) + number for number in chunk]
        else:
            chunks.append(wf.text(field, b"".join(chunk), draw(paddings)))
    if draw(st.integers(0, 7)) == 0:
        chunks.insert(draw(st.integers(0, len(chunks))), wf.text(field, b""))
    return chunks


def typed_elements(datatype: str, count: int) -> st.SearchStrategy[list[Any]]:
    """Draw elements for InferTensorContents."""
    if datatype == "BYTES":
        element: st.SearchStrategy[Any] = st.binary(max_size=9) | st.just(b"\xff" * 200)
    elif datatype == "BOOL":
        element = st.booleans()
    elif datatype == "FP32":
        element = st.floats(width=32)
    elif datatype == "FP64":
        element = st.floats()
    else:
        bits = 8 * DATATYPES[datatype][0]
        low = 0 if datatype[0] == "U" else -(2 ** (bits - 1))
        high = low + 2**bits - 1
        element = st.integers(low, high) | st.sampled_from([low, high])
    return st.lists(element, min_size=count, max_size=count)


@st.composite
def contents_fields(draw: st.DrawFn, datatype: str, elements: list[Any]) -> list[bytes]:
    """Write a tensor's InferTensorContents, perhaps in several messages, which protobuf merges."""
    field = CONTENT_FIELDS.index(DATATYPES[datatype][1]) + 1
    if datatype == "BYTES":
        chunks = [wf.text(field, element, draw(paddings)) for element in elements]
    elif datatype == "FP32":
        numbers = [struct.pack("<f", element) for element in elements]
        chunks = draw(number_chunks(field, numbers, wf.FIXED32))
    elif datatype == "FP64":
        numbers = [struct.pack("<d", element) for element in elements]
        chunks = draw(number_chunks(field, numbers, wf.FIXED64))
    else:
        # The official writer gives a negative int32 ten bytes; some others give it five.
        short = datatype in {"INT8", "INT16", "INT32"} and draw(st.integers(0, 3)) == 0
        mask = 0xFFFFFFFF if short else UINT64_MAX
        numbers = [wf.varint(int(element) & mask) for element in elements]
        if draw(st.integers(0, 3)) == 0:
            # Longer than it need be, up to the ten bytes that there are.
            numbers = [
                wf.varint(int(element) & mask, padding=len(number) < 10)
                for element, number in zip(elements, numbers, strict=True)
            ]
        chunks = draw(number_chunks(field, numbers, wf.VARINT))
    cut = draw(st.just(len(chunks)) | st.integers(0, len(chunks)))
    bodies = [
        draw(interleaved([part], CONTENTS_FIELDS)) for part in (chunks[:cut], chunks[cut:]) if part
    ]
    if not bodies and draw(st.booleans()):
        bodies = [b""]
    return [wf.text(5, body, draw(paddings)) for body in bodies]


@st.composite
def responses(draw: st.DrawFn) -> tuple[ModelInferResponse, bytes]:
    """Draw a valid response: as the official package builds it, and in one of its many layouts."""
    message = ModelInferResponse(model_name=draw(texts), model_version=draw(texts), id=draw(texts))
    parameters = draw(st.dictionaries(texts, response_parameters, max_size=3))
    _set_parameters(message.parameters, parameters)

    is_raw = draw(st.booleans())
    output_names = draw(st.lists(texts, unique=True, max_size=4))
    outputs = []
    raws = []
    for name in output_names:
        shape = draw(shapes())
        count = math.prod(shape)
        # FP16 and BF16 have no typed form.
        datatype = draw(
            st.sampled_from(
                [known for known in DATATYPES if is_raw or count == 0 or DATATYPES[known][1]]
            )
        )
        output = message.outputs.add(name=name, datatype=datatype, shape=shape)
        own = draw(st.dictionaries(texts, response_parameters, max_size=2))
        _set_parameters(output.parameters, own)
        fields = [
            draw(text_fields(1, name)),
            draw(text_fields(2, datatype)),
            draw(number_chunks(3, [wf.varint(dimension) for dimension in shape], wf.VARINT)),
            draw(parameter_fields(4, own)),
        ]
        if is_raw:
            payload = draw(payloads(datatype, count))
            message.raw_output_contents.append(payload)
            raws.append(wf.text(6, payload, draw(paddings)))
            if draw(st.integers(0, 9)) == 0:
                fields.append([wf.contents()])
        elif count:
            elements = draw(typed_elements(datatype, count))
            getattr(output.contents, DATATYPES[datatype][1]).extend(elements)
            fields.append(draw(contents_fields(datatype, elements)))
        outputs.append(wf.text(5, draw(interleaved(fields, OUTPUT_FIELDS)), draw(paddings)))
    encoded = draw(
        interleaved(
            [
                draw(text_fields(1, message.model_name)),
                draw(text_fields(2, message.model_version)),
                draw(text_fields(3, message.id)),
                draw(parameter_fields(4, parameters)),
                outputs,
                raws,
            ],
            RESPONSE_FIELDS,
        )
    )
    return message, encoded


def _set_parameters(entries: Any, parameters: dict[str, Any]) -> None:
    for key, value in parameters.items():
        if isinstance(value, tuple):
            entries[key].uint64_param = value[1]
        else:
            set_parameter(entries[key], value)


@st.composite
def cuts(draw: st.DrawFn, encoded: bytes) -> list[int]:
    """Draw where to cut a message into pieces: nowhere, somewhere, or everywhere."""
    everywhere = draw(st.integers(0, 3)) == 0
    if everywhere:
        return list(range(len(encoded)))
    return draw(st.lists(st.integers(0, len(encoded)), max_size=6))


# ------------------------------------------------------------------------------------------------
# Hostile bytes
# ------------------------------------------------------------------------------------------------

# Numbers that are where lengths, tags and varints go wrong.
EDGES = [
    b"\x00",
    b"\x7f",
    b"\x80",
    b"\xff",
    wf.varint(2**31 - 1),
    wf.varint(2**31),
    wf.varint(2**32),
    wf.varint(UINT64_MAX),
    b"\xff" * 10,
    b"\xff" * 9 + b"\x7f",
    b"\x80" * 9 + b"\x02",
    b"\x80" * 5 + b"\x00",
]


@st.composite
def mutated(draw: st.DrawFn, encoded: bytes) -> bytes:
    """Damage a message in a few places."""
    damaged = bytearray(encoded)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(damaged)))
        end = min(len(damaged), at + draw(st.integers(0, 8)))
        kind = draw(st.sampled_from(["flip", "set", "insert", "delete", "copy", "field"]))
        if kind == "flip" and at < len(damaged):
            damaged[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and at < len(damaged):
            damaged[at] = draw(st.integers(0, 255))
        elif kind == "insert":
            damaged[at:at] = draw(st.binary(max_size=6) | st.sampled_from(EDGES))
        elif kind == "delete":
            del damaged[at:end]
        elif kind == "copy":
            to = draw(st.integers(0, len(damaged)))
            damaged[to:to] = damaged[at:end]
        elif kind == "field":
            damaged[at:at] = draw(unknown_fields({}))
    return bytes(damaged)


@st.composite
def altered(draw: st.DrawFn, message: ModelInferResponse) -> bytes:
    """Make a message that is protobuf all right, and perhaps no answer any more."""
    altered = ModelInferResponse()
    altered.CopyFrom(message)
    raws = altered.raw_output_contents
    for _ in range(draw(st.integers(1, 2))):
        if not altered.outputs:
            altered.outputs.add(name="y", datatype="INT8", shape=(1,))
        output = draw(st.sampled_from(list(altered.outputs)))
        kind = draw(st.sampled_from(["shape", "datatype", "name", "raw", "contents", "output"]))
        if kind == "shape":
            shape = list(output.shape)
            at = draw(st.integers(0, len(shape)))
            shape[at : at + draw(st.integers(0, 1))] = draw(
                st.lists(st.integers(-1, 4) | st.sampled_from([2**31, 2**62]), max_size=2)
            )
            output.shape[:] = shape
        elif kind == "datatype":
            output.datatype = draw(st.sampled_from([*DATATYPES, "", "FP8", "TYPE_FP32"]))
        elif kind == "name":
            output.name = draw(st.sampled_from([other.name for other in altered.outputs] + ["z"]))
        elif kind == "raw":
            if not raws:
                raws.append(draw(st.binary(max_size=4)))
            else:
                at = draw(st.integers(0, len(raws) - 1))
                raws[at : at + 1] = draw(
                    st.sampled_from(
                        [[], [raws[at][:-1]], [raws[at] + b"\0"], [raws[at] + bytes(4)], [b"", b""]]
                    )
                )
        elif kind == "contents":
            field = draw(st.sampled_from(CONTENT_FIELDS))
            special: dict[str, list[Any]] = {
                "bool_contents": [True],
                "int_contents": [127, 128, -129, 40000, -1],
                "uint_contents": [255, 256, 65536, 1],
                "bytes_contents": [b"", b"x"],
            }
            values = special.get(field, [1])
            getattr(output.contents, field).append(draw(st.sampled_from(values)))
        else:
            altered.outputs.add().CopyFrom(output)
            if raws and draw(st.booleans()):
                raws.append(draw(st.sampled_from(list(raws))))
    return bytes(altered.SerializeToString())


@st.composite
def field_soup(draw: st.DrawFn, depth: int = 0) -> bytes:
    """Draw a message of well-formed fields that follow no schema, many of them nested."""
    soup = []
    for _ in range(draw(st.integers(0, 5))):
        field = draw(st.integers(1, 8))
        kind = draw(st.sampled_from(["number", "32", "64", "text", "nested", "group", "datatype"]))
        if kind == "number":
            soup.append(wf.number(field, draw(uint64s | st.integers(0, 3)), draw(paddings) // 2))
        elif kind == "32":
            soup.append(wf.fixed32(field, draw(st.binary(min_size=4, max_size=4))))
        elif kind == "64":
            soup.append(wf.fixed64(field, draw(st.binary(min_size=8, max_size=8))))
        elif kind == "text":
            soup.append(wf.text(field, draw(st.binary(max_size=8))))
        elif kind == "datatype":
            soup.append(wf.text(2, draw(st.sampled_from(list(DATATYPES)))))
        elif depth < 4:
            body = draw(field_soup(depth + 1))
            soup.append(wf.group(field, body) if kind == "group" else wf.text(field, body))
    return b"".join(soup)


# ------------------------------------------------------------------------------------------------
# Strings
# ------------------------------------------------------------------------------------------------

string_elements = st.lists(st.binary(max_size=20) | st.text(max_size=8), max_size=30)


def numpy_strings(elements: Sequence[str | bytes]) -> np.ndarray[Any, np.dtype[np.object_]]:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array
