"""Responses: what ours reads is what the official package reads, from whatever bytes there are.

`wire_oracle.answer` is the other opinion. Where it has one, ours is the same; where it refuses,
ours raises WireError; there is no third.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import wire_fields as wf
from hypothesis import example, given
from hypothesis import strategies as st
from wire_golden import RESPONSES
from wire_oracle import (
    RefusedError,
    answer,
    decode,
    drops_parameters,
    every_byte,
    parse,
    without_parameters,
)
from wire_strategies import altered, cuts, field_soup, mutated, responses

from triton_fast.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tritonclient.grpc.service_pb2 import ModelInferResponse

SAMPLES = [pytest.param(encoded, id=name) for name, encoded in RESPONSES.items()]


def agree(encoded: bytes, cuts: Iterable[int] = (), shared_memory: Sequence[str] = ()) -> str:
    """Compare ours with the official package on any bytes; return what became of them."""
    message = parse(encoded)
    if message is None:
        with pytest.raises(WireError):
            decode(encoded, cuts, shared_memory=shared_memory)
        return "not protobuf"
    try:
        expected = answer(message, shared_memory)
    except RefusedError as refused:
        with pytest.raises(WireError):
            decode(encoded, cuts, shared_memory=shared_memory)
        return str(refused)
    decoded = decode(encoded, cuts, shared_memory=shared_memory)
    if drops_parameters(message):
        decoded, expected = without_parameters(decoded), without_parameters(expected)
    assert decoded == expected
    return "answered"


def verdict(encoded: bytes, cuts: Iterable[int], announced: int) -> object:
    try:
        return decode(encoded, cuts, announced=announced)
    except WireError as error:
        return str(error)


@given(response=responses(), data=st.data())
def test_valid_responses(response: tuple[ModelInferResponse, bytes], data: st.DataObject) -> None:
    """Whatever the layout and however it is cut."""
    message, encoded = response
    official = parse(encoded)
    # The layout is one of this message, or the test would be of something else.
    expected = answer(message)
    assert official is not None
    assert answer(official) == expected
    assert decode(encoded, data.draw(cuts(encoded))) == expected


@given(response=responses())
def test_official_layout(response: tuple[ModelInferResponse, bytes]) -> None:
    """As the official package writes it, whole and byte by byte."""
    message, _ = response
    encoded = message.SerializeToString()
    expected = answer(message)
    assert decode(encoded) == expected
    assert decode(encoded, every_byte(encoded)) == expected


@given(response=responses(), data=st.data())
def test_mutated_responses(response: tuple[ModelInferResponse, bytes], data: st.DataObject) -> None:
    _, encoded = response
    damaged = data.draw(mutated(encoded))
    agree(damaged, data.draw(cuts(damaged)))


@given(response=responses(), data=st.data())
def test_altered_responses(response: tuple[ModelInferResponse, bytes], data: st.DataObject) -> None:
    """Tensors that do not add up, with and without outputs in shared memory."""
    message, _ = response
    encoded = data.draw(altered(message))
    output_names = [output.name for output in message.outputs]
    shared_memory = data.draw(
        st.lists(st.sampled_from(output_names)) if output_names else st.just([])
    )
    agree(encoded, data.draw(cuts(encoded)), shared_memory)


@given(encoded=field_soup(), data=st.data())
def test_fields_without_a_schema(encoded: bytes, data: st.DataObject) -> None:
    agree(encoded, data.draw(cuts(encoded)))


@given(encoded=st.binary(max_size=60))
def test_any_bytes(encoded: bytes) -> None:
    agree(encoded)


@given(response=responses(), data=st.data())
def test_pieces_make_no_difference(
    response: tuple[ModelInferResponse, bytes], data: st.DataObject
) -> None:
    """Not even to what an error says."""
    damaged = data.draw(mutated(response[1]) | st.just(response[1]))
    announced = len(damaged) + data.draw(st.sampled_from([0, 0, 0, 1, 100]))
    whole = verdict(damaged, (), announced)
    assert verdict(damaged, data.draw(cuts(damaged)), announced) == whole
    assert verdict(damaged, every_byte(damaged), announced) == whole


@pytest.mark.parametrize("encoded", SAMPLES)
def test_cut_in_two_anywhere(encoded: bytes) -> None:
    expected = decode(encoded)
    for cut in every_byte(encoded):
        assert decode(encoded, [cut]) == expected


@pytest.mark.parametrize("encoded", SAMPLES)
def test_truncated_everywhere(encoded: bytes) -> None:
    """A message that ends early: announced as long as it is, and as long as it should have been."""
    answered = 0
    for size in every_byte(encoded):
        answered += agree(encoded[:size]) == "answered"
        with pytest.raises(WireError, match=f"ends after {size} of {len(encoded)} bytes"):
            decode(encoded[:size], announced=len(encoded))
    # Some prefixes are messages of their own, an empty one to begin with.
    assert 1 <= answered < len(encoded)


@pytest.mark.parametrize("encoded", SAMPLES)
def test_every_bit_flipped(encoded: bytes) -> None:
    for at in range(min(len(encoded), 200)):
        for bit in range(8):
            damaged = bytearray(encoded)
            damaged[at] ^= 1 << bit
            agree(bytes(damaged))


def test_the_oracle_sees_every_kind() -> None:
    """The comparison is of answers and of refusals, of both sorts."""
    good = RESPONSES["response_raw"]
    assert agree(good) == "answered"
    assert agree(good + wf.raw(b"")) == "raw_output_contents does not match outputs"
    assert agree(good[:-1]) == "not protobuf"


@pytest.mark.parametrize("depth", [1, 2, 50, 98, 99, 100, 101, 102])
@pytest.mark.parametrize("level", ["response", "output", "contents", "entry", "value"])
def test_nested_groups(depth: int, level: str) -> None:
    """As deep as the official package goes, and no deeper; messages around them count."""
    groups = wf.tag(99, wf.GROUP) * depth + wf.tag(99, wf.END_GROUP) * depth
    encoded = {
        "response": groups,
        "output": wf.output("y", "FP32", [0], groups),
        "contents": wf.output("y", "FP32", [0], wf.contents(groups)),
        "entry": wf.text(4, wf.text(1, "key") + groups),
        "value": wf.entry(4, "key", groups),
    }[level]
    agree(encoded)


def test_entry_with_unknown_fields() -> None:
    """Unknown fields are skipped, in the entries of a map as elsewhere."""
    value = wf.text(2, wf.number(1, 1))
    for encoded, key in (
        (wf.text(4, wf.text(1, "key") + wf.number(9, 1) + value), "key"),
        (wf.text(4, value + wf.group(1, b"") + wf.text(1, "key") + wf.text(77, b"")), "key"),
        (wf.text(4, wf.number(1, 5) + value), ""),
    ):
        assert decode(encoded).parameters == {key: ("bool", True)}
        in_output = wf.output("y", "FP32", [0], encoded)
        assert decode(in_output).outputs[0].parameters == {key: ("bool", True)}
        message = parse(encoded)
        assert message is not None
        # With the C implementation the oracle does not know them.
        assert drops_parameters(message) != bool(message.parameters)


@given(padding=st.integers(0, 12), value=st.sampled_from([0, 1, 127, 128, 2**32, 2**64 - 1]))
@example(padding=9, value=1)
def test_padded_varints(padding: int, value: int) -> None:
    """Longer than they need to be: as a number, a length, a tag, an element."""
    agree(wf.number(99, value, padding))
    agree(wf.text(1, b"name", padding))
    agree(wf.text(99, b"skipped", padding))
    agree(wf.text(6, b"", padding))
    agree(wf.tag(1, wf.LENGTH, padding) + b"\x04name")
    agree(wf.tag(99, wf.VARINT, padding) + b"\x01")
    dimension = wf.varint(0, padding)
    agree(wf.output("y", "FP32", None, wf.text(3, dimension)))
    agree(wf.output("y", "FP32", None, wf.tag(3, wf.VARINT) + dimension))
    agree(wf.output("y", "INT64", [1], wf.contents(wf.text(3, wf.varint(value, padding)))))
    agree(wf.output("y", "BOOL", [1], wf.contents(wf.number(1, value, padding))))
    agree(wf.output("y", "INT32", [1], wf.contents(wf.number(2, value, padding))))
    agree(wf.entry(4, "key", wf.number(1, value, padding)))


@pytest.mark.parametrize(
    "encoded",
    [
        b"\xff" * 9 + b"\x01" + b"\x00",  # a tag of 64 bits
        b"\x8a\x80\x80\x80\x10" + b"\x01x",  # model_name, and a bit that no tag has
        b"\x8a\x80\x80\x80\x80\x00" + b"\x01x",  # model_name in a tag of six bytes
        b"\x0a\x81\x80\x80\x80\x80\x00" + b"x",  # its length in six bytes
        b"\xf8\xff\xff\xff\x0f\x01",  # the highest field number
        b"\xf8\xff\xff\xff\x1f\x01",
        b"\x00\x01",  # field 0
        b"\x07\x01",
        b"\x0e\x01",  # wire type 6
        b"\x0f\x01",
        b"\x0b\x14",  # a group that ends as another
        b"\x0c",
        b"\x0b",
    ],
)
def test_odd_tags(encoded: bytes) -> None:
    agree(encoded)
    agree(wf.output("y", "FP32", [0], encoded))
    agree(wf.group(50, encoded))
    agree(wf.text(50, encoded))


@given(text=st.binary(max_size=6) | st.text(max_size=3).map(str.encode))
@example(text=b"\xed\xa0\x80")
@example(text=b"\xed\x9f\xbf")
@example(text=b"\xee\x80\x80")
@example(text=b"\xc0\x80")
@example(text=b"\xc1\xbf")
@example(text=b"\xc2\x80")
@example(text=b"\xdf\xbf")
@example(text=b"\xe0\x9f\xbf")
@example(text=b"\xe0\xa0\x80")
@example(text=b"\xf0\x8f\xbf\xbf")
@example(text=b"\xf0\x90\x80\x80")
@example(text=b"\xf4\x8f\xbf\xbf")
@example(text=b"\xf4\x90\x80\x80")
@example(text=b"\xf5\x80\x80\x80")
@example(text=b"\xe2\x82")
@example(text=b"\xff")
@example(text=b"a\x80")
def test_text(text: bytes) -> None:
    """Whatever is UTF-8 to the official package is UTF-8 to ours, in every string field."""
    encoded_forms = [
        wf.text(1, text),
        wf.text(2, text),
        wf.text(3, text),
        wf.text(1, text) + wf.text(1, b"stale"),
        wf.entry(4, text, b""),
        wf.entry(4, "key", wf.text(3, text)),
        wf.entry(4, "key", wf.text(3, text) + wf.number(1, 1)),
        wf.output("", "FP32", [0], wf.text(1, text)),
        wf.output("y", "FP32", [0], wf.text(4, wf.text(1, text))),
        # A string in a field that is none of ours may be anything.
        wf.text(77, text),
    ]
    for encoded in encoded_forms:
        agree(encoded)
        agree(encoded, every_byte(encoded))
    try:
        text.decode()
    except UnicodeDecodeError:
        assert agree(encoded_forms[0]) == "not protobuf"
    else:
        assert agree(encoded_forms[0]) == "answered"


def test_all_two_byte_texts() -> None:
    """And all of three bytes that a surrogate or an overlong form could be mistaken for."""
    for lead in range(256):
        for second in range(256):
            encoded = wf.text(
                3, bytes([lead, second]) + b"\x80" * (lead >= 0xE0) + b"\x80" * (lead >= 0xF0)
            )
            official = parse(encoded)
            if official is None:
                with pytest.raises(WireError, match=r"\.id is not UTF-8"):
                    decode(encoded)
            else:
                assert decode(encoded).id == official.id
