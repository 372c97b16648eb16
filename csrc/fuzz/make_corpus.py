"""Writes the seeds of fuzz_response: golden responses, made with the official protobuf package.

Run it after a change here, with the package installed: ``python csrc/fuzz/make_corpus.py``. Each
file is four bytes of setting (see fuzz_response.cpp) and a message. The same input gives the
same files, byte for byte.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from triton_fast.protocol.messages import message_class

CORPUS = Path(__file__).parent / "corpus" / "response"

# Settings: how the message is cut, what the caller places (one bit each for out, int, text, byte,
# none, half) or wants in shared memory ("shared", "out"), which size is announced, a seed. With the
# highest bit of the first, the message is a stream's.
PLAIN = bytes([0, 0, 0, 0])
PLACED = bytes([7, 0b0011_1111, 0, 1])
SHARED = bytes([2, 0b0100_0000, 0, 0])
STREAMED = bytes([0x80 | 2, 0, 0, 0])

ELEMENT_SIZES = {
    "BOOL": 1, "INT8": 1, "INT16": 2, "INT32": 4, "INT64": 8, "UINT8": 1, "UINT16": 2, "UINT32": 4,
    "UINT64": 8, "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8,
}  # fmt: skip
TYPED: dict[str, tuple[str, list[Any]]] = {
    "BOOL": ("bool_contents", [True, False, True]),
    "INT8": ("int_contents", [-128, 0, 127]),
    "INT16": ("int_contents", [-32768, 0, 32767]),
    "INT32": ("int_contents", [-(2**31), 300, 2**31 - 1]),
    "INT64": ("int64_contents", [-(2**63), 300, 2**63 - 1]),
    "UINT8": ("uint_contents", [0, 1, 255]),
    "UINT16": ("uint_contents", [0, 1, 65535]),
    "UINT32": ("uint_contents", [0, 1, 2**32 - 1]),
    "UINT64": ("uint64_contents", [0, 1, 2**64 - 1]),
    "FP32": ("fp32_contents", [-0.0, 1.5, float("inf")]),
    "FP64": ("fp64_contents", [-0.0, 1.5, float("nan")]),
    "BYTES": ("bytes_contents", [b"", b"a\0b", "größer".encode()]),
}


def response(**fields: Any) -> Any:
    """Make a ModelInferResponse."""
    return message_class("ModelInferResponse")(**fields)


def encoded_elements(*elements: bytes) -> bytes:
    """Lay out the elements of a BYTES tensor."""
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def varint(value: int) -> bytes:
    """Encode a number."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, content: bytes) -> bytes:
    """Encode a length-delimited field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def seeds() -> dict[str, bytes]:
    """Name and content of each seed."""
    found: dict[str, bytes] = {}

    def add(name: str, setting: bytes, message: Any) -> None:
        body = (
            message if isinstance(message, bytes) else message.SerializeToString(deterministic=True)
        )
        found[name] = setting + body

    add("empty", PLAIN, response())
    full = response(model_name="identity", model_version="3", id="größer")
    full.parameters["bool"].bool_param = True
    full.parameters["int"].int64_param = -5
    full.parameters["text"].string_param = "naïve"
    full.parameters["double"].double_param = 0.1
    full.parameters["uint"].uint64_param = 2**64 - 1
    full.parameters["nothing"].SetInParent()
    add("parameters", PLAIN, full)

    for datatype, size in ELEMENT_SIZES.items():
        raw = response(model_name="m", model_version="1")
        raw.outputs.add(name="x", datatype=datatype, shape=[3, 1])
        raw.raw_output_contents.append(bytes(range(3 * size)))
        add(f"raw_{datatype.lower()}", PLAIN, raw)
    for datatype, (name, elements) in TYPED.items():
        size = ELEMENT_SIZES.get(datatype)
        typed = response(model_name="m")
        output = typed.outputs.add(name="x", datatype=datatype, shape=[len(elements)])
        getattr(output.contents, name).extend(elements)
        # Pieces that end in the middle of a number, and have room for more than one.
        add(f"typed_{datatype.lower()}", bytes([5 if size == 8 else 4, 0, 0, 0]), typed)

    text = response(model_name="m")
    text.outputs.add(name="x", datatype="BYTES", shape=[2, 2])
    text.raw_output_contents.append(encoded_elements(b"", b"\xff\0", "größer".encode(), b"z" * 40))
    add("raw_bytes", PLAIN, text)

    placed = response(model_name="m", model_version="1")
    for name, datatype, shape, payload in [
        ("out", "FP32", [1, 4], bytes(16)),
        ("int", "INT32", [2, 2], bytes(range(16))),
        ("text", "BYTES", [2], encoded_elements(b"four", b"1234")),
        ("byte", "INT8", [3], b"abc"),
        ("none", "FP32", [0], b""),
        ("half", "FP16", [2, 1], b"\0\x3c\0\xbc"),
    ]:
        placed.outputs.add(name=name, datatype=datatype, shape=shape)
        placed.raw_output_contents.append(payload)
    add("placed", PLACED, placed)
    add("placed_by_bytes", bytes([0, *PLACED[1:]]), placed)
    typed = response()
    typed.outputs.add(name="int", datatype="INT32", shape=[2, 2]).contents.int_contents.extend(
        [1, -1, 70000, 0]
    )
    typed.outputs.add(name="byte", datatype="INT8", shape=[3]).contents.int_contents.extend(
        [1, -1, 0]
    )
    add("placed_typed", PLACED, typed)

    shared = response(model_name="m")
    shared.outputs.add(name="shared", datatype="FP32", shape=[1, 4])
    shared.outputs[0].parameters["shared_memory_region"].string_param = "region"
    shared.outputs[0].parameters["shared_memory_byte_size"].int64_param = 16
    shared.outputs.add(name="x", datatype="INT8", shape=[1])
    shared.raw_output_contents.extend([b"", b"\x01"])
    add("shared_memory", SHARED, shared)
    del shared.outputs[1], shared.raw_output_contents[:]
    add("shared_memory_typed", SHARED, shared)

    # What the official package reads but does not write: any order of fields, unknown ones, groups,
    # numbers one by one, a message in two parts, the same key twice.
    output = field(1, b"out") + field(2, b"FP32") + field(3, b"\x01\x04")
    raw = field(6, bytes(16))
    add("raw_first", PLACED, raw + field(1, b"m") + field(5, output))
    unpacked = field(1, b"int") + field(2, b"INT32") + b"\x18\x02\x18\x02"
    contents = field(2, b"\x01\x02") + b"\x10\x03" + b"\x10\x7f"
    add("unpacked", PLAIN, field(5, unpacked + field(5, contents[:5]) + field(5, contents[5:])))
    floats = field(1, b"x") + field(2, b"FP64") + field(3, b"\x02")
    floats += field(5, field(7, bytes(8)) + b"\x39" + bytes(8))
    add("unpacked_fp64", PLAIN, field(5, floats))
    unknown = b"\x78\x05" + b"\x7d\0\0\0\0" + b"\x79" + bytes(8) + field(15, b"anything")
    group = b"\x7b" + unknown + b"\x83\x01" + field(1, b"not the name") + b"\x84\x01" + b"\x7c"
    add("unknown", PLAIN, unknown + group + field(5, output + unknown + group) + raw)
    entry = field(1, b"key") + field(2, b"\x10\x01") + field(2, field(3, b"text"))
    add("twice", PLAIN, field(4, entry) + field(4, field(1, b"key") + field(2, b"\x28\x07")))

    # In a stream's envelope: the error first or last, the response in two parts.
    add("stream_answer", STREAMED, field(2, full.SerializeToString(deterministic=True)))
    add("stream_error", STREAMED, field(1, "größer".encode()) + field(2, field(3, b"id")))
    add("stream_both", STREAMED, field(2, field(5, output) + raw) + field(1, b"no"))
    add("stream_parts", STREAMED, field(2, field(5, output)) + unknown + field(2, raw))
    add("stream_placed", bytes([0x80, *PLACED[1:]]), field(2, placed.SerializeToString()))
    add("stream_cut", STREAMED, field(2, field(5, output) + raw)[:30])

    # Broken ones.
    add(
        "too_long",
        bytes([0, 0, 0xE7, 0]),
        field(5, output) + b"\x32" + varint(0x70000000) + bytes(9),
    )
    add(
        "negative_shape",
        SHARED,
        field(5, field(1, b"shared") + field(2, b"FP32") + field(3, varint(2**64 - 1))),
    )
    add("cut", PLAIN, placed.SerializeToString(deterministic=True)[:100])
    return found


def main() -> None:
    """Write the corpus, and remove what is no longer part of it."""
    CORPUS.mkdir(parents=True, exist_ok=True)
    found = seeds()
    for old in CORPUS.iterdir():
        if old.name not in found:
            old.unlink()
    for name, content in found.items():
        (CORPUS / name).write_bytes(content)
    print(f"{len(found)} seeds in {CORPUS}")


if __name__ == "__main__":
    main()
