"""Responses: what each fault is called, where the elements go, and what memory that takes."""

from __future__ import annotations

import math
import os
import struct
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
import wire_fields as wf
from support.bystander import Bystander
from tritonclient.grpc.service_pb2 import ModelInferResponse
from wire_oracle import DATATYPES, Answer, Output, bytes_payload, decode, every_byte, pieces

from triton_fast._core import _wire
from triton_fast.errors import ClosedError, InvalidOption, InvalidTensor, WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def value(datatype: str, shape: Sequence[int], payload: bytes, name: str = "y") -> bytes:
    """Encode a response with one output in raw contents."""
    return wf.output(name, datatype, shape) + wf.raw(payload)


def typed(datatype: str, shape: Sequence[int], *body: bytes) -> bytes:
    """Encode a response with one output in typed contents."""
    return wf.output("y", datatype, shape, wf.contents(*body))


def only_output(encoded: bytes) -> Output:
    (output,) = decode(encoded).outputs
    return output


# ------------------------------------------------------------------------------------------------
# Values
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", [name for name in DATATYPES if name != "BYTES"])
def test_raw_bits(datatype: str) -> None:
    """Raw elements are taken as they are, NaN payloads and all."""
    size = DATATYPES[datatype][0]
    payload = np.random.default_rng(2).bytes(6 * size)
    output = only_output(value(datatype, [2, 3], payload))
    assert (output.datatype, output.shape, output.payload) == (datatype, (2, 3), payload)


@pytest.mark.parametrize("bits", [0x7F800001, 0xFFC12345, 0x7FBFFFFF, 0x00000001, 0x80000000])
@pytest.mark.parametrize("is_packed", [True, False])
def test_typed_fp32_bits(bits: int, is_packed: bool) -> None:
    """Signalling NaNs too, which the official package cannot show: it goes through a double."""
    element = struct.pack("<I", bits)
    body = wf.text(6, element) if is_packed else wf.fixed32(6, element)
    assert only_output(typed("FP32", [1], body)).payload == element


@pytest.mark.parametrize("bits", [0x7FF0000000000001, 0xFFF8000012345678, 1])
def test_typed_fp64_bits(bits: int) -> None:
    element = struct.pack("<Q", bits)
    assert only_output(typed("FP64", [1], wf.fixed64(7, element))).payload == element
    encoded = typed("FP64", [2], wf.text(7, element * 2))
    assert decode(encoded, every_byte(encoded)).outputs[0].payload == element * 2


def test_many_typed_elements() -> None:
    """Enough of them for the memory to grow many times, in one piece and in many."""
    numbers = np.random.default_rng(3).integers(-(2**63), 2**63, 100_000)
    message = ModelInferResponse()
    output = message.outputs.add(name="i", datatype="INT64", shape=(100_000,))
    output.contents.int64_contents.extend(numbers.tolist())
    floats = message.outputs.add(name="f", datatype="FP32", shape=(100, 1000))
    floats.contents.fp32_contents.extend(numbers.astype(np.float32).tolist())
    encoded = message.SerializeToString()
    expected = [numbers.tobytes(), numbers.astype(np.float32).tobytes()]
    for step in (len(encoded), 1 << 16, 4093):
        outputs = decode(encoded, range(0, len(encoded), step)).outputs
        assert [output.payload for output in outputs] == expected


@pytest.mark.parametrize(
    ("size", "step"),
    [
        ((32 << 20) - 1, (1 << 20) + 1),
        (32 << 20, 1 << 40),
        ((32 << 20) + 1, 1 << 14),
        ((32 << 20) + 1, 1 << 40),
        ((80 << 20) + 3, (1 << 20) + 1),
    ],
)
def test_large_raw_contents(size: int, step: int) -> None:
    """Around the size up to which memory is taken at once."""
    payload = np.arange(size, dtype=np.uint32).astype(np.uint8)
    header = wf.output("y", "UINT8", [size]) + wf.tag(6, wf.LENGTH) + wf.varint(size)
    response = _wire.Response()
    response.begin(len(header) + size)
    if step < size:
        response.feed(header)
        for at in range(0, size, step):
            response.feed(payload[at : at + step])
    else:
        response.feed(header + payload.tobytes())
    response.finish()
    ((_, _, shape, taken, _),) = response.take()[4]
    assert shape == (size,)
    assert isinstance(taken, _wire.Payload)
    assert np.array_equal(np.frombuffer(memoryview(taken), np.uint8), payload)


def test_empty_message() -> None:
    assert decode(b"") == Answer()


def test_answer_without_outputs() -> None:
    assert decode(wf.text(1, "m") + wf.text(3, "id")) == Answer("m", "", "id")


@pytest.mark.parametrize(
    "shape", [(), (0,), (0, 5), (5, 0), (1,) * 32, (3,), (2, 0, 2**40), (0, 2**59)]
)
@pytest.mark.parametrize("datatype", ["INT8", "BYTES"])
def test_ranks_and_empty_tensors(shape: tuple[int, ...], datatype: str) -> None:
    count = math.prod(shape)
    element = b"\1\0\0\0x" if datatype == "BYTES" else b"x"
    output = only_output(value(datatype, shape, element * count))
    assert (output.shape, output.payload) == (shape, element * count)
    if count == 0:
        # Without raw contents there is nothing at all, which is all there is.
        assert only_output(wf.output("y", datatype, shape)).payload == b""
        assert only_output(typed(datatype, shape)).payload == b""


def test_bytes_elements() -> None:
    elements = [b"", b"\0", "ü🜚".encode(), b"\xff" * 300]
    output = only_output(value("BYTES", [2, 2], bytes_payload(elements)))
    assert output.payload == bytes_payload(elements)
    encoded = typed("BYTES", [4], *(wf.text(8, element) for element in elements))
    assert decode(encoded, every_byte(encoded)).outputs[0].payload == bytes_payload(elements)


def test_bfloat16() -> None:
    numbers = np.array([1.5, -0.0, np.inf, np.nan, 3e38], ml_dtypes.bfloat16)
    response = _wire.Response()
    encoded = value("BF16", [5], numbers.tobytes())
    response.begin(len(encoded))
    response.feed(encoded)
    response.finish()
    payload = response.take()[4][0][3]
    array = np.ndarray((5,), ml_dtypes.bfloat16, payload)  # type: ignore[arg-type]
    assert array.tobytes() == numbers.tobytes()


def test_duplicated_keys_and_fields() -> None:
    """The last one counts, at every level."""
    encoded = (
        wf.text(1, "first")
        + wf.entry(4, "a", wf.number(1, 1))
        + wf.entry(4, "b", wf.number(2, 5))
        + wf.text(1, "m")
        + wf.entry(4, "a", wf.text(3, "stale") + wf.number(5, 2**64 - 1))
        + wf.output("first", "FP32", [0], wf.text(1, "y"), wf.text(2, "INT8"))
    )
    answer = decode(encoded)
    assert answer.model_name == "m"
    assert answer.parameters == {"a": ("int", 2**64 - 1), "b": ("int", 5)}
    assert answer.outputs == [Output("y", "INT8", (0,), b"", {})]


# ------------------------------------------------------------------------------------------------
# The catalogue of faults
# ------------------------------------------------------------------------------------------------

FP32 = "ModelInferResponse.outputs[0] ('y')"
HUGE = 2**62

FAULTS: dict[str, tuple[bytes, str]] = {
    # What protobuf itself does not allow.
    "cut in a tag": (b"\x8a", "ModelInferResponse ends in the middle of a varint"),
    "cut after a tag": (b"\x0a", "ModelInferResponse.model_name ends after a tag"),
    "cut in a length": (
        b"\x0a\x80",
        "ModelInferResponse.model_name ends in the middle of a varint",
    ),
    "cut in a number": (b"\x48\x80", "ModelInferResponse.field 9 ends in the middle of a varint"),
    "cut in a fixed number": (
        b"\x4d123",
        "ModelInferResponse.field 9 ends in the middle of a number",
    ),
    "tag cut by its message": (
        wf.text(5, b"\x8a") + wf.text(1, "m"),
        "outputs[0] ends in the middle",
    ),
    "number cut by its message": (
        wf.text(5, wf.tag(3, wf.VARINT) + b"\x80") + wf.text(1, "m"),
        "outputs[0].shape ends in the middle of a varint",
    ),
    "number cut by its field": (
        wf.output("y", "INT64", None, wf.text(3, b"\x80"), wf.number(3, 1)),
        "outputs[0].shape ends in the middle of a varint",
    ),
    "element cut by its field": (
        typed("INT64", [1], wf.text(3, b"\1\x80"), wf.number(3, 1)),
        "outputs[0].contents.int64_contents ends in the middle of a varint",
    ),
    "length past the message": (
        b"\x0a\x05abc",
        "ModelInferResponse.model_name says that it has 5 bytes where 3 are left",
    ),
    "length past its message": (
        wf.text(5, b"\x0a\x05abc") + wf.text(1, "m"),
        "ModelInferResponse.outputs[0].name says that it has 5 bytes where 3",
    ),
    "length past the contents": (
        wf.text(5, wf.text(5, b"\x42\x09abc")) + bytes(9),
        "ModelInferResponse.outputs[0].contents.bytes_contents says that it has 9",
    ),
    "length of 2 GiB": (
        b"\x32" + wf.varint(2**31 - 1),
        "ModelInferResponse.raw_output_contents says that it has 2147483647 bytes where 0 are",
    ),
    "length of 64 bits": (
        b"\x32" + wf.varint(-1) + b"x",
        "raw_output_contents says that it has 18446744073709551615 bytes where 1 are left",
    ),
    "overlong number": (
        b"\x48" + b"\xff" * 10 + b"\1",
        "ModelInferResponse.field 9 has a varint of more than ten",
    ),
    "overlong length": (
        b"\x12" + b"\x80" * 10 + b"\0",
        "ModelInferResponse.model_version has a varint of more than ten",
    ),
    "overlong tag": (
        b"\x8a\x80\x80\x80\x80\x00\x01m",
        "ModelInferResponse has a tag of more than five",
    ),
    "overlong dimension": (
        wf.output("y", "INT8", None, wf.text(3, b"\x80" * 11)),
        "outputs[0].shape has a varint of more than ten",
    ),
    "overlong element": (
        typed("UINT8", [1], wf.text(4, b"\x80" * 11)),
        "outputs[0].contents.uint_contents has a varint of more than ten",
    ),
    "field 0": (b"\x02\x00", "ModelInferResponse has a tag that protobuf does not allow"),
    "tag of 33 bits": (b"\xfa\xff\xff\xff\x1f\x00", "has a tag that protobuf does not allow"),
    "wire type 6": (b"\x0e", "ModelInferResponse.model_name has a field of wire type 6"),
    "wire type 7": (
        wf.text(5, b"\x0f"),
        "ModelInferResponse.outputs[0].name has a field of wire type 7",
    ),
    "group without an end": (wf.tag(9, wf.GROUP), "ModelInferResponse ends inside a group"),
    "group without a beginning": (
        wf.tag(9, wf.END_GROUP),
        "ModelInferResponse.field 9 ends a group that it did not begin",
    ),
    "group that ends as another": (
        wf.tag(9, wf.GROUP) + wf.tag(10, wf.END_GROUP),
        "ModelInferResponse.field 10 ends a group that it did not begin",
    ),
    "group that ends after its message": (
        wf.text(5, wf.tag(9, wf.GROUP)) + wf.tag(9, wf.END_GROUP),
        "ModelInferResponse.outputs[0] ends inside a group",
    ),
    "group that began before its message": (
        wf.tag(9, wf.GROUP) + wf.tag(9, wf.LENGTH) + b"\1" + wf.tag(9, wf.END_GROUP),
        "ModelInferResponse ends inside a group",
    ),
    "groups too deep": (
        wf.tag(9, wf.GROUP) * 101,
        "ModelInferResponse.field 9 nests groups too deeply",
    ),
    "model_name not UTF-8": (wf.text(1, b"\xff"), "ModelInferResponse.model_name is not UTF-8"),
    "model_version not UTF-8": (
        wf.text(2, b"\xc0\x80"),
        "ModelInferResponse.model_version is not UTF-8",
    ),
    "id not UTF-8": (wf.text(3, b"\xed\xa0\x80"), "ModelInferResponse.id is not UTF-8"),
    "name not UTF-8": (
        wf.output() + wf.text(5, wf.text(1, b"\x80")),
        "ModelInferResponse.outputs[1].name is not UTF-8",
    ),
    "datatype not UTF-8": (wf.text(5, wf.text(2, b"\xe2\x82")), "outputs[0].datatype is not UTF-8"),
    "key not UTF-8": (wf.entry(4, b"\xff", b""), "ModelInferResponse.parameters.key is not UTF-8"),
    "parameter not UTF-8": (
        wf.entry(4, "k", wf.text(3, b"\xff")),
        "ModelInferResponse.parameters.value.string_param is not UTF-8",
    ),
    "key of an output not UTF-8": (
        wf.output("y", "FP32", [0], wf.entry(4, b"\xff", b"")),
        "ModelInferResponse.outputs[0].parameters.key is not UTF-8",
    ),
    "parameter of an output not UTF-8": (
        wf.output("y", "FP32", [0], wf.entry(4, "k", wf.text(3, b"\xff"))),
        "ModelInferResponse.outputs[0].parameters.value.string_param is not UTF-8",
    ),
    "uneven fp32_contents": (
        typed("FP32", [1], wf.text(6, b"12345")),
        "outputs[0].contents.fp32_contents has 5 bytes, not a multiple of 4",
    ),
    "uneven fp64_contents": (
        typed("FP64", [1], wf.text(7, b"1234567")),
        "outputs[0].contents.fp64_contents has 7 bytes, not a multiple of 8",
    ),
    # Messages that are none of tensors.
    "no datatype": (
        wf.output("y", "", [0]),
        FP32 + ".datatype is '', which this client does not know",
    ),
    "unknown datatype": (value("FP8", [1], b"x"), FP32 + ".datatype is 'FP8'"),
    "datatype in lower case": (value("fp32", [1], b"1234"), FP32 + ".datatype is 'fp32'"),
    "long unknown datatype": (value("ü" * 1000, [1], b"x"), FP32 + ".datatype is 'üüü"),
    "negative dimension": (value("FP32", [-1], b"1234"), FP32 + ".shape is [-1], which no tensor"),
    "negative and zero dimensions": (value("FP32", [0, -2], b""), FP32 + ".shape is [0, -2]"),
    "huge dimension": (value("FP32", [HUGE], b"1234"), FP32 + f".shape is [{HUGE}]"),
    "dimensions that wrap to 1": (value("INT8", [2**33, 2**31, 1], b""), FP32 + ".shape is ["),
    "dimensions that wrap to 0": (value("INT8", [2**32, 2**32], b""), FP32 + ".shape is ["),
    "bytes that wrap": (value("FP32", [2**62 + 1], b"1234"), FP32 + ".shape is ["),
    "huge and zero dimensions": (
        value("FP32", [0, HUGE, 4], b""),
        FP32 + f".shape is [0, {HUGE}, 4]",
    ),
    "rank of 33": (value("INT8", [1] * 33, b"x"), "outputs[0].shape has more than 32 dimensions"),
    "rank of 33, unpacked": (
        wf.output("y", "INT8", None, wf.number(3, 1) * 33) + wf.raw(b"x"),
        "outputs[0].shape has more than 32 dimensions",
    ),
    "too few bytes": (
        value("FP32", [2, 2], b"x" * 15),
        FP32 + ": FP32 [2, 2] does not take the 15 bytes that came",
    ),
    "too many bytes": (
        value("FP32", [2, 2], b"x" * 17),
        FP32 + ": FP32 [2, 2] does not take the 17",
    ),
    "no bytes": (value("FP32", [2, 2], b""), FP32 + ": FP32 [2, 2] does not take the 0 bytes"),
    "no contents": (wf.output("y", "FP32", [2, 2]), FP32 + ": FP32 [2, 2] does not take the 0"),
    "bytes for no elements": (value("FP32", [0], b"1234"), FP32 + ": FP32 [0] does not take the 4"),
    "scalar of two": (value("INT64", [], bytes(16)), FP32 + ": INT64 [] does not take the 16"),
    "raw without outputs": (wf.raw(b"x"), "raw_output_contents has 1 entries for 0 outputs"),
    "fewer raw than outputs": (
        wf.output("y", "INT8", [1]) + wf.output("z", "INT8", [1]) + wf.raw(b"x"),
        "ModelInferResponse.raw_output_contents has 1 entries for 2 outputs",
    ),
    "more raw than outputs": (
        wf.output("y", "INT8", [1]) + wf.raw(b"x") * 2,
        "ModelInferResponse.raw_output_contents has 2 entries for 1 outputs",
    ),
    "two outputs of a name": (
        wf.output("y", "INT8", [1]) * 2 + wf.raw(b"x") * 2,
        "ModelInferResponse.outputs[1] ('y').name is that of outputs[0] too",
    ),
    "two outputs without a name": (
        wf.output("", "INT8", [0]) * 2,
        "ModelInferResponse.outputs[1].name is that of outputs[0] too",
    ),
    "raw and contents": (
        typed("INT32", [1], wf.packed(2, [1])) + wf.raw(b"1234"),
        FP32 + " has contents although the response has raw_output_contents",
    ),
    "BYTES cut in a length": (
        value("BYTES", [1], b"\1\0"),
        FP32 + ": the 2 bytes of its BYTES elements end in the middle of element 0",
    ),
    "BYTES cut in an element": (
        value("BYTES", [2], bytes_payload([b"ab", b"cd"])[:-1]),
        FP32 + ": the 11 bytes of its BYTES elements end in the middle of element 1",
    ),
    "BYTES of 4 GiB": (
        value("BYTES", [1], b"\xff\xff\xff\xff"),
        FP32 + ": the 4 bytes of its BYTES elements end in the middle of element 0",
    ),
    "BYTES too few": (
        value("BYTES", [3], bytes_payload([b"a"])),
        FP32 + ": BYTES [3] has 3 elements, and 1 came",
    ),
    "BYTES too many": (
        value("BYTES", [0], bytes_payload([b"a"])),
        FP32 + ": BYTES [0] has 0 elements, and 1",
    ),
    "bytes_contents too few": (
        typed("BYTES", [2], wf.text(8, b"a")),
        FP32 + ": BYTES [2] has 2 elements, and 1",
    ),
    "typed too few": (
        typed("INT32", [3], wf.packed(2, [1, 2])),
        FP32 + ": INT32 [3] does not take the 8 bytes",
    ),
    "typed too many": (
        typed("BOOL", [1], wf.packed(1, [1, 1])),
        FP32 + ": BOOL [1] does not take the 2",
    ),
    "contents of another datatype": (
        typed("INT64", [1], wf.packed(2, [1])),
        FP32 + ".contents holds int_contents, which is not where INT64 goes",
    ),
    "contents for FP16": (
        typed("FP16", [1], wf.text(6, b"1234")),
        FP32 + ".contents holds fp32_contents, which is not where FP16 goes",
    ),
    "contents for BF16": (
        typed("BF16", [1], wf.packed(4, [1])),
        FP32 + ".contents holds uint_contents, which is not where BF16 goes",
    ),
    "bytes for numbers": (
        typed("UINT8", [1], wf.text(8, b"x")),
        FP32 + ".contents holds bytes_contents, which",
    ),
    "two kinds of contents": (
        typed("INT32", [2], wf.packed(2, [1]), wf.packed(3, [1])),
        "outputs[0].contents.int64_contents follows int_contents, and a tensor's elements",
    ),
    "two kinds in two contents": (
        wf.output(
            "y",
            "FP32",
            [2],
            wf.contents(wf.text(6, b"1234")),
            wf.contents(wf.fixed64(7, b"12345678")),
        ),
        "outputs[0].contents.fp64_contents follows fp32_contents",
    ),
    "INT8 of 128": (
        typed("INT8", [1], wf.packed(2, [128])),
        FP32 + ".contents.int_contents has a number outside the range of INT8",
    ),
    "INT8 of -129": (
        typed("INT8", [2], wf.packed(2, [0, -129])),
        FP32 + ".contents.int_contents has a number outside",
    ),
    "INT16 of 32768": (typed("INT16", [1], wf.number(2, 32768)), "outside the range of INT16"),
    "INT16 of -32769": (typed("INT16", [1], wf.number(2, -32769)), "outside the range of INT16"),
    "UINT8 of 256": (
        typed("UINT8", [1], wf.packed(4, [256])),
        FP32 + ".contents.uint_contents has a number outside",
    ),
    "UINT16 of 65536": (typed("UINT16", [1], wf.packed(4, [65536])), "outside the range of UINT16"),
    "4097 outputs": (
        b"".join(wf.output(f"y{index}", "INT8", [0]) for index in range(4097)),
        "ModelInferResponse.outputs has more than 4096 entries",
    ),
    "4097 raw contents": (
        wf.raw(b"") * 4097,
        "ModelInferResponse.raw_output_contents has more than 4096",
    ),
    "16385 parameters": (
        b"".join(wf.entry(4, str(index), b"") for index in range(16385)),
        "ModelInferResponse.parameters has more than 16384",
    ),
    "16385 parameters of one key": (
        wf.entry(4, "k", wf.number(1, 1)) * 16385,
        "ModelInferResponse.parameters has more than 16384",
    ),
    "16385 parameters of an output": (
        wf.output()
        + wf.output("y", "INT8", [0], *(wf.entry(4, str(index), b"") for index in range(16385))),
        "ModelInferResponse.outputs[1].parameters has more than 16384",
    ),
    "16385 parameters of two outputs": (
        b"".join(
            wf.output(name, "INT8", [0], *(wf.entry(4, str(index), b"") for index in range(count)))
            for name, count in (("x", 16384), ("y", 1))
        ),
        "ModelInferResponse.outputs[1].parameters has more than 16384",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault(fault: str) -> None:
    """Each has its error, which says in which field; however the bytes come."""
    encoded, message = FAULTS[fault]
    with pytest.raises(WireError) as caught:
        decode(encoded)
    assert message in str(caught.value)
    assert str(caught.value).startswith("ModelInferResponse")
    assert len(str(caught.value)) < 600
    with pytest.raises(WireError) as again:
        decode(encoded, every_byte(encoded))
    assert str(again.value) == str(caught.value)


@pytest.mark.parametrize(
    "encoded",
    [
        wf.number(1, 1),
        wf.fixed32(6, b"1234"),
        wf.fixed64(5, b"12345678"),
        wf.group(4, wf.text(1, "key")),
        wf.output("y", "INT8", [0], wf.fixed64(3, b"12345678"), wf.number(1, 1)),
        typed("FP32", [0], wf.number(6, 1), wf.fixed64(6, b"12345678"), wf.group(6)),
        typed("INT32", [0], wf.fixed32(2, b"1234")),
        typed("BYTES", [0], wf.number(8, 1)),
        wf.text(4, wf.number(1, 1) + wf.fixed32(2, b"1234")),
        wf.entry(4, "", wf.text(1, "text") + wf.number(3, 1) + wf.fixed32(4, b"1234")),
    ],
)
def test_known_fields_of_other_wire_types(encoded: bytes) -> None:
    """Are unknown fields to protobuf, and skipped; the tensor is then without what they had."""
    official = ModelInferResponse.FromString(encoded)
    answer = decode(encoded)
    assert not answer.model_name
    assert len(answer.outputs) == len(official.outputs)
    assert all(output.payload == b"" for output in answer.outputs)


def test_as_many_entries_as_are_allowed() -> None:
    answer = decode(
        b"".join(
            wf.output(f"y{index}", "INT8", [1]) + wf.raw(b"x") + wf.entry(4, str(index), b"")
            for index in range(4096)
        )
    )
    assert len(answer.outputs) == 4096
    assert len(answer.parameters) == 4096


def test_more_than_announced() -> None:
    encoded = value("INT8", [1], b"x")
    for rest in (b"\0", encoded, bytes(100)):
        with pytest.raises(WireError, match=f"goes on after the {len(encoded)} bytes"):
            decode(encoded + rest, announced=len(encoded))
        with pytest.raises(WireError, match=f"goes on after the {len(encoded)} bytes"):
            decode(encoded + rest, [len(encoded)], announced=len(encoded))
    with pytest.raises(WireError, match="goes on after the 0 bytes"):
        decode(b"x", announced=0)
    # Nothing is not more.
    response = _wire.Response()
    response.begin(len(encoded))
    response.feed(encoded)
    response.feed(b"")
    response.finish()


def test_longer_than_protobuf_allows() -> None:
    for size in (2**31, 2**32, 2**64 - 1):
        response = _wire.Response()
        with pytest.raises(WireError, match=f"{size} bytes announced; protobuf allows 2147483647"):
            response.begin(size)
        with pytest.raises(WireError):
            response.feed(b"x")
        with pytest.raises(WireError):
            response.finish()
    response = _wire.Response()
    response.begin(2**31 - 1)
    with pytest.raises(WireError, match="ends after 0 of 2147483647 bytes"):
        response.finish()


@pytest.mark.parametrize("size", [-1, 2**64, "1"])
def test_lengths_that_are_none(size: Any) -> None:
    with pytest.raises((OverflowError, TypeError)):
        _wire.Response().begin(size)


# ------------------------------------------------------------------------------------------------
# The order of calls
# ------------------------------------------------------------------------------------------------


def test_not_begun() -> None:
    response = _wire.Response()
    with pytest.raises(WireError, match="never begun"):
        response.feed(b"x")
    with pytest.raises(WireError, match="never begun"):
        response.finish()


def test_failed_reader_stays_failed() -> None:
    encoded = value("INT8", [1], b"x")
    response = _wire.Response()
    response.begin(2 + len(encoded))
    with pytest.raises(WireError, match="tag"):
        response.feed(b"\x00\x00")
    with pytest.raises(WireError, match="failed before"):
        response.feed(encoded)
    with pytest.raises(WireError, match="failed before"):
        response.finish()
    with pytest.raises(RuntimeError, match="not complete"):
        response.take()


@pytest.mark.parametrize("fault", ["unknown datatype", "too few bytes", "two outputs of a name"])
def test_failed_finish_gives_nothing(fault: str) -> None:
    encoded, _ = FAULTS[fault]
    response = _wire.Response()
    response.begin(len(encoded))
    response.feed(encoded)
    with pytest.raises(WireError):
        response.finish()
    with pytest.raises(WireError, match="failed before"):
        response.finish()
    with pytest.raises(RuntimeError, match="not complete"):
        response.take()


def test_taken_once() -> None:
    encoded = value("INT8", [1], b"x")
    response = _wire.Response()
    response.begin(len(encoded))
    with pytest.raises(RuntimeError, match="not complete"):
        response.take()
    response.feed(encoded)
    with pytest.raises(RuntimeError, match="not complete"):
        response.take()
    response.finish()
    assert len(response.take()[4]) == 1
    with pytest.raises(RuntimeError, match="not complete"):
        response.take()


def test_pieces_are_read_and_let_go() -> None:
    encoded = value("INT8", [3], b"xyz")
    response = _wire.Response()
    response.begin(len(encoded))
    for memory in (bytearray(encoded[:5]), bytearray(encoded[5:])):
        response.feed(memory)
        memory[:] = bytes(len(memory))
        memory.append(0)  # nobody holds it any more
    response.finish()
    payload = response.take()[4][0][3]
    assert bytes(payload) == b"xyz"  # type: ignore[arg-type]
    failed = bytearray(b"\x00\x00")
    response = _wire.Response()
    response.begin(2)
    with pytest.raises(WireError):
        response.feed(failed)
    failed.append(0)


def test_any_buffer_is_a_piece() -> None:
    encoded = value("INT8", [3], b"xyz")
    for memory in (encoded, bytearray(encoded), memoryview(encoded), np.frombuffer(encoded, "u1")):
        response = _wire.Response()
        response.begin(len(encoded))
        response.feed(memory)
        response.finish()
    with pytest.raises(TypeError):
        _wire.Response().feed("text")
    with pytest.raises((BufferError, ValueError)):
        _wire.Response().feed(memoryview(encoded)[::2])


# ------------------------------------------------------------------------------------------------
# Payloads
# ------------------------------------------------------------------------------------------------


def take_payload(encoded: bytes) -> _wire.Payload:
    response = _wire.Response()
    response.begin(len(encoded))
    response.feed(encoded)
    response.finish()
    payload = response.take()[4][0][3]
    assert isinstance(payload, _wire.Payload)
    return payload


def test_payload_is_writable_memory() -> None:
    payload = take_payload(value("INT32", [2], b"12345678"))
    view = memoryview(payload)
    assert (view.nbytes, view.format, view.shape, view.strides) == (8, "B", (8,), (1,))
    assert view.contiguous
    assert not view.readonly
    array = np.ndarray((2,), np.int32, payload)  # type: ignore[arg-type]
    array[:] = [1, 2]
    assert bytes(payload) == np.array([1, 2], np.int32).tobytes()
    assert len(payload) == 8


def test_payload_lives_as_long_as_its_arrays() -> None:
    before = _wire.live_counts()["payloads"]
    array = np.frombuffer(memoryview(take_payload(value("INT8", [1000], b"a" * 1000))), np.int8)
    assert _wire.live_counts()["payloads"] == before + 1
    others = [take_payload(value("INT8", [1000], b"b" * 1000)) for _ in range(10)]
    part = array[500:]
    del array, others
    assert _wire.live_counts()["payloads"] == before + 1
    assert part.tobytes() == b"a" * 500
    del part
    assert _wire.live_counts()["payloads"] == before


def test_payload_is_aligned() -> None:
    """Whatever the place of its bytes in the message."""
    for padding in range(8):
        encoded = wf.text(1, "m" * padding) + value("FP64", [3], bytes(24))
        for cuts in ((), every_byte(encoded)):
            response = _wire.Response()
            response.begin(len(encoded))
            for piece in pieces(encoded, cuts):
                response.feed(piece)
            response.finish()
            array = np.ndarray((3,), np.float64, response.take()[4][0][3])  # type: ignore[arg-type]
            assert array.ctypes.data % 16 == 0


def test_empty_payload() -> None:
    payload = take_payload(value("INT8", [0], b""))
    assert len(payload) == 0
    assert bytes(payload) == b""


def test_payloads_are_not_for_making() -> None:
    with pytest.raises(TypeError):
        _wire.Payload()


# ------------------------------------------------------------------------------------------------
# Arrays of the caller's
# ------------------------------------------------------------------------------------------------

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)
LAYOUTS: dict[str, bytes] = {
    "outputs first": value("FP32", [2, 3], ARRAY.tobytes()),
    "raw contents first": wf.raw(ARRAY.tobytes()) + wf.output("y", "FP32", [2, 3]),
    "typed contents": typed("FP32", [2, 3], wf.text(6, ARRAY.tobytes())),
    "shape last": wf.text(
        5, wf.text(2, "FP32") + wf.text(1, "y") + wf.packed(3, [2, 3])
    ) + wf.raw(ARRAY.tobytes()),
    "stale name": wf.output("x", "FP32", [2, 3], wf.text(1, "y")) + wf.raw(ARRAY.tobytes()),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("is_cut", [False, True])
def test_placed(layout: str, is_cut: bool) -> None:
    encoded = LAYOUTS[layout]
    out = np.full((2, 3), np.nan, np.float32)
    answer = decode(encoded, every_byte(encoded) if is_cut else (), out={"y": ("FP32", out)})
    assert answer.outputs == [Output("y", "FP32", (2, 3), True, {})]
    assert out.tobytes() == ARRAY.tobytes()


def test_placed_beside_others() -> None:
    """Some outputs go to the caller's arrays and some do not, in any order."""
    encoded = (
        wf.output("a", "INT8", [2])
        + wf.output("b", "INT8", [3])
        + wf.raw(b"aa")
        + wf.raw(b"bbb")
        + wf.raw(b"c")
        + wf.output("c", "INT8", [1])
    )
    b, c = np.zeros(3, np.int8), np.zeros(1, np.int8)
    unused = np.full(4, 7, np.int8)
    answer = decode(encoded, out={"unused": ("INT8", unused), "c": ("INT8", c), "b": ("INT8", b)})
    assert [output.payload for output in answer.outputs] == [b"aa", True, True]
    assert (b.tobytes(), c.tobytes()) == (b"bbb", b"c")
    assert unused.tolist() == [7] * 4


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_placed_small(shape: tuple[int, ...]) -> None:
    out = np.zeros(shape, np.float64)
    payload = np.ones(shape).tobytes()
    (output,) = decode(value("FP64", shape, payload), out={"y": ("FP64", out)}).outputs
    assert output.payload is True
    assert out.tobytes() == payload
    if not payload:
        (output,) = decode(wf.output("y", "FP64", shape), out={"y": ("FP64", out)}).outputs
        assert output.payload is True


def test_placed_bfloat16() -> None:
    """An array that cannot say its format, and one of the same bits."""
    bits = np.array([0x3FC0, 0x8000, 0x7FC1], np.uint16)
    for out in (np.zeros(3, ml_dtypes.bfloat16), np.zeros(3, np.uint16)):
        decode(value("BF16", [3], bits.tobytes()), out={"y": ("BF16", out)})
        assert out.tobytes() == bits.tobytes()


@pytest.mark.parametrize(
    ("datatype", "out", "message"),
    [
        ("FP32", np.zeros((3, 2), np.float32), r"FP32 \[3, 2\]; the answer is FP32 \[2, 3\]"),
        ("FP32", np.zeros(6, np.float32), r"out\['y'\] is FP32 \[6\]; the answer is FP32 \[2, 3\]"),
        ("FP32", np.zeros((2, 3, 1), np.float32), r"FP32 \[2, 3, 1\]; the answer is FP32 \[2, 3\]"),
        ("INT32", np.zeros((2, 3), np.int32), r"out\['y'\] is INT32 \[2, 3\]; the answer is FP32"),
        ("FP64", np.zeros((2, 3)), r"out\['y'\] is FP64 \[2, 3\]; the answer is FP32 \[2, 3\]"),
        ("FP32", np.zeros((0, 3), np.float32), r"is FP32 \[0, 3\]; the answer is FP32 \[2, 3\]"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("layout", LAYOUTS)
def test_placed_where_it_does_not_fit(
    datatype: str, out: np.ndarray[Any, Any], message: str, layout: str
) -> None:
    """Known for the caller's mistake, and not written a byte beyond."""
    before = out.copy()
    with pytest.raises(InvalidTensor, match=message):
        decode(LAYOUTS[layout], out={"y": (datatype, out)})
    assert np.array_equal(out, before)


@pytest.mark.parametrize("fault", ["too few bytes", "too many bytes", "huge dimension"])
def test_placed_and_malformed(fault: str) -> None:
    """What is wrong with the message is its sender's fault, even if it would not fit either."""
    encoded, message = FAULTS[fault]
    guarded = np.full(40, 7, np.uint8)
    out = guarded[8:24].view(np.float32).reshape(2, 2)
    with pytest.raises(WireError) as caught:
        decode(encoded, out={"y": ("FP32", out)})
    assert message in str(caught.value)
    assert guarded[:8].tolist() + guarded[24:].tolist() == [7] * 24


def test_array_smaller_than_said() -> None:
    """The shape that place() was told is the caller's word; the memory is what counts."""
    guarded = np.full(16, 7, np.uint8)
    for encoded in LAYOUTS.values():
        response = _wire.Response()
        response.place("y", "FP32", [2, 3], guarded[:4])
        response.begin(len(encoded))
        response.feed(encoded)
        with pytest.raises(InvalidTensor, match="out"):
            response.finish()
        response.release()
    assert guarded.tolist() == [7] * 16


def test_bytes_are_not_placed() -> None:
    """Python objects cannot be received into: the memory is left alone."""
    payload = bytes_payload([b"a", b"bcd"])
    for memory in (np.zeros(len(payload), np.uint8), np.array(["kept", "too"], np.object_)):
        before = memory.copy()
        response = _wire.Response()
        response.place("y", "BYTES", [2], memory)
        encoded = value("BYTES", [2], payload)
        response.begin(len(encoded))
        response.feed(encoded)
        response.finish()
        taken = response.take()[4][0][3]
        assert isinstance(taken, _wire.Payload)
        assert bytes(taken) == payload
        assert memory.tolist() == before.tolist()
        response.release()


def test_numbers_where_bytes_came() -> None:
    out = np.zeros(2, np.float32)
    encoded = value("BYTES", [2], bytes_payload([b"", b""]))
    with pytest.raises(InvalidTensor, match=r"out\['y'\] is FP32 \[2\]; the answer is BYTES \[2\]"):
        decode(encoded, out={"y": ("FP32", out)})


def test_refused_destinations() -> None:
    read_only = np.zeros(4)
    read_only.flags.writeable = False
    response = _wire.Response()
    for array in (
        read_only,
        bytes(8),
        np.zeros(8)[::2],
        np.zeros((2, 2), order="F"),
        np.zeros((4, 4))[:, :2],
    ):
        with pytest.raises((BufferError, ValueError)):
            response.place("y", "FP64", [4], array)
    numbers: Any = [0.0] * 4
    with pytest.raises(TypeError):
        response.place("y", "FP64", numbers, bytearray(32))
    with pytest.raises(TypeError):
        response.place("y", "FP64", [4], numbers)
    memory = bytearray(8)
    with pytest.raises(InvalidOption):
        response.place("\ud800", "FP64", [1], memory)
    with pytest.raises((TypeError, OverflowError)):
        response.place("y", "FP64", [2**63], memory)
    memory.append(0)  # nothing of what was refused is held
    response.release()


def test_destinations_are_held_until_release() -> None:
    before = _wire.live_counts()["holds"]
    out = bytearray(24)
    encoded = LAYOUTS["outputs first"]
    response = _wire.Response()
    response.place("y", "FP32", [2, 3], out)
    assert _wire.live_counts()["holds"] == before + 1
    with pytest.raises(BufferError):
        out.append(0)
    response.begin(len(encoded))
    response.feed(encoded)
    response.finish()
    response.take()
    with pytest.raises(BufferError):
        out.append(0)
    response.release()
    out.append(0)
    assert bytes(out[:24]) == ARRAY.tobytes()
    assert _wire.live_counts()["holds"] == before
    response.release()


def test_destinations_are_given_back_with_the_response() -> None:
    out = bytearray(24)
    response = _wire.Response()
    response.place("y", "FP32", [2, 3], out)
    with pytest.raises(WireError):
        response.finish()
    del response
    out.append(0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_written_after_release(layout: str) -> None:
    """A channel may still bring bytes for a call that is over; the array is no longer ours."""
    encoded = LAYOUTS[layout]
    for at in range(0, len(encoded) + 1, 5):
        out = np.zeros((2, 3), np.float32)
        response = _wire.Response()
        response.place("y", "FP32", [2, 3], out)
        response.begin(len(encoded))
        response.feed(encoded[:at])
        response.release()
        before = out.tobytes()
        with pytest.raises(ClosedError):
            response.feed(encoded[at:])
        with pytest.raises(ClosedError):
            response.finish()
        assert out.tobytes() == before
    with pytest.raises(ClosedError):
        response.place("z", "FP32", [2, 3], out)


# ------------------------------------------------------------------------------------------------
# Outputs in shared memory
# ------------------------------------------------------------------------------------------------


def test_shared_memory_outputs() -> None:
    """Their entry is empty; one that was not asked for is a fault."""
    encoded = (
        wf.output("a", "FP32", [2, 3])
        + wf.output("b", "INT8", [2])
        + wf.output("c", "BYTES", [5])
        + wf.raw(b"")
        + wf.raw(b"bb")
        + wf.raw(b"")
    )
    answer = decode(encoded, shared_memory=["c", "a", "never came"])
    assert [output.payload for output in answer.outputs] == [None, b"bb", None]
    assert [output.shape for output in answer.outputs] == [(2, 3), (2,), (5,)]
    with pytest.raises(WireError, match=r"outputs\[2\] \('c'\): BYTES \[5\] has 5 elements, and 0"):
        decode(encoded, shared_memory=["a"])
    with pytest.raises(WireError, match=r"outputs\[0\] \('a'\): FP32 \[2, 3\] does not take the 0"):
        decode(encoded, shared_memory=["c"])


def test_shared_memory_output_that_came_all_the_same() -> None:
    answer = decode(value("INT8", [2], b"xy"), shared_memory=["y"])
    assert answer.outputs[0].payload == b"xy"


def test_shared_memory_outputs_alone() -> None:
    """Without any raw contents, as a response with nothing else may have none."""
    (output,) = decode(wf.output("y", "FP32", [2]), shared_memory=["y"]).outputs
    assert output.payload is None
    (output,) = decode(wf.output("y", "FP32", [0]), shared_memory=["y"]).outputs
    assert output.payload is None


@pytest.mark.parametrize("shape", [[-1], [2**62, 2], [0, -1]])
@pytest.mark.parametrize("has_raw", [False, True])
def test_shared_memory_outputs_have_possible_shapes(shape: list[int], has_raw: bool) -> None:
    encoded = wf.output("y", "FP32", shape) + (wf.raw(b"") if has_raw else b"")
    with pytest.raises(WireError, match=r"\.shape is \["):
        decode(encoded, shared_memory=["y"])


def test_shared_memory_wins_over_out() -> None:
    """An output is in one place: an array for it stays untouched."""
    out = np.full(2, 7, np.int8)
    encoded = wf.output("y", "INT8", [2]) + wf.raw(b"")
    answer = decode(encoded, shared_memory=["y"], out={"y": ("INT8", out)})
    assert answer.outputs[0].payload is None
    assert out.tolist() == [7, 7]


def test_names_of_shared_memory_outputs() -> None:
    with pytest.raises(InvalidOption):
        _wire.Response(["\ud800"])
    with pytest.raises(InvalidOption):
        _wire.Response([3])  # type: ignore[list-item]


# ------------------------------------------------------------------------------------------------
# Memory
# ------------------------------------------------------------------------------------------------

ANNOUNCED = {
    "raw_output_contents": wf.tag(6, wf.LENGTH),
    "model_name": wf.tag(1, wf.LENGTH),
    "an unknown field": wf.tag(99, wf.LENGTH),
    "an output": wf.tag(5, wf.LENGTH),
    "an output's name": wf.tag(5, wf.LENGTH) + wf.varint(2**31 - 50) + wf.tag(1, wf.LENGTH),
    "a shape": wf.tag(5, wf.LENGTH) + wf.varint(2**31 - 50) + wf.tag(3, wf.LENGTH),
    "a parameter": wf.tag(4, wf.LENGTH),
} | {
    f"contents, field {field}": (
        wf.tag(5, wf.LENGTH)
        + wf.varint(2**31 - 50)
        + wf.tag(5, wf.LENGTH)
        + wf.varint(2**31 - 60)
        + wf.tag(field, wf.LENGTH)
    )
    for field in range(1, 9)
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits address space")
@pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer needs address space"
)
def test_announcements_take_no_memory() -> None:
    """Of two gibibytes, in a few bytes: in a process that could not have them."""
    headers = [header + wf.varint(2**31 - 80) for header in ANNOUNCED.values()]
    script = textwrap.dedent(
        """
        import pathlib, resource, sys
        sys.path[:0] = {path!r}
        from triton_fast._core import _wire
        from triton_fast.errors import WireError

        def status(key):
            (line,) = (
                line for line in pathlib.Path("/proc/self/status").read_text().splitlines()
                if line.startswith(key + ":")
            )
            return int(line.split()[1]) << 10

        limit = status("VmSize") + (160 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        try:
            bytearray(2**31 - 100)
        except MemoryError:
            pass
        else:
            sys.exit("the limit limits nothing")
        before = status("VmPeak")
        for header in {headers!r}:
            response = _wire.Response()
            response.begin(2**31 - 1)
            response.feed(header[:-5])
            response.feed(header[-5:])
            try:
                response.feed(bytes(100_000))
                response.finish()
            except WireError:
                pass
            else:
                sys.exit("a message of two gibibytes in a few bytes")
        print(status("VmPeak") - before)
        """
    ).format(path=[path for path in sys.path if path], headers=headers)
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=Path.cwd(),
    )
    assert finished.returncode == 0, finished.stderr
    # What is taken at once on the word of a length, and some for the rest.
    assert int(finished.stdout) < 48 << 20


# ------------------------------------------------------------------------------------------------
# Threads
# ------------------------------------------------------------------------------------------------


def feeder(payload: np.ndarray[Any, Any], out: bool) -> Callable[[], None]:
    header = wf.output("y", "UINT8", payload.shape) + wf.tag(6, wf.LENGTH) + wf.varint(payload.size)
    encoded = header + payload.tobytes()
    array = np.ones(payload.shape, np.uint8)

    def call() -> None:
        response = _wire.Response()
        if out:
            response.place("y", "UINT8", payload.shape, array)
        response.begin(len(encoded))
        response.feed(encoded)
        response.release()

    return call


@pytest.mark.parametrize("out", [False, True])
def test_large_pieces_are_fed_without_the_gil(out: bool) -> None:
    call = feeder(np.ones(32 << 20, np.uint8), out)
    with Bystander() as bystander:
        assert bystander.moves_in_time(call)


def test_small_pieces_are_fed_with_the_gil() -> None:
    """Which also shows that the test above can fail."""
    call = feeder(np.ones(64, np.uint8), out=False)
    with Bystander() as bystander:
        assert not any(bystander.moves_during(call) for _ in range(200))


def test_readers_on_many_threads() -> None:
    """Each has its own state."""
    messages = [
        value("INT32", [1000 + index], np.full(1000 + index, index, np.int32).tobytes())
        for index in range(8)
    ]
    start = threading.Barrier(8)
    wrong: list[int] = []

    def read(index: int) -> None:
        start.wait()
        encoded = messages[index]
        for _ in range(20):
            (output,) = decode(encoded, range(0, len(encoded), 97 + index)).outputs
            if output.payload != np.full(1000 + index, index, np.int32).tobytes():
                wrong.append(index)

    threads = [threading.Thread(target=read, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
