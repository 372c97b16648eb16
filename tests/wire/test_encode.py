"""Requests: what ours writes is what the official package reads; memory is held just as long."""

from __future__ import annotations

import ctypes
import math
import mmap
import resource
import struct
import sys
import threading
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from support.bystander import Bystander
from tritonclient.grpc.service_pb2 import ModelInferRequest
from wire_oracle import DATATYPES, canonical
from wire_strategies import (
    INT64_MAX,
    INT64_MIN,
    UINT64_MAX,
    RequestCase,
    official_request,
    requests,
)

from triton_fast._core import _wire
from triton_fast.errors import ClosedError, InvalidOption, InvalidTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LIMIT = 2**31 - 1  # protobuf's, of a message


def build(case: RequestCase) -> _wire.Request:
    header = _wire.Header(
        case.model_name,
        case.model_version,
        parameters=case.parameters,
        priority=case.priority,
        queue_timeout_us=case.queue_timeout_us,
        outputs=case.outputs,
    )
    request = _wire.Request(header, case.request_id)
    for tensor in case.inputs:
        request.add_input(*tensor)
    return request


def joined(request: _wire.Request) -> bytes:
    return b"".join(ctypes.string_at(address, size) for address, size in request.segments())


def parsed(encoded: bytes) -> ModelInferRequest:
    return ModelInferRequest.FromString(encoded)


def one_input(payload: Any, datatype: str = "FP32", shape: tuple[int, ...] = ()) -> bytes:
    """Encode a request with one tensor and return what the official package takes for its bytes."""
    request = _wire.Request(_wire.Header("m"))
    try:
        request.add_input("x", datatype, shape, payload)
        message = parsed(request.render())
    finally:
        request.release()
    (encoded,) = message.raw_input_contents
    return bytes(encoded)


@given(case=requests())
def test_same_as_official(case: RequestCase) -> None:
    """Every field, and with it the order of the inputs and of their contents."""
    request = build(case)
    try:
        rendered = request.render()
        message = parsed(rendered)
        assert canonical(message) == canonical(official_request(case))
        # All of it is known: nothing that the official package skips.
        assert len(canonical(message)) == message.ByteSize()
        assert request.byte_size == len(rendered)
        assert joined(request) == rendered
    finally:
        request.release()


@given(case=requests())
def test_header_is_reusable(case: RequestCase) -> None:
    """A header serves any number of requests, which do not change it."""
    header = _wire.Header(case.model_name, parameters=case.parameters, outputs=case.outputs)
    before = header.byte_size
    rendered = []
    for request_id in ("first", "", "first"):
        request = _wire.Request(header, request_id)
        for tensor in case.inputs:
            request.add_input(*tensor)
        rendered.append(request.render())
        request.release()
    assert rendered[0] == rendered[2]
    assert parsed(rendered[0]).id == "first"
    assert parsed(rendered[1]).id == ""
    assert header.byte_size == before


def test_raw_contents_follow_the_inputs() -> None:
    """Each tensor's bytes are at its own place, and one in shared memory takes no place."""
    request = _wire.Request(_wire.Header("m"))
    request.add_input("c", "UINT8", [1], b"c")
    request.add_input("shared", "UINT8", [9], None, {"shared_memory_region": "r"})
    request.add_input("a", "UINT8", [1], b"a")
    request.add_input("empty", "UINT8", [0], b"")
    request.add_input("b", "UINT8", [1], b"b")
    message = parsed(request.render())
    request.release()
    assert [tensor.name for tensor in message.inputs] == ["c", "shared", "a", "empty", "b"]
    assert list(message.raw_input_contents) == [b"c", b"a", b"", b"b"]
    assert message.inputs[1].parameters["shared_memory_region"].string_param == "r"


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 65535, 65536, 2097151, 2097152])
def test_payload_sizes(size: int) -> None:
    """Around every length at which a varint grows, and around the size that lets threads run."""
    payload = np.arange(size, dtype=np.uint32).astype(np.uint8)
    assert one_input(payload, "UINT8", (size,)) == payload.tobytes()


def test_segments_borrow_the_payload() -> None:
    """The gather list points at the tensor's own memory: nothing is copied."""
    array = np.arange(1000, dtype=np.float32)
    request = _wire.Request(_wire.Header("m"))
    request.add_input("x", "FP32", array.shape, array)
    segments = request.segments()
    assert segments[-1] == (array.ctypes.data, array.nbytes)
    assert sum(size for _, size in segments) == request.byte_size
    # What is in it when the message is made is what is sent.
    array[0] = 42
    assert parsed(request.render()).raw_input_contents[0] == array.tobytes()
    assert request.segments() == segments
    request.release()


def test_no_inputs() -> None:
    request = _wire.Request(_wire.Header("m"))
    assert (
        joined(request) == request.render() == ModelInferRequest(model_name="m").SerializeToString()
    )
    request.release()


# ------------------------------------------------------------------------------------------------
# Parameters and options
# ------------------------------------------------------------------------------------------------


def parameters_of_request(parameters: dict[str, Any]) -> Any:
    request = _wire.Request(_wire.Header("m", parameters=parameters))
    message = parsed(request.render())
    request.release()
    return message.parameters


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (True, "bool_param", True),
        (False, "bool_param", False),
        (np.True_, "bool_param", True),
        (0, "int64_param", 0),
        (INT64_MIN, "int64_param", INT64_MIN),
        (INT64_MAX, "int64_param", INT64_MAX),
        (np.int8(-3), "int64_param", -3),
        (np.uint64(INT64_MAX), "int64_param", INT64_MAX),
        (0.0, "double_param", 0.0),
        (1.5, "double_param", 1.5),
        (np.float32(0.5), "double_param", 0.5),
        (float("inf"), "double_param", float("inf")),
        ("", "string_param", ""),
        ("ü\0🜚", "string_param", "ü\0🜚"),
        (np.str_("s"), "string_param", "s"),
    ],
)
def test_parameter_kinds(value: object, kind: str, expected: object) -> None:
    """The Python type decides, with numpy's scalars as what they stand for."""
    parameter = parameters_of_request({"p": value})["p"]
    assert parameter.WhichOneof("parameter_choice") == kind
    assert getattr(parameter, kind) == expected


def test_parameter_nan_and_negative_zero() -> None:
    parameters = parameters_of_request({"nan": float("nan"), "zero": -0.0})
    assert math.isnan(parameters["nan"].double_param)
    assert struct.pack("<d", parameters["zero"].double_param) == struct.pack("<d", -0.0)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"p": None}, "parameter 'p' is a NoneType"),
        ({"p": b"x"}, "parameter 'p' is a bytes"),
        ({"p": [1]}, "parameter 'p' is a list"),
        ({"p": np.array([1])}, "parameter 'p' is a ndarray"),
        ({"p": 1j}, "parameter 'p' is a complex"),
        ({"p": INT64_MAX + 1}, "parameter 'p' is 9223372036854775808"),
        ({"p": INT64_MIN - 1}, "parameter 'p' is -9223372036854775809"),
        ({"p": np.uint64(UINT64_MAX)}, "parameter 'p' is 18446744073709551615"),
        ({"p": "\ud800"}, "parameter 'p' .* cannot be written as UTF-8"),
        ({"\udfff": 1}, "a parameter's name .* cannot be written as UTF-8"),
        ({3: 1}, "a parameter's name must be a str, got int"),
    ],
)
def test_refused_parameters(parameters: dict[Any, Any], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        _wire.Header("m", parameters=parameters)
    with pytest.raises(InvalidOption, match=message):
        _wire.Header("m", outputs=[("y", parameters)])
    request = _wire.Request(_wire.Header("m"))
    with pytest.raises(InvalidOption, match=message):
        request.add_input("x", "UINT8", [1], b"x", parameters)
    request.release()


@pytest.mark.parametrize("priority", [-1, UINT64_MAX + 1, 1.5, "1"])
def test_refused_priority(priority: Any) -> None:
    with pytest.raises(InvalidOption, match="priority"):
        _wire.Header("m", priority=priority)


def test_arguments_win_over_parameters_of_their_name() -> None:
    """A map has one value for a key, and the argument's is the right kind."""
    header = _wire.Header(
        "m", parameters={"priority": 5, "timeout": 6}, priority=1, queue_timeout_us=2
    )
    request = _wire.Request(header)
    message = parsed(request.render())
    request.release()
    assert message.parameters["priority"].uint64_param == 1
    assert message.parameters["timeout"].int64_param == 2


@pytest.mark.parametrize("bad", [b"x", 3, None, "\ud800"])
def test_refused_names(bad: Any) -> None:
    """Whatever is not text that UTF-8 can hold, wherever a name goes."""
    with pytest.raises(InvalidOption, match="model_name"):
        _wire.Header(bad)
    with pytest.raises(InvalidOption, match="model_version"):
        _wire.Header("m", bad)
    with pytest.raises(InvalidOption, match="output"):
        _wire.Header("m", outputs=[(bad, None)])
    with pytest.raises(InvalidOption, match="request_id"):
        _wire.Request(_wire.Header("m"), bad)
    request = _wire.Request(_wire.Header("m"))
    with pytest.raises(InvalidOption, match="input"):
        request.add_input(bad, "UINT8", [1], b"x")
    with pytest.raises(InvalidOption, match="datatype"):
        request.add_input("x", bad, [1], b"x")
    request.release()


@pytest.mark.parametrize("shape", [[2**63], [-(2**63) - 1], ["2"], [1.5]])
def test_refused_dimensions(shape: list[Any]) -> None:
    request = _wire.Request(_wire.Header("m"))
    with pytest.raises((OverflowError, TypeError)):
        request.add_input("x", "UINT8", shape, b"x")
    request.release()


def test_shape_may_be_any_iterable_of_integers() -> None:
    request = _wire.Request(_wire.Header("m"))
    shapes: list[Any] = [np.array([2, 3]), (np.int32(1), True)]
    request.add_input("x", "UINT8", shapes[0], bytes(6))
    request.add_input("y", "UINT8", shapes[1], b"x")
    message = parsed(request.render())
    request.release()
    assert [list(tensor.shape) for tensor in message.inputs] == [[2, 3], [1, 1]]


def test_shared_memory_outputs_are_remembered() -> None:
    header = _wire.Header(
        "m",
        outputs=[
            ("a", None),
            ("b", {"shared_memory_region": "r", "shared_memory_byte_size": 4}),
            ("c", {"classification": 3}),
        ],
    )
    assert header.shared_memory_outputs == ("b",)


# ------------------------------------------------------------------------------------------------
# Memory of the payloads
# ------------------------------------------------------------------------------------------------


def arrays_of_every_datatype() -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    bits = np.random.default_rng(1).integers(0, 2**64, 6, dtype=np.uint64)
    for datatype, (_, _, code) in DATATYPES.items():
        if code:
            dtype = np.dtype(code)
            elements = bits.view(np.uint8)[: 6 * dtype.itemsize] & 1 if code == "?" else bits
            yield datatype, elements.view(dtype)[:6].reshape(2, 3)
    yield "FP16", bits.view(np.float16)[:6].reshape(2, 3)
    yield "BF16", bits.view(ml_dtypes.bfloat16)[:6].reshape(2, 3)


@pytest.mark.parametrize(("datatype", "array"), list(arrays_of_every_datatype()))
def test_arrays(datatype: str, array: np.ndarray[Any, Any]) -> None:
    """Every datatype, with whatever bits: NaN payloads, infinities, denormals."""
    assert one_input(array, datatype, array.shape) == array.tobytes()
    scalar = array[1, 2, ...]
    assert scalar.shape == ()
    assert one_input(scalar, datatype, ()) == scalar.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.array([1.5, -2.0], ml_dtypes.bfloat16),
        np.array(["2026-11-20"], "datetime64[D]"),
        np.array([1], "timedelta64[s]"),
        np.zeros(2, [("a", "<i4"), ("b", "S3")]),
    ],
    ids=["bfloat16", "datetime64", "timedelta64", "record"],
)
def test_arrays_whose_dtype_has_no_buffer_format(array: np.ndarray[Any, Any]) -> None:
    """The bytes are asked for and not what they mean, which numpy cannot always say."""
    assert one_input(array, "BF16", array.shape) == array.tobytes()


def test_bfloat16_has_no_buffer_format() -> None:
    """Or the test above would show nothing."""
    array: Any = np.zeros(1, ml_dtypes.bfloat16)
    with pytest.raises((BufferError, ValueError)):
        memoryview(array)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview, np.frombuffer])
def test_any_buffer(make: Callable[[bytes], Any]) -> None:
    payload = make(b"abcdefgh") if make is not np.frombuffer else np.frombuffer(b"abcdefgh", "u1")
    assert one_input(payload) == b"abcdefgh"


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12)[::2],
        np.arange(12)[::-1],
        np.arange(12).reshape(3, 4).T,
        np.arange(12).reshape(3, 4)[:, 1:3],
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        memoryview(b"abcdef")[::2],
    ],
)
def test_refused_arrays(array: Any) -> None:
    """An array in another order would be sent with its elements mixed up."""
    request = _wire.Request(_wire.Header("m"))
    with pytest.raises((BufferError, ValueError)):
        request.add_input("x", "INT64", [1], array)
    request.release()


def test_contiguous_whatever_the_flags_of_numpy() -> None:
    """Orders that are the same for this shape."""
    column = np.asfortranarray(np.arange(5).reshape(5, 1))
    assert one_input(column, "INT64", (5, 1)) == column.tobytes()
    empty = np.empty((0, 4), order="F")
    assert one_input(empty, "FP64", (0, 4)) == b""


@pytest.mark.parametrize("payload", ["text", 3, [1.0], object()])
def test_refused_payloads(payload: Any) -> None:
    request = _wire.Request(_wire.Header("m"))
    with pytest.raises(TypeError):
        request.add_input("x", "INT64", [1], payload)
    request.release()


def test_memory_is_held_until_release() -> None:
    """Held as a live buffer: the owner cannot move it, however much it would like to."""
    before = _wire.live_counts()["holds"]
    owner = bytearray(b"12345678")
    request = _wire.Request(_wire.Header("m"))
    request.add_input("x", "UINT8", [8], owner)
    assert _wire.live_counts()["holds"] == before + 1
    with pytest.raises(BufferError):
        owner.append(0)
    assert parsed(request.render()).raw_input_contents[0] == b"12345678"
    with pytest.raises(BufferError):
        owner.append(0)
    request.release()
    owner.append(0)
    assert _wire.live_counts()["holds"] == before
    request.release()


def test_memory_is_given_back_with_the_request() -> None:
    owner = bytearray(8)
    request = _wire.Request(_wire.Header("m"))
    request.add_input("x", "UINT8", [8], owner)
    del request
    owner.append(0)


def test_memory_is_given_back_when_adding_fails() -> None:
    owner = bytearray(8)
    request = _wire.Request(_wire.Header("m"))
    with pytest.raises(InvalidOption):
        request.add_input("\ud800", "UINT8", [8], owner)
    with pytest.raises(InvalidOption):
        request.add_input("x", "UINT8", [8], owner, {"p": None})
    owner.append(0)
    request.release()


def test_the_owner_stays_alive() -> None:
    """Nobody else needs to keep the array."""
    request = _wire.Request(_wire.Header("m"))
    request.add_input("x", "INT64", [1000], np.full(1000, 7))
    np.full(1000, 9)  # would take the memory if it had been freed
    assert parsed(request.render()).raw_input_contents[0] == np.full(1000, 7).tobytes()
    request.release()


def test_no_references_are_kept() -> None:
    payload = np.zeros(4)
    before = sys.getrefcount(payload)
    for _ in range(3):
        one_input(payload, "FP64", (4,))
    assert sys.getrefcount(payload) == before


def test_released_request_is_of_no_use() -> None:
    request = _wire.Request(_wire.Header("m"))
    request.add_input("x", "UINT8", [1], b"x")
    assert request.byte_size
    request.release()
    with pytest.raises(ClosedError):
        request.render()
    with pytest.raises(ClosedError):
        request.segments()
    with pytest.raises(ClosedError):
        _ = request.byte_size


def test_released_request_takes_no_more_memory() -> None:
    request = _wire.Request(_wire.Header("m"))
    request.release()
    owner = bytearray(1)
    with pytest.raises(ClosedError):
        request.add_input("x", "UINT8", [1], owner)
    owner.append(0)


def test_complete_request_takes_no_more_inputs() -> None:
    request = _wire.Request(_wire.Header("m"))
    assert request.byte_size
    with pytest.raises(RuntimeError, match="complete"):
        request.add_input("x", "UINT8", [1], b"x")
    request.release()


# ------------------------------------------------------------------------------------------------
# The limit of two gibibytes
# ------------------------------------------------------------------------------------------------


def untouched(size: int) -> memoryview:
    """Return address space that no memory is behind for as long as nobody reads it."""
    return memoryview(
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    )


def resident() -> int:
    """Return the most memory that this process has ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def test_too_large_a_tensor() -> None:
    """Refused when it is added, by its name and size, before a byte of it is read."""
    before = resident()
    held = _wire.live_counts()["holds"]
    tensor = untouched(5 * 2**29)
    request = _wire.Request(_wire.Header("m"))
    with pytest.raises(InvalidTensor, match=r"input 'large'.*2684354560 bytes.*2147483647"):
        request.add_input("large", "UINT8", [5 * 2**29], tensor)
    assert _wire.live_counts()["holds"] == held
    request.release()
    assert resident() - before < 64 << 20


def test_too_large_together() -> None:
    """The message names the tensor that made it too much."""
    before = resident()
    tensor = untouched(5 * 2**28)
    request = _wire.Request(_wire.Header("m"))
    request.add_input("first", "UINT8", [5 * 2**28], tensor)
    with pytest.raises(
        InvalidTensor, match=r"input 'second'.*1342177280 bytes.*26843546\d\d bytes"
    ):
        request.add_input("second", "UINT8", [5 * 2**28], tensor)
    request.release()
    assert resident() - before < 64 << 20


@pytest.mark.parametrize("excess", [0, 1])
def test_exact_limit(excess: int) -> None:
    """2147483647 bytes are allowed and one more is not."""
    before = resident()
    tensor = untouched(LIMIT)
    size = LIMIT
    for _ in range(2):  # the first time to learn how long the rest of the message is
        request = _wire.Request(_wire.Header("m"))
        request.add_input("x", "UINT8", [LIMIT - 100], tensor[: LIMIT - 100])
        size = LIMIT - (request.byte_size - (LIMIT - 100)) + excess
        request.release()
    request = _wire.Request(_wire.Header("m"))
    if excess:
        with pytest.raises(InvalidTensor, match=f"input 'x' has {size} bytes.*{LIMIT + 1} bytes"):
            request.add_input("x", "UINT8", [LIMIT - 100], tensor[:size])
    else:
        request.add_input("x", "UINT8", [LIMIT - 100], tensor[:size])
        assert request.byte_size == LIMIT
        assert sum(length for _, length in request.segments()) == LIMIT
    request.release()
    assert resident() - before < 64 << 20


def test_refused_tensor_leaves_no_trace() -> None:
    """The request is as it was before, and may go without the tensor."""
    request = _wire.Request(_wire.Header("m"))
    request.add_input("x", "UINT8", [1], b"x")
    with pytest.raises(InvalidTensor):
        request.add_input("large", "UINT8", [5 * 2**29], untouched(5 * 2**29))
    request.add_input("y", "UINT8", [1], b"y")
    message = parsed(request.render())
    request.release()
    assert [tensor.name for tensor in message.inputs] == ["x", "y"]
    assert list(message.raw_input_contents) == [b"x", b"y"]


def test_too_long_with_what_follows() -> None:
    """A tensor in shared memory has no bytes, but a name, which may be what makes it too much."""
    request = _wire.Request(_wire.Header("m"))
    request.add_input("x", "UINT8", [LIMIT - 100], untouched(LIMIT)[: LIMIT - 100])
    request.add_input("n" * 100, "UINT8", [1], None)
    with pytest.raises(InvalidTensor, match=r"the request is 2147483\d\d\d bytes long.*2147483647"):
        _ = request.byte_size
    with pytest.raises(InvalidTensor):
        request.render()
    with pytest.raises(InvalidTensor):
        request.segments()
    request.release()


# ------------------------------------------------------------------------------------------------
# Threads
# ------------------------------------------------------------------------------------------------


def test_large_payloads_are_rendered_without_the_gil() -> None:
    array = np.ones(32 << 20, np.uint8)
    request = _wire.Request(_wire.Header("m"))
    request.add_input("x", "UINT8", array.shape, array)
    with Bystander() as bystander:
        assert bystander.moves_in_time(request.render)
    request.release()


def test_small_payloads_are_rendered_with_the_gil() -> None:
    """Which also shows that the test above can fail."""
    request = _wire.Request(_wire.Header("m"))
    request.add_input("x", "UINT8", [64], bytes(64))
    with Bystander() as bystander:
        assert not any(bystander.moves_during(request.render) for _ in range(200))
    request.release()


def test_many_threads_read_one_header() -> None:
    """A header is immutable: requests are made from it on any thread at once."""
    header = _wire.Header("m", "1", parameters={"p": 1}, outputs=[("y", None)])
    payload = np.arange(20_000, dtype=np.float64)
    start = threading.Barrier(8)
    rendered: list[bytes] = []

    def make() -> None:
        start.wait()
        for _ in range(20):
            request = _wire.Request(header, "id")
            request.add_input("x", "FP64", payload.shape, payload)
            rendered.append(request.render())
            request.release()

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rendered) == 160
    assert len(set(rendered)) == 1
