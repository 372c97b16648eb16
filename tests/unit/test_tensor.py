"""What may be an input, what it is sent as, and what is refused."""

from __future__ import annotations

import array
import ctypes
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from triton_fast import DATATYPES, InvalidTensor, Tensor
from triton_fast._core import _wire
from triton_fast.inference.tensor import copied_bytes, input_tensor, memory_of, new_array
from triton_fast.protocol.datatypes import datatype_of, dtype_of
from triton_fast.protocol.messages import decode


def encoded(value):
    tensor = input_tensor("x", value)
    request = _wire.Request(_wire.Header("m"))
    request.add_input(*tensor)
    return request


def sent(value):
    """The datatype, shape and bytes that an input is sent as."""
    message = decode("ModelInferRequest", encoded(value).render())
    (tensor,) = message.inputs
    (payload,) = message.raw_input_contents
    return tensor.datatype, tuple(tensor.shape), payload


def address_sent(value):
    """Where in memory an input is sent from."""
    _, (address, _) = encoded(value).segments()
    return address


@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d not in {"BF16", "BYTES"}])
def test_arrays_are_sent_from_their_own_memory(datatype):
    values = np.arange(6).reshape(2, 3).astype(dtype_of(datatype))
    tensor = input_tensor("x", values)
    assert tensor[:3] == ("x", datatype, (2, 3))
    assert tensor.payload is values


@pytest.mark.parametrize("datatype", DATATYPES)
def test_the_two_tables_of_datatypes_agree(datatype):
    size = _wire.datatype_size(datatype)
    assert size == (0 if datatype == "BYTES" else dtype_of(datatype).itemsize)
    assert datatype_of(dtype_of(datatype)) == datatype


def test_only_what_the_table_has_is_a_datatype():
    assert _wire.datatype_size("FP8") == -1
    assert _wire.datatype_size("") == -1
    with pytest.raises(KeyError):
        dtype_of("FP8")


def test_bfloat16():
    values = np.array([1, -2, 3.5], ml_dtypes.bfloat16)
    assert sent(values) == ("BF16", (3,), values.tobytes())
    assert address_sent(values) == values.ctypes.data
    raw = Tensor(values.view(np.uint16), "BF16", [3])
    assert sent(raw) == sent(values)
    assert address_sent(raw) == values.ctypes.data


def test_bfloat16_without_ml_dtypes_is_received_as_its_bits():
    code = """
import sys
sys.modules["ml_dtypes"] = None
import numpy as np
from triton_fast.protocol.datatypes import dtype_of
assert dtype_of("BF16") == np.uint16, dtype_of("BF16")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("dtype", [">f4", ">i8", ">u2", ">f2", ">f8", ">i4"])
def test_foreign_byte_orders_are_converted(dtype):
    values = np.array([1, 2, 60], dtype)
    native = values.astype(values.dtype.newbyteorder("="))
    assert sent(values) == (datatype_of(native.dtype), (3,), native.tobytes())


def test_strided_arrays_are_sent_in_c_order():
    base = np.arange(24, dtype=np.int32).reshape(4, 6)
    for view in (base.T, base[::2, ::3], base[::-1], np.asfortranarray(base), base[:, 0]):
        assert sent(view) == ("INT32", view.shape, view.tobytes("C"))


def test_the_array_is_not_changed_or_kept():
    values = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    before = sys.getrefcount(values)
    sent(values)
    assert sys.getrefcount(values) == before
    assert values.flags.f_contiguous


def test_scalars_and_empty_tensors():
    assert sent(np.array(3, np.int16)) == ("INT16", (), b"\3\0")
    assert sent(np.float32(0)) == ("FP32", (), b"\0\0\0\0")
    assert sent(np.empty((0, 4), np.float32)) == ("FP32", (0, 4), b"")
    assert sent(np.array(3.0).astype(">f8")) == ("FP64", (), np.float64(3).tobytes())


def test_buffers_of_other_libraries_are_not_copied():
    for value, datatype in (
        (array.array("f", [1, 2, 3]), "FP32"),
        (bytearray(b"abc"), "UINT8"),
        (memoryview(b"abc"), "UINT8"),
        ((ctypes.c_double * 3)(1, 2, 3), "FP64"),
    ):
        tensor = input_tensor("x", value)
        assert (tensor.datatype, tensor.shape) == (datatype, (3,))
        assert address_sent(value) == np.asarray(memoryview(value)).ctypes.data


class OnDevice:
    """An object with DLPack only, as torch's tensors have it."""

    def __init__(self, values, device=1):
        self.values = values
        self.device = device

    def __dlpack__(self, **options):
        return self.values.__dlpack__(**options)

    def __dlpack_device__(self):
        return (self.device, 0)


def test_dlpack_is_not_copied():
    values = np.arange(4, dtype=np.float32)
    assert sent(OnDevice(values)) == sent(values)
    assert address_sent(OnDevice(values)) == values.ctypes.data


def test_dlpack_on_a_device_is_refused():
    with pytest.raises(InvalidTensor, match=r"input 'x': the OnDevice is on device .* not on the"):
        input_tensor("x", OnDevice(np.zeros(1), device=2))


def test_torch_tensors_are_not_copied():
    torch = pytest.importorskip("torch", reason="torch is not installed (optional)")
    for dtype, datatype in (
        (torch.float32, "FP32"),
        (torch.bfloat16, "BF16"),
        (torch.int8, "INT8"),
    ):
        values = torch.arange(6).reshape(2, 3).to(dtype)
        tensor = input_tensor("x", values)
        assert (tensor.datatype, tensor.shape) == (datatype, (2, 3))
        assert address_sent(values) == values.data_ptr()
    turned = torch.arange(6, dtype=torch.float32).reshape(2, 3).T
    assert sent(turned)[2] == turned.numpy().tobytes()
    with pytest.raises(InvalidTensor, match=r"input 'x'.*grad"):
        input_tensor("x", torch.zeros(1, requires_grad=True))


def strings(*values):
    return b"".join(
        len(v).to_bytes(4, "little") + v
        for v in (value.encode() if isinstance(value, str) else value for value in values)
    )


def test_strings_in_every_form():
    words = ["", "a", "é€𝄞", "nul\0inside"]
    expected = ("BYTES", (4,), strings(*words))
    assert sent(words) == expected
    assert sent(tuple(words)) == expected
    assert sent([word.encode() for word in words]) == expected
    assert sent(np.array(words, object)) == expected
    assert sent(np.array(words, "U")) == expected
    assert sent(np.array(words, ">U10")) == expected
    assert sent(np.array([word.encode() for word in words], "S")) == expected
    assert sent(Tensor(strings(*words), "BYTES", [4])) == expected
    if hasattr(np.dtypes, "StringDType"):
        assert sent(np.array(words, np.dtypes.StringDType())) == expected


def test_strings_of_several_dimensions():
    rows = [["a", "bc"], ["d", b"\0"], ["", "x"]]
    assert sent(rows) == ("BYTES", (3, 2), strings("a", "bc", "d", b"\0", "", "x"))
    turned = np.array(rows, object).T
    assert sent(turned) == ("BYTES", (2, 3), strings("a", "d", "", "bc", b"\0", "x"))
    assert sent([[], []]) == ("BYTES", (2, 0), b"")
    assert sent([]) == ("BYTES", (0,), b"")
    assert sent(np.array("word")) == ("BYTES", (), strings("word"))
    assert sent(np.array([["ab", "c"], ["d", "e"]])[:, ::-1])[2] == strings("c", "ab", "e", "d")
    assert sent(np.empty((0, 2), "S3")) == ("BYTES", (0, 2), b"")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([1, 2], object), "element 0 is a int"),
        (np.array(["a", None], object), "element 1 is a NoneType"),
        (["a", 3], "element 1 is a int"),
        ([1.5, 2.5], "a list must hold .* sent as BYTES, got float.*dtype"),
        ([["a"], ["b", "c"]], "rows are not all of one length"),
        (["ok", "\ud800"], "element 1 .* UTF-8"),
        (np.array(["ok", "\ud800"], "U"), r"element 1 holds U\+D800"),
        ("word", "a single str has no shape"),
        (b"word", "a single bytes has no shape"),
        (3.5, "a float is no tensor"),
        (None, "a NoneType is no tensor"),
        (object(), "an? object is no tensor"),
        (np.array([1j]), "dtype complex128"),
        (np.array(["2020-01-01"], "M8[D]"), "dtype datetime64"),
        (np.zeros(2, [("a", "i4")]), "no datatype holds"),
        (np.ma.masked_array([1.0], [True]), "mask"),
    ],
)
def test_what_is_no_tensor_is_refused_by_name(value, message):
    with pytest.raises(InvalidTensor, match=rf"(?s)input 'x': .*{message}") as caught:
        input_tensor("x", value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((b"123", "FP32", [1]), r"FP32 \[1\] takes 4 bytes, and the memory has 3"),
        ((b"1234", "FP8", [4]), "unknown datatype 'FP8'"),
        ((b"", "FP32", [-1]), "negative"),
        ((b"", "FP32", 3), "sequence of whole numbers"),
        ((bytes(8), "FP32", [2.9]), "sequence of whole numbers"),
        ((b"\3\0\0\0ab", "BYTES", [1]), "cut off"),
        ((b"\1\0\0\0a", "BYTES", [2]), r"BYTES \[2\] has 2 elements, and the 5 bytes hold 1"),
        ((3.5, "FP32", [1]), "no buffer"),
        ((np.array(["a"], object), "BYTES", [1]), "pointers"),
        ((None, "FP32", [1]), "shared memory"),
        ((bytes(4), "FP32"), "must both be given, for raw memory, or neither, got only datatype"),
        ((bytes(4), None, [1]), "must both be given, for raw memory, or neither, got only shape"),
        ((None,), "a tensor of no data must have a datatype and a shape"),
        ((Tensor(bytes(4), "FP32", [1]),), "a tensor of a Tensor must have a datatype"),
        (([1.0],), "^a list must hold str or bytes"),
        ((["a", 1],), "^element 1 is a int"),
        ((np.zeros(2, ">u2"), "FP32", [1]), "big-endian >u2 is not what FP32 is sent as"),
        ((np.zeros(1, ">u4"), "BYTES", [1]), "big-endian >u4 is not what BYTES is sent as"),
        ((np.zeros(1, ">c8"), "FP64", [1]), "big-endian >c8 is not what FP64 is sent as"),
        ((np.zeros(1, [("a", ">f4")]), "FP32", [1]), "big-endian .* is not what FP32 is sent as"),
    ],
)
def test_raw_memory_must_be_what_it_says(arguments, message):
    with pytest.raises(InvalidTensor, match=message):
        Tensor(*arguments)


def test_raw_memory_is_borrowed():
    memory = bytearray(8)
    tensor = Tensor(memory, "INT32", (2,))
    assert tensor.shape == (2,)
    assert address_sent(tensor) == np.asarray(memoryview(memory)).ctypes.data
    strided = Tensor(np.arange(8, dtype=np.uint8)[::2], "INT32", [1])
    assert sent(strided) == ("INT32", (1,), b"\0\2\4\6")


def test_shared_memory_has_no_payload():
    parameters = {"shared_memory_region": "r", "shared_memory_byte_size": 4}
    tensor = input_tensor("x", Tensor(None, "FP32", [1], parameters=parameters))
    assert tensor.payload is None
    assert tensor.parameters == parameters


@pytest.mark.parametrize("kind", [list, np.array])
def test_many_strings_are_encoded_in_pieces(kind):
    words = [f"word {number}" for number in range(100_001)]
    values = kind(words) if kind is list else np.array(words, object)
    tensor = input_tensor("x", values)
    assert tensor.shape == (100_001,)
    pieces = [word.encode() for word in words]
    assert bytes(tensor.payload) == b"".join(
        len(piece).to_bytes(4, "little") + piece for piece in pieces
    )
    values[77_777] = 7
    with pytest.raises(InvalidTensor, match="input 'x': element 77777 is a int"):
        input_tensor("x", values)


def test_how_much_an_input_takes_and_what_is_copied_of_it():
    array = np.zeros((1000, 1000), np.float32)
    words = [b"x" * 1000] * 10_000
    for value, memory, copied in (
        (array, 4_000_000, 0),
        (array.T, 4_000_000, 4_000_000),
        (array.astype(">f4"), 4_000_000, 4_000_000),
        (memoryview(array), 4_000_000, 0),
        (memoryview(array)[::2], 2_000_000, 2_000_000),
        (bytes(5000), 5000, 0),
        (Tensor(array, "FP32", [1000, 1000]), 4_000_000, 0),
        (object(), 0, 0),
    ):
        assert memory_of(value) == memory
        assert copied_bytes(value) == copied
    for strings in (words, np.array(words, object), [words[:5000]] * 2, np.array(words)):
        assert 10_000_000 <= memory_of(strings) < 12_000_000
        assert 10_000_000 <= copied_bytes(strings) < 14_000_000


@pytest.mark.parametrize("dtype", [">f4", ">u4", ">i4"])
def test_raw_memory_is_little_endian(dtype):
    bits = np.array([1.0, -2.5], "<f4").view("<u4")
    big = bits.astype(">u4").view(dtype)
    for data in (big, memoryview(big), np.repeat(big, 2)[::2]):
        assert sent(Tensor(data, "FP32", [2])) == ("FP32", (2,), bits.tobytes())
    half = np.array([1, 2], ">u2")
    assert sent(Tensor(half, "BF16", [2])) == ("BF16", (2,), b"\1\0\2\0")


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(["é", b"a\0"], id="strings"),
        pytest.param([["a"], ["bc"]], id="nested"),
        pytest.param([], id="nothing"),
        pytest.param(np.array(["a", "bc"]), id="U"),
        pytest.param(np.arange(6, dtype=np.int16).reshape(2, 3), id="array"),
        pytest.param(np.arange(6, dtype=np.int16).reshape(2, 3).T, id="turned"),
        pytest.param(np.array([1.5], ">f8"), id="big_endian"),
        pytest.param(np.array([1.5], ml_dtypes.bfloat16), id="bfloat16"),
        pytest.param(np.float32(3), id="scalar"),
        pytest.param(np.zeros((0, 2), np.float32), id="empty"),
        pytest.param(memoryview(b"abc"), id="buffer"),
        pytest.param(OnDevice(np.arange(3.0)), id="dlpack"),
    ],
)
def test_parameters_go_beside_any_input(value):
    """It is sent as it is without them."""
    beside = Tensor(value, parameters={"text": "é", "flag": True, "number": 7, "half": 0.5})
    assert sent(beside) == sent(value)
    (tensor,) = decode("ModelInferRequest", encoded(beside).render()).inputs
    parameters = tensor.parameters
    assert parameters["text"].string_param == "é"
    assert parameters["flag"].bool_param is True
    assert parameters["number"].int64_param == 7
    assert parameters["half"].double_param == 0.5
    assert sent(Tensor(value)) == sent(value)


def test_parameters_that_do_not_go_with_data():
    """The server would take the next tensor's bytes for this one's."""
    there = {"shared_memory_region": "r", "shared_memory_byte_size": 4}
    with pytest.raises(InvalidTensor, match=r"FP32 \[2\] takes 8 bytes, and its place .* has 4"):
        Tensor(None, "FP32", [2], parameters=there)
    for name in ("shared_memory_offset", "shared_memory_byte_size"):
        for one in (-1, "4", 1.5, True):
            with pytest.raises(InvalidTensor, match=f"'{name}' must be a number of bytes"):
                Tensor(None, "FP32", [1], parameters={**there, name: one})
    for arguments in ((bytes(4), "FP32", [1]), (["a"],)):
        with pytest.raises(InvalidTensor, match="has data or is in shared memory, and not both"):
            Tensor(*arguments, parameters=there)
    with pytest.raises(InvalidTensor, match="parameters must be a mapping of name to value, got"):
        Tensor(["a"], parameters=[("language", "en")])


def test_an_array_beside_which_there_are_parameters_is_borrowed():
    values = np.arange(6.0)
    assert address_sent(Tensor(values, parameters={"a": 1})) == values.ctypes.data


@pytest.mark.parametrize("value", [[1.5], [[1.5, 2]], [[[1], [2]]], ((True,),), [np.float32(1)]])
def test_numbers_in_lists_have_no_dtype(value):
    with pytest.raises(InvalidTensor, match=r"'x': .*numpy.array\(values, dtype=numpy.float32\)"):
        input_tensor("x", value)


def test_more_memory_than_there_is():
    with pytest.raises(InvalidTensor, match=r"no memory for arrays of float32 \[11529215"):
        new_array((1 << 60,), np.dtype(np.float32))
