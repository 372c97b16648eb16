"""Tensors on their way out: what a caller may pass as an input, and the memory that it stands for.

Owns `Tensor` and the rules by which arrays, lists and foreign tensors become payloads. Copies only
what cannot be sent as it lies: other byte orders, strided arrays, strings.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._core import _wire
from ..errors import InvalidTensor, printable
from ..options.values import instead, plain_parameters, whole_number
from ..protocol.datatypes import DATATYPES, datatype_of, dtype_of

__all__ = [
    "InputTensor",
    "Tensor",
    "checked_shape",
    "copied_bytes",
    "input_rows",
    "input_tensor",
    "memory_of",
    "new_array",
    "out_array",
]


class InputTensor(NamedTuple):
    """An input in the form in which it is encoded.

    ``payload`` is anything with a C-contiguous buffer: the caller's own memory wherever possible.
    None stands for a tensor in shared memory, which ``parameters`` then place.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    payload: Any
    parameters: Mapping[str, Any] | None = None

    @property
    def byte_size(self) -> int:
        """Of what is sent for it; none if it is in shared memory already."""
        payload = self.payload
        if payload is None:
            return 0
        return payload.nbytes if isinstance(payload, np.ndarray) else len(payload)


class Tensor:
    """Raw memory with a datatype and a shape of its own, for what numpy has no dtype for.

    Or, without these, any other input: for parameters to be sent beside it.

    Parameters
    ----------
    data : buffer, array_like, list, or None
        The elements in C order, little-endian: ``bytes``, ``memoryview``, an array of any dtype,
        which is converted if it is big-endian. Borrowed until the call is over. For BYTES, each
        element is a four-byte length and its bytes. None if ``parameters`` say where in shared
        memory the elements are. Without ``datatype`` and ``shape``: whatever
        `triton_fast.Client.infer` takes, meaning what it means there.
    datatype : str, optional
        Triton's spelling, as in ``"BF16"``.
    shape : sequence of int, optional
        With the batch dimension, if the model has one. Given if ``datatype`` is.
    parameters : mapping of str to bool, int, float or str, optional
        Parameters of this tensor, for the server to read (``shared_memory_region`` and the like).

    Raises
    ------
    InvalidTensor
        If there is no such datatype, a dimension is negative, or the memory has not the number of
        bytes that datatype and shape take (in shared memory: has fewer), or elements of another
        size in big-endian order; if it has both data and a place in shared memory; or, without
        datatype and shape, if no tensor can be made of it.
    InvalidOption
        If a parameter's name or value is none.

    Examples
    --------
    Half of a float32's bits are a bfloat16:

    >>> import numpy as np
    >>> bits = (np.array([1.0, 2.5], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    >>> Tensor(bits, "BF16", [2])
    Tensor(BF16, [2], 4 bytes)

    Parameters beside strings:

    >>> Tensor(["yes", "no"], parameters={"language": "en"})
    Tensor(BYTES, [2], 13 bytes)

    Source
    ------
    inference.proto, ModelInferRequest.InferInputTensor; Triton's "binary tensor data extension".
    """

    __slots__ = ("data", "datatype", "parameters", "shape")

    def __init__(
        self,
        data: Any,
        datatype: str | None = None,
        shape: Sequence[int] | None = None,
        *,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        if parameters is not None and not isinstance(parameters, Mapping):
            raise InvalidTensor(
                f"parameters must be a mapping of name to value, got {type(parameters).__name__}"
            )
        parameters = plain_parameters(parameters)
        placed = parameters is not None and "shared_memory_region" in parameters
        if placed and data is not None:
            raise InvalidTensor("a tensor has data or is in shared memory, and not both")
        for name in ("shared_memory_offset", "shared_memory_byte_size"):
            if placed and parameters is not None and name in parameters:
                what = f"parameter {name!r} must be a number of bytes"
                whole_number(parameters[name], what, 0, kind=InvalidTensor)
        self.parameters = parameters
        if datatype is None and shape is None:
            if data is None or isinstance(data, Tensor):
                raise InvalidTensor(
                    f"a tensor of {'no data' if data is None else 'a Tensor'} must have a datatype "
                    "and a shape"
                )
            made = _input("", data)
            self.data = _contiguous_buffer(made.payload, made.datatype)
            self.datatype = made.datatype
            self.shape = made.shape
            return
        if datatype is None or shape is None:
            raise InvalidTensor(
                "datatype and shape must both be given, for raw memory, or neither, got only "
                f"{'shape' if datatype is None else 'datatype'}"
            )
        if not isinstance(datatype, str) or datatype not in DATATYPES:
            raise InvalidTensor(
                f"unknown datatype {instead(datatype)}; expected one of {', '.join(DATATYPES)}"
            )
        dimensions = checked_shape(shape)
        self.data = data
        self.datatype = datatype
        self.shape = dimensions
        if data is None:
            if not placed:
                raise InvalidTensor(
                    "a tensor without data needs parameters that say where in shared memory it is"
                )
            assert parameters is not None
            room = parameters.get("shared_memory_byte_size")
            if room is not None and datatype != "BYTES":
                needed = math.prod(dimensions) * _wire.datatype_size(datatype)
                if needed > room:
                    raise InvalidTensor(
                        f"{datatype} {list(dimensions)} takes {needed} bytes, and its place in "
                        f"shared memory has {room}"
                    )
            return
        self.data = _contiguous_buffer(data, datatype)
        byte_size = self.data.nbytes
        if datatype == "BYTES":
            count = _wire.count_encoded(self.data)
            if count < 0:
                raise InvalidTensor(
                    f"the {byte_size} bytes are no BYTES tensor: each element is a four-byte "
                    "little-endian length and that many bytes, and the last one is cut off"
                )
            if count != math.prod(dimensions):
                raise InvalidTensor(
                    f"BYTES {list(dimensions)} has {math.prod(dimensions)} elements, and the "
                    f"{byte_size} bytes hold {count}"
                )
        else:
            expected = math.prod(dimensions) * _wire.datatype_size(datatype)
            if byte_size != expected:
                raise InvalidTensor(
                    f"{datatype} {list(dimensions)} takes {expected} bytes, and the memory has "
                    f"{byte_size}"
                )

    def __repr__(self) -> str:
        size = "in shared memory" if self.data is None else f"{self.data.nbytes} bytes"
        return f"Tensor({self.datatype}, {list(self.shape)}, {size})"


def input_tensor(name: str, value: Any) -> InputTensor:
    """Return an input in the form in which it is encoded.

    Parameters
    ----------
    name : str
        The input's name, for errors and for the request.
    value : array_like, list, or Tensor
        See `triton_fast.Client.infer`.

    Returns
    -------
    InputTensor

    Raises
    ------
    InvalidTensor
        If no tensor can be made of it; the message names the input.
    """
    try:
        if isinstance(value, np.ndarray):
            return _from_array(name, value)
        return _input(name, value)
    except InvalidTensor as error:
        raise InvalidTensor(f"input {name!r}: {error}") from error


def _input(name: str, value: Any) -> InputTensor:
    if isinstance(value, np.ndarray):
        return _from_array(name, value)
    if isinstance(value, Tensor):
        return InputTensor(name, value.datatype, value.shape, value.data, value.parameters)
    if isinstance(value, list | tuple):
        return _from_list(name, value)
    array, datatype = _foreign(value)
    tensor = _from_array(name, array)
    return tensor if datatype is None else tensor._replace(datatype=datatype)


def input_rows(value: Any) -> np.ndarray[Any, Any] | Tensor:
    """Return an input as what can be cut along its first axis, and is sent as the input itself is.

    Parameters
    ----------
    value : array_like, list, or Tensor
        See `triton_fast.Client.infer`.

    Returns
    -------
    numpy.ndarray or Tensor
        On the input's own memory wherever possible. Of a list of strings, an array of objects.

    Raises
    ------
    InvalidTensor
        Where `input_tensor` does, but for elements that are no strings: those are not looked at.
    """
    if isinstance(value, np.ndarray):
        _check_elements(value)
        return value
    if isinstance(value, Tensor):
        return value
    if isinstance(value, list | tuple):
        return _array_of_strings(value)
    array, datatype = _foreign(value)
    _check_elements(array)
    return array if datatype is None else Tensor(array, datatype, array.shape)


# Elements of a list or an array of strings that are looked at; enough to go by.
_MOST_COUNTED = 4096
# How many dimensions a list has at most, of which elements are looked at.
_DEEPEST = 16
# What an element costs beside its bytes, in the time that as many bytes take to copy.
_BYTES_PER_ELEMENT = 64


def memory_of(value: Any) -> int:
    """Return about how many bytes an input takes on its way; quickly, whatever it is."""
    if isinstance(value, np.ndarray) and value.dtype.kind not in "OT":
        return value.nbytes
    if isinstance(value, Tensor):
        return 0 if value.data is None else int(value.data.nbytes)
    if isinstance(value, list | tuple | np.ndarray):
        return _memory_of_strings(value)
    try:
        size = getattr(value, "nbytes", None)
        return size if isinstance(size, int) else memoryview(value).nbytes
    except Exception:  # noqa: BLE001 - somebody else's code, which may raise anything
        return 0


def copied_bytes(value: Any) -> int:
    """Return about how many bytes `input_tensor` writes for an input; 0 if it borrows them."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "OTSU":
            return memory_of(value) + value.size * _BYTES_PER_ELEMENT
        return 0 if value.flags.c_contiguous and value.dtype.isnative else value.nbytes
    if isinstance(value, Tensor):
        return 0
    if isinstance(value, list | tuple):
        return memory_of(value)
    try:
        view = memoryview(value)
    except Exception:  # noqa: BLE001 - somebody else's code, which may raise anything
        return memory_of(value)  # nobody knows
    return 0 if view.c_contiguous else view.nbytes


def _memory_of_strings(values: Any, depth: int = 0) -> int:
    if depth > _DEEPEST:
        return 0  # a list that is in itself, say
    flat = values.reshape(-1) if isinstance(values, np.ndarray) else values
    first = flat[:_MOST_COUNTED]
    total = 0
    for element in first:
        if isinstance(element, str | bytes):
            total += len(element) + _BYTES_PER_ELEMENT
        elif isinstance(element, list | tuple):
            total += _memory_of_strings(element, depth + 1)
    return total if len(first) == len(flat) else total * len(flat) // len(first)


def _check_elements(array: np.ndarray[Any, Any]) -> str:
    """Return the datatype that an array is sent as, whatever its byte order."""
    datatype = datatype_of(array.dtype) or datatype_of(array.dtype.newbyteorder("="))
    if datatype is None:
        raise InvalidTensor(
            f"no datatype holds elements of dtype {array.dtype}; there are "
            f"{', '.join(DATATYPES)}. Convert it with astype()"
        )
    if isinstance(array, np.ma.MaskedArray):
        raise InvalidTensor("a masked array would lose its mask; send array.filled(...)")
    return datatype


def _from_array(name: str, array: np.ndarray[Any, Any]) -> InputTensor:
    shape = array.shape
    datatype = datatype_of(array.dtype) if type(array) is np.ndarray else None
    if datatype is None:  # it is not plain, or of the other byte order
        datatype = _check_elements(array)
        if datatype != "BYTES" and not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
    if datatype == "BYTES":
        return InputTensor(name, datatype, shape, _encode_strings(array))
    if not array.flags.c_contiguous:
        # Not ascontiguousarray, which makes a 0-d array one-dimensional.
        array = array.copy(order="C")
    return InputTensor(name, datatype, shape, array)


def _encode_strings(array: np.ndarray[Any, Any]) -> Any:
    kind = array.dtype.kind
    if kind == "T":
        array = array.astype(np.object_)
        kind = "O"
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if not array.flags.c_contiguous:
        array = array.copy(order="C")
    if kind == "O":
        return _encode_in_pieces(_wire.encode_objects, array.reshape(-1))
    width = array.dtype.itemsize // (4 if kind == "U" else 1)
    if width == 0:
        return _wire.encode_sequence([b""] * array.size)
    return _wire.encode_fixed(array, width, unicode=kind == "U")


# Elements that are encoded in one go, a millisecond's worth: no other thread runs meanwhile.
_PIECE = 1 << 14


def _encode_in_pieces(encode: Callable[[Any], Any], values: Any) -> Any:
    if len(values) < 4 * _PIECE:
        return encode(values)
    try:
        pieces = [encode(values[n : n + _PIECE]) for n in range(0, len(values), _PIECE)]
    except InvalidTensor:
        return encode(values)  # which says where in all of it the element is
    return b"".join(pieces)


def _from_list(name: str, values: Sequence[Any]) -> InputTensor:
    if not values or isinstance(values[0], str | bytes):
        encoded = _encode_in_pieces(_wire.encode_sequence, values)
        return InputTensor(name, "BYTES", (len(values),), encoded)
    array = _array_of_strings(values)
    encoded = _encode_in_pieces(_wire.encode_objects, array.reshape(-1))
    return InputTensor(name, "BYTES", array.shape, encoded)


def _array_of_strings(values: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Return a list of strings, nested or not, as an array of these very objects."""
    if not values or isinstance(values[0], str | bytes):
        return np.fromiter(values, np.object_, len(values))
    if not isinstance(values[0], list | tuple):
        raise _numbers(values[0])
    try:
        array = np.array(values, dtype=np.object_)
    except MemoryError:
        raise
    except Exception as error:
        raise InvalidTensor("the list's rows are not all of one length") from error
    if any(isinstance(element, list | tuple) for element in array.flat):
        raise InvalidTensor("the list's rows are not all of one length")
    if array.size and isinstance(array.flat[0], int | float | complex | np.generic):
        raise _numbers(array.flat[0])
    return array


def _numbers(value: Any) -> InvalidTensor:
    return InvalidTensor(
        f"a list must hold str or bytes, to be sent as BYTES, got {type(value).__name__}. "
        "For numbers, say which: numpy.array(values, dtype=numpy.float32)"
    )


def _foreign(value: Any) -> tuple[np.ndarray[Any, Any], str | None]:
    """Return an object that is no numpy array as one, on its own memory where that can be.

    Beside it is the datatype, where numpy has no dtype for it: the array has the bits then.
    """
    if isinstance(value, str | bytes):
        raise InvalidTensor(
            f"a single {type(value).__name__} has no shape; send [value] for a tensor of one "
            "element, or numpy.frombuffer(value, numpy.uint8) for its bytes as numbers"
        )
    if isinstance(value, np.generic):
        return np.asarray(value), None
    try:
        view = memoryview(value)
    except TypeError:
        view = None
    except Exception as error:
        raise _lends_none(value, error) from error
    if view is None and hasattr(value, "__dlpack__"):
        return _from_dlpack(value)
    if view is not None or hasattr(value, "__array__") or hasattr(value, "__array_interface__"):
        try:
            return np.asarray(value if view is None else view), None
        except MemoryError:
            raise
        except Exception as error:
            raise _lends_none(value, error) from error
    raise InvalidTensor(
        f"a {type(value).__name__} is no tensor; send an array, an object with the buffer protocol "
        "or DLPack, a list of str or bytes, or a Tensor"
    )


def _lends_none(value: Any, error: Exception, how: str = "") -> InvalidTensor:
    # What somebody else's code raises, which may be anything.
    return InvalidTensor(f"a {type(value).__name__} lends no memory{how}: {printable(str(error))}")


_DLPACK_CPU = 1
_DLPACK_CUDA_HOST = 3  # pinned memory, which the CPU reads like any other


def _from_dlpack(value: Any) -> tuple[np.ndarray[Any, Any], str | None]:
    try:
        device = int(value.__dlpack_device__()[0])
        if device not in {_DLPACK_CPU, _DLPACK_CUDA_HOST}:
            raise InvalidTensor(
                f"the {type(value).__name__} is on device {getattr(value, 'device', device)}, not "
                "on the CPU; copy it there first"
            )
        if str(getattr(value, "dtype", "")) == "torch.bfloat16":
            # DLPack has bfloat16 and numpy's reader of it has not: the bits go through as int16.
            return np.from_dlpack(value.view(sys.modules["torch"].int16)), "BF16"
        return np.from_dlpack(value), None
    except (InvalidTensor, MemoryError):
        raise
    except Exception as error:
        # torch says here that a tensor requires gradients, or is on device "meta", which has no
        # memory; numpy that it knows no such dtype.
        raise _lends_none(value, error, " through DLPack") from error


def out_array(name: str, value: Any) -> np.ndarray[Any, Any]:
    """Return what an output is written to as an array: a torch tensor's own memory, on the CPU.

    Raises
    ------
    InvalidTensor
        If it is none.
    """
    if isinstance(value, np.ndarray):
        return value
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(value, torch.Tensor):
        raise InvalidTensor(
            f"out[{name!r}] is a {type(value).__name__}; it must be a numpy array, or a torch "
            "tensor on the CPU"
        )
    try:
        if value.dtype == torch.bfloat16:
            array: np.ndarray[Any, Any] = value.view(torch.int16).numpy().view(dtype_of("BF16"))
        else:
            array = value.numpy()
    except Exception as error:
        # It requires gradients, say, or is on another device.
        raise InvalidTensor(f"out[{name!r}]: {_lends_none(value, error)}") from error
    return array


def new_array(dimensions: Sequence[int], kind: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Return an ordinary array, not initialized.

    Raises
    ------
    InvalidTensor
        If there is not so much memory.
    """
    try:
        return np.empty(dimensions, kind)
    except MemoryError as error:
        raise InvalidTensor(
            f"there is no memory for arrays of {kind} {list(dimensions)}"
        ) from error


def checked_shape(shape: Any) -> tuple[int, ...]:
    """Return a shape as a tuple of int.

    Raises
    ------
    InvalidTensor
        If it is none: a dimension is negative, say, or larger than any memory.
    """
    try:
        if isinstance(shape, str | bytes | bytearray | Mapping | set | frozenset):
            raise TypeError("they are in no order, or no numbers")
        dimensions = tuple(operator.index(dimension) for dimension in shape)
    except Exception as error:
        raise InvalidTensor(
            f"a shape must be a sequence of whole numbers, got {instead(shape)}"
        ) from error
    if any(not 0 <= dimension < 1 << 63 for dimension in dimensions):
        shown = ", ".join(map(instead, dimensions))
        raise InvalidTensor(f"shape [{shown}] has a dimension that is negative, or too large")
    if math.prod(dimensions) >= 1 << 63:
        raise InvalidTensor(f"shape {list(dimensions[:8])} has more elements than any memory")
    return dimensions


def _contiguous_buffer(data: Any, datatype: str) -> Any:
    """Return the memory as an array, copied if it is strided or big-endian; it keeps its owner."""
    try:
        array = data if isinstance(data, np.ndarray) else np.asarray(memoryview(data))
    except Exception as error:
        raise InvalidTensor(
            f"a {type(data).__name__} has no buffer; a Tensor's data is bytes, a memoryview, or "
            "an array"
        ) from error
    if array.dtype.hasobject:
        raise InvalidTensor("an array of objects holds pointers, not the bytes of a tensor")
    if not array.dtype.isnative:
        if array.dtype.kind not in "biuf" or array.itemsize != _wire.datatype_size(datatype):
            raise InvalidTensor(
                f"memory of big-endian {array.dtype} is not what {datatype} is sent as, which is "
                "little-endian; convert it with astype()"
            )
        array = array.astype(array.dtype.newbyteorder("="))
    return array if array.flags.c_contiguous else array.copy(order="C")
