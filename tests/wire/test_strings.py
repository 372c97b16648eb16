"""BYTES tensors both ways, against tritonclient and against struct."""

from __future__ import annotations

import gc
import struct
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import wire_fields as wf
from hypothesis import example, given
from hypothesis import strategies as st
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor
from wire_oracle import bytes_payload, split_bytes_payload
from wire_strategies import numpy_strings, string_elements

from triton_fast._core import _wire
from triton_fast.errors import InvalidTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


def as_bytes(elements: Sequence[str | bytes]) -> list[bytes]:
    return [element.encode() if isinstance(element, str) else element for element in elements]


def decoded_payload(payload: bytes, count: int) -> _wire.Payload:
    """Have the reader make a payload, which is the only way to get one from bytes."""
    response = _wire.Response()
    message = wf.output("y", "BYTES", [count]) + wf.raw(payload)
    response.begin(len(message))
    response.feed(message)
    response.finish()
    taken = response.take()[4][0][3]
    assert isinstance(taken, _wire.Payload)
    return taken


def decode(payload: bytes, count: int) -> np.ndarray[Any, np.dtype[np.object_]]:
    array = np.empty(count, np.object_)
    _wire.decode_elements(decoded_payload(payload, count), array)
    return array


# ------------------------------------------------------------------------------------------------
# Encoding
# ------------------------------------------------------------------------------------------------


@given(elements=string_elements)
@example(elements=[])
@example(elements=["", b"", "\0", b"\0", "ü", b"\xff\xfe", "🜚" * 100])
def test_sequences_and_objects(elements: list[str | bytes]) -> None:
    """All ways of saying the same are encoded the same, and as tritonclient does it."""
    expected = bytes_payload(as_bytes(elements))
    assert bytes(_wire.encode_sequence(elements)) == expected
    assert bytes(_wire.encode_sequence(tuple(elements))) == expected
    assert bytes(_wire.encode_objects(numpy_strings(elements))) == expected
    assert _wire.count_encoded(expected) == len(elements)
    if elements:
        theirs = serialize_byte_tensor(numpy_strings(elements))
        assert theirs.item() == expected


@given(elements=st.lists(st.binary(max_size=12), min_size=1))
@example(elements=[b"", b"\0", b"a\0", b"a\0b", b"\0a"])
def test_fixed_bytes(elements: list[bytes]) -> None:
    """An S array has no trailing NULs to tell; what numpy reads from it is what is sent."""
    array = np.array(elements)
    assert array.dtype.kind == "S"
    payload = _wire.encode_fixed(array, array.dtype.itemsize, unicode=False)
    assert split_bytes_payload(bytes(payload)) == array.tolist()
    assert array.tolist() == [element.rstrip(b"\0") for element in elements]


@given(elements=st.lists(st.text(max_size=12), min_size=1))
@example(elements=["", "\0", "a\0", "a\0b", "\0a"])
@example(elements=["\x7f", "\x80", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\uffff"])
@example(elements=["\U00010000", "\U0010ffff", "a\U0001f71a\0"])
def test_fixed_text(elements: list[str]) -> None:
    """A U array becomes UTF-8, whatever the characters."""
    array = np.array(elements)
    assert array.dtype.kind == "U"
    payload = _wire.encode_fixed(array, array.dtype.itemsize // 4, unicode=True)
    assert split_bytes_payload(bytes(payload)) == [text.encode() for text in array.tolist()]
    assert array.tolist() == [text.rstrip("\0") for text in elements]


def test_every_character() -> None:
    characters = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    array = np.array(["".join(characters[at : at + 64]) for at in range(0, len(characters), 64)])
    payload = _wire.encode_fixed(array, array.dtype.itemsize // 4, unicode=True)
    assert b"".join(split_bytes_payload(bytes(payload))) == "".join(characters).encode()


@pytest.mark.parametrize("code", [0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0x110000, 0xFFFFFFFF])
@pytest.mark.parametrize("at", [0, 2, 5])
def test_characters_that_utf8_has_not(code: int, at: int) -> None:
    """Surrogates, and numbers that are no characters at all; the message says where."""
    codes = np.full(6, ord("a"), np.uint32)
    codes[at] = code
    array = codes.view("U2")
    with pytest.raises(InvalidTensor, match=rf"element {at // 2} holds U\+{code:04X}\b"):
        _wire.encode_fixed(array, 2, unicode=True)


def test_surrogates_in_objects() -> None:
    """A surrogate pair is two lone surrogates to Python, and neither is text."""
    for text in ("\ud800", "a\udfff", "\ud83d\udf1a"):
        elements = ["a", "b", text]
        with pytest.raises(InvalidTensor, match=r"element 2 is .*cannot be written as UTF-8"):
            _wire.encode_sequence(elements)
        with pytest.raises(InvalidTensor, match=r"element 2 is .*cannot be written as UTF-8"):
            _wire.encode_objects(numpy_strings(elements))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([b"", b""]), [b"", b""]),  # numpy makes S1 of it
        (np.array(["", ""]), [b"", b""]),
        (np.array([b"a"]), [b"a"]),
        (np.array(["é"]), ["é".encode()]),
        (np.array([b"ab"])[:0], []),
        (np.array(["ab"])[:0], []),
        (np.zeros((0, 3), "S4"), []),
        (np.zeros((2, 2), "S4"), [b""] * 4),
        (np.array([["a", "bb"], ["ccc", ""]]), [b"a", b"bb", b"ccc", b""]),
    ],
)
def test_fixed_widths_and_shapes(array: np.ndarray[Any, Any], expected: list[bytes]) -> None:
    is_unicode = array.dtype.kind == "U"
    width = array.dtype.itemsize // (4 if is_unicode else 1)
    payload = _wire.encode_fixed(array, width, unicode=is_unicode)
    assert split_bytes_payload(bytes(payload)) == expected


@pytest.mark.parametrize("width", [0, -1, -4, -(2**62)])
@pytest.mark.parametrize("is_unicode", [False, True])
def test_fixed_width_that_there_is_not(width: int, is_unicode: bool) -> None:
    """numpy has arrays of S0; their number of elements cannot be seen from their bytes."""
    with pytest.raises(ValueError, match="width"):
        _wire.encode_fixed(b"abcdefgh", width, is_unicode)


def test_unaligned_text() -> None:
    """numpy allows text at odd addresses."""
    memory = bytearray(1 + 4 * 3)
    memory[1:] = np.array(["aé🜚"]).tobytes()
    array = np.frombuffer(memory, "U3", offset=1)
    assert not array.flags.aligned
    payload = _wire.encode_fixed(array, 3, unicode=True)
    assert split_bytes_payload(bytes(payload)) == ["aé🜚".encode()]


@pytest.mark.parametrize("bad", [3, None, 1.5, bytearray(b"x"), ["x"], memoryview(b"x"), object()])
def test_elements_that_are_no_strings(bad: object) -> None:
    elements: list[Any] = ["a", b"b", bad, "c"]
    message = f"element 2 is a {type(bad).__name__}; a BYTES tensor holds str and bytes objects"
    with pytest.raises(InvalidTensor, match=message):
        _wire.encode_sequence(elements)
    array = np.empty(4, np.object_)
    for index, element in enumerate(elements):
        array[index] = element
    with pytest.raises(InvalidTensor, match=message):
        _wire.encode_objects(array)


def test_numpy_scalars_are_strings_too() -> None:
    elements: list[str | bytes] = [np.str_("é"), np.bytes_(b"\xff")]
    expected = bytes_payload(["é".encode(), b"\xff"])
    assert bytes(_wire.encode_sequence(elements)) == expected
    assert bytes(_wire.encode_objects(numpy_strings(elements))) == expected


def test_empty_slots() -> None:
    """numpy leaves slots of object arrays empty here and there, and reads them as None."""
    array = np.empty(3, np.object_)
    with pytest.raises(InvalidTensor, match="element 0 is a NoneType"):
        _wire.encode_objects(array)


def test_sequence_that_makes_its_elements() -> None:
    """Elements that nobody else keeps live until they have been copied."""

    class Lines:
        def __init__(self, text: str) -> None:
            self._text = text

        def __len__(self) -> int:
            return 200

        def __iter__(self) -> Iterator[str]:
            for index in range(200):
                yield f"{index:050d} {self._text}"

    class Reversed(list[str]):
        def __iter__(self) -> Iterator[str]:
            for element in self[::-1]:
                yield element + "!" * 50

    lines: Any = Lines("é")
    expected = bytes_payload([line.encode() for line in lines])
    assert bytes(_wire.encode_sequence(lines)) == expected
    text = Reversed(str(index) for index in range(100))
    assert bytes(_wire.encode_sequence(text)) == bytes_payload([line.encode() for line in text])
    array: Any = np.array(["é" * 40 + str(index) for index in range(100)])
    assert bytes(_wire.encode_sequence(array)) == bytes_payload([line.encode() for line in array])


def test_noncontiguous_arrays_are_refused() -> None:
    objects = numpy_strings(["a", "b", "c", "d"])
    with pytest.raises((BufferError, ValueError)):
        _wire.encode_objects(objects[::2])
    with pytest.raises((BufferError, ValueError)):
        _wire.encode_objects(objects.reshape(2, 2).T)
    with pytest.raises((BufferError, ValueError)):
        _wire.encode_fixed(np.array(["a", "b", "c"])[::2], 1, unicode=True)


def test_references_are_left_alone() -> None:
    """Encoding borrows: no element gains or loses an owner."""
    elements: list[str | bytes] = [f"element {index} é" for index in range(5)]
    elements += [bytes([index]) * 100 for index in range(5)]
    array = numpy_strings(elements)
    before = [sys.getrefcount(element) for element in elements]
    for _ in range(10):
        _wire.encode_sequence(elements)
        _wire.encode_objects(array)
        with pytest.raises(InvalidTensor):
            _wire.encode_sequence([*elements, 3])  # type: ignore[list-item]
    gc.collect()
    assert [sys.getrefcount(element) for element in elements] == before
    assert array.tolist() == elements


# ------------------------------------------------------------------------------------------------
# Counting and decoding
# ------------------------------------------------------------------------------------------------


@given(elements=st.lists(st.binary(max_size=12), max_size=20))
def test_decoded_as_official(elements: list[bytes]) -> None:
    payload = bytes_payload(elements)
    array = decode(payload, len(elements))
    assert array.tolist() == elements
    assert all(type(element) is bytes for element in array)
    if elements:
        assert deserialize_bytes_tensor(payload).tolist() == elements


@given(payload=st.binary(max_size=40) | st.lists(st.integers(0, 5)).map(bytes))
def test_count(payload: bytes) -> None:
    try:
        expected = len(split_bytes_payload(payload))
    except (ValueError, struct.error):
        expected = -1
    assert _wire.count_encoded(payload) == expected


@pytest.mark.parametrize(
    "payload",
    [
        b"\0",
        b"\0\0\0",
        b"\1\0\0\0",
        b"\2\0\0\0x",
        b"\0\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\xff\xff\xff\xffxyz",
        b"\xfb\xff\xff\xffx" * 2,
        b"\1\0\0\0x\1\0\0",
    ],
)
def test_cut_off(payload: bytes) -> None:
    assert _wire.count_encoded(payload) == -1


def test_count_of_any_buffer() -> None:
    payload = bytes_payload([b"a", b"", b"bc"])
    for memory in (payload, bytearray(payload), memoryview(payload), np.frombuffer(payload, "u1")):
        assert _wire.count_encoded(memory) == 3
    assert _wire.count_encoded(np.zeros(4, np.int32)) == 4
    with pytest.raises((BufferError, ValueError)):
        _wire.count_encoded(memoryview(payload)[::2])


def test_decode_into_shape() -> None:
    array = np.empty((2, 1, 2), np.object_)
    _wire.decode_elements(decoded_payload(bytes_payload([b"a", b"b", b"c", b"d"]), 4), array)
    assert array.tolist() == [[[b"a", b"b"]], [[b"c", b"d"]]]


def test_other_threads_run_while_many_are_decoded() -> None:
    count = 2_000_000
    payload = decoded_payload(b"\x02\0\0\0ab" * count, count)
    array = np.empty(count, np.object_)
    turns = 0
    over = threading.Event()

    def take_turns() -> None:
        nonlocal turns
        while not over.is_set():
            turns += 1
            time.sleep(0)

    def turns_during_a_call() -> int:
        before = turns
        _wire.decode_elements(payload, array)
        return turns - before

    other = threading.Thread(target=take_turns)
    other.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # after which a thread asks for its turn
    try:
        # Of more than a hundred; without any, there are those at its ends. A busy machine may not
        # get round to the other thread in the time of one call, so one of many has to do.
        assert any(turns_during_a_call() > 5 for _ in range(50))
    finally:
        sys.setswitchinterval(interval)
        over.set()
        other.join()
    assert array[0] == array[-1] == b"ab"


def test_decode_what_was_encoded() -> None:
    payload = _wire.encode_sequence(["é", b"\0", ""])
    array = np.empty(3, np.object_)
    _wire.decode_elements(payload, array)
    assert array.tolist() == ["é".encode(), b"\0", b""]


def test_decoded_elements_are_owned_once() -> None:
    array = decode(bytes_payload([b"a long enough element", b"another of them"]), 2)
    for index in range(2):
        element = array[index]
        # Of the array, of the local name, of the call.
        assert sys.getrefcount(element) == 3


def test_overwritten_elements_are_released() -> None:
    class Element:
        pass

    olds = [Element() for _ in range(3)]
    gone = [weakref.ref(old) for old in olds]
    array = np.empty(3, np.object_)
    array[:] = olds
    del olds
    assert all(reference() is not None for reference in gone)
    _wire.decode_elements(decoded_payload(bytes_payload([b"a", b"b", b"c"]), 3), array)
    assert [reference() for reference in gone] == [None] * 3
    assert array.tolist() == [b"a", b"b", b"c"]


def test_decoded_elements_die_with_the_array() -> None:
    """Seen by what Python has allocated, since bytes objects cannot be watched."""
    payload = decoded_payload(bytes_payload([bytes([index]) * 50 for index in range(200)]), 200)
    array = np.empty(200, np.object_)
    _wire.decode_elements(payload, array)
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(50):
        _wire.decode_elements(payload, array)  # each time over the elements of the last
    gc.collect()
    # Of ten thousand, if they did not; other threads may have allocated some.
    assert abs(sys.getallocatedblocks() - before) < 2000


@pytest.mark.parametrize("count", [0, 1, 3])
def test_wrong_number_of_slots(count: int) -> None:
    array = np.full(count, "kept", np.object_)
    with pytest.raises(ValueError, match=f"2 elements do not fill an array of {count}"):
        _wire.decode_elements(decoded_payload(bytes_payload([b"a", b"b"]), 2), array)
    assert array.tolist() == ["kept"] * count


def test_decode_into_what_cannot_be_written() -> None:
    payload = decoded_payload(bytes_payload([b"a", b"b"]), 2)
    read_only = np.empty(2, np.object_)
    read_only.flags.writeable = False
    with pytest.raises((BufferError, ValueError)):
        _wire.decode_elements(payload, read_only)
    with pytest.raises((BufferError, ValueError)):
        _wire.decode_elements(payload, np.empty(4, np.object_)[::2])
    with pytest.raises(TypeError):
        _wire.decode_elements(bytes_payload([b"a", b"b"]), np.empty(2, np.object_))  # type: ignore[arg-type]


def test_no_elements() -> None:
    assert bytes(_wire.encode_sequence([])) == b""
    assert bytes(_wire.encode_objects(np.empty((0, 3), np.object_))) == b""
    assert _wire.count_encoded(b"") == 0
    assert decode(b"", 0).tolist() == []


@pytest.mark.parametrize(
    "encode",
    [
        lambda: _wire.encode_sequence(["x"] * 10_000),
        lambda: _wire.encode_objects(np.full(10_000, "x", np.object_)),
        lambda: _wire.encode_fixed(np.full(10_000, b"x"), 1, unicode=False),
        lambda: _wire.encode_fixed(np.full(10_000, "x"), 1, unicode=True),
    ],
)
def test_many_elements(encode: Callable[[], _wire.Payload]) -> None:
    payload = encode()
    assert len(payload) == 50_000
    assert bytes(payload) == b"\1\0\0\0x" * 10_000
    assert _wire.count_encoded(payload) == 10_000
