"""A writer of protobuf fields that puts them down exactly as told.

The official package writes every message in the one way that it likes. The tests need the others
that the format allows (any order, padded varints, fields in several pieces), and those that it does
not. Knows nothing of the messages.

Source: protobuf.dev, "Encoding".
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

VARINT = 0
FIXED64 = 1
LENGTH = 2
GROUP = 3
END_GROUP = 4
FIXED32 = 5


def varint(value: int, padding: int = 0) -> bytes:
    """Encode a 64-bit number, negative ones in two's complement, with superfluous bytes."""
    value &= 0xFFFF_FFFF_FFFF_FFFF
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    for _ in range(padding):
        encoded[-1] |= 0x80
        encoded.append(0)
    return bytes(encoded)


def tag(number: int, wire_type: int, padding: int = 0) -> bytes:
    return varint(number << 3 | wire_type, padding)


def number(field: int, value: int, padding: int = 0) -> bytes:
    return tag(field, VARINT) + varint(value, padding)


def fixed32(field: int, bits: bytes) -> bytes:
    assert len(bits) == 4
    return tag(field, FIXED32) + bits


def fixed64(field: int, bits: bytes) -> bytes:
    assert len(bits) == 8
    return tag(field, FIXED64) + bits


def double(field: int, value: float) -> bytes:
    return fixed64(field, struct.pack("<d", value))


def text(field: int, value: str | bytes, padding: int = 0) -> bytes:
    """Encode a string, bytes or message field."""
    encoded = value.encode() if isinstance(value, str) else value
    return tag(field, LENGTH) + varint(len(encoded), padding) + encoded


def group(field: int, *body: bytes) -> bytes:
    return tag(field, GROUP) + b"".join(body) + tag(field, END_GROUP)


def packed(field: int, values: Iterable[int]) -> bytes:
    return text(field, b"".join(varint(value) for value in values))


# The fields of ModelInferResponse, for readable tests.


def entry(field: int, key: str | bytes, value: bytes) -> bytes:
    """Encode an entry of a map; `value` is an encoded InferParameter."""
    return text(field, text(1, key) + text(2, value))


def output(
    name: str = "", datatype: str = "", shape: Iterable[int] | None = None, *more: bytes
) -> bytes:
    """Encode an output tensor; what is empty is left out."""
    body = b""
    if name:
        body += text(1, name)
    if datatype:
        body += text(2, datatype)
    if shape is not None:
        body += packed(3, shape)
    return text(5, body + b"".join(more))


def contents(*body: bytes) -> bytes:
    """Encode an output tensor's InferTensorContents."""
    return text(5, b"".join(body))


def raw(payload: bytes) -> bytes:
    return text(6, payload)
