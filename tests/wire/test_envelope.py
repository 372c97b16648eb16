"""A stream's messages: the error, and the response inside, as the official package reads them."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import wire_fields as wf
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.grpc.service_pb2 import ModelInferResponse, ModelStreamInferResponse
from wire_oracle import (
    Answer,
    RefusedError,
    answer,
    decode,
    drops_parameters,
    every_byte,
    without_parameters,
)
from wire_strategies import cuts, mutated, responses

from triton_fast._core import _wire
from triton_fast.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Iterable

ERROR, RESPONSE = 1, 2
# What is inside is read as it is anywhere: test_oracle.py looks at it more closely.
fewer = settings(max_examples=settings.default.max_examples * 2 // 5)


def looks_bare(message: ModelStreamInferResponse) -> bool:
    """Whether there are fields that the envelope has not, and a ModelInferResponse has."""
    return any(
        field.wire_type == wf.LENGTH and 3 <= field.field_number <= 6
        for field in UnknownFieldSet(message)
    )


def agree(encoded: bytes, where: Iterable[int]) -> None:
    """Compare ours with the official package on any bytes."""
    message = ModelStreamInferResponse()
    try:
        message.ParseFromString(encoded)
        if looks_bare(message):
            with contextlib.suppress(WireError):
                decode(encoded, where, envelope=True)
            return
        inner = message.infer_response
        expected = replace(answer(inner), error=message.error_message)
    except (DecodeError, RefusedError):
        with pytest.raises(WireError):
            decode(encoded, where, envelope=True)
        return
    decoded = decode(encoded, where, envelope=True)
    if drops_parameters(inner):
        decoded, expected = without_parameters(decoded), without_parameters(expected)
    assert decoded == expected


@fewer
@given(response=responses(), error=st.text(max_size=30), data=st.data())
def test_valid_messages(
    response: tuple[ModelInferResponse, bytes], error: str, data: st.DataObject
) -> None:
    """Error before the response or after it, whatever the layout and however it is cut."""
    message, inner = response
    parts = [wf.text(ERROR, error), wf.text(RESPONSE, inner)]
    encoded = b"".join(data.draw(st.permutations(parts)))
    expected = replace(answer(message), error=error)
    assert decode(encoded, data.draw(cuts(encoded)), envelope=True) == expected


@fewer
@given(response=responses(), data=st.data())
def test_mutated_messages(response: tuple[ModelInferResponse, bytes], data: st.DataObject) -> None:
    encoded = wf.text(ERROR, "x") + wf.text(RESPONSE, response[1])
    damaged = data.draw(mutated(encoded))
    agree(damaged, data.draw(cuts(damaged)))


def test_response_in_two_parts() -> None:
    """The same field again goes on with the message, as protobuf has it."""
    first = wf.text(1, "m") + wf.output("y", "UINT8", [2])
    second = wf.text(3, "id") + wf.raw(b"ab")
    encoded = wf.text(RESPONSE, first) + wf.text(RESPONSE, second)
    agree(encoded, every_byte(encoded))
    decoded = decode(encoded, envelope=True)
    assert (decoded.model_name, decoded.id) == ("m", "id")
    assert decoded.outputs[0].payload == b"ab"


@fewer
@given(response=responses(), data=st.data())
def test_responses_without_an_envelope(
    response: tuple[ModelInferResponse, bytes], data: st.DataObject
) -> None:
    """As servers send them whose service returns a stream of ModelInferResponse."""
    message, _ = response
    message.model_version = message.model_version[:50]
    encoded = message.SerializeToString()
    if not (message.id or message.parameters or message.outputs or message.raw_output_contents):
        return  # a name alone may be an error
    expected = answer(message)
    if not message.model_name and message.model_version:
        with contextlib.suppress(WireError):  # a version alone is read as an envelope's response
            decode(encoded, envelope=True)
        return
    assert decode(encoded, data.draw(cuts(encoded)), envelope=True) == expected
    assert decode(encoded, every_byte(encoded), envelope=True) == expected


def test_error_and_a_response_in_three_parts() -> None:
    """The first is held until it is clear what it is."""
    parts = [wf.text(1, "m"), wf.text(3, "id"), wf.text(4, wf.text(1, "p"))]
    inside = [wf.text(RESPONSE, part) for part in parts]
    for encoded in (
        wf.text(ERROR, "no") + b"".join(inside),
        wf.text(ERROR, "no") + inside[0] + wf.text(RESPONSE, b"") + inside[1],
        wf.text(ERROR, "no") + inside[0] + wf.text(ERROR, "never") + inside[1] + wf.text(9, "x"),
        wf.text(ERROR, "no") + wf.text(RESPONSE, b"\xff"),
        wf.text(ERROR, "no") + wf.text(RESPONSE, parts[0] * 200) + inside[1],
    ):
        agree(encoded, every_byte(encoded))
        agree(encoded, ())


def test_error_alone() -> None:
    assert decode(wf.text(ERROR, "no"), envelope=True) == Answer(error="no")
    assert decode(b"", envelope=True) == Answer()


@pytest.mark.parametrize(
    ("encoded", "fault"),
    [
        (wf.text(ERROR, b"\xff"), "ModelStreamInferResponse.error_message is not UTF-8"),
        (wf.tag(RESPONSE, wf.LENGTH) + b"\x05", "ModelStreamInferResponse.infer_response says"),
        (
            wf.text(RESPONSE, wf.text(1, b"\xff")),
            "ModelInferResponse.model_name is not UTF-8",
        ),
        (
            wf.text(RESPONSE, wf.text(5, wf.text(1, b"\xff"))),
            r"ModelInferResponse.outputs\[0\].name is not UTF-8",
        ),
        (b"\x00", "ModelStreamInferResponse has a tag"),
        (
            wf.text(1, "m") + wf.text(2, b"\xff") + wf.text(3, "id"),
            "ModelInferResponse.model_version is not UTF-8",
        ),
    ],
)
def test_faults_have_names(encoded: bytes, fault: str) -> None:
    with pytest.raises(WireError, match=fault):
        decode(encoded, envelope=True)


def test_made_once() -> None:
    """A channel may be reading into it."""
    response = _wire.Response(envelope=True)
    with pytest.raises(TypeError, match="made once"):
        response.__init__()  # type: ignore[misc]  # that is the point
    with pytest.raises(TypeError, match="__init__"):
        _wire.Response.__new__(_wire.Response).begin(0)
