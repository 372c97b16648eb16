"""Responses: arrays on the memory that the bytes from the server were decoded into."""

from __future__ import annotations

import codecs
import math
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .._core import _wire
from ..errors import InvalidOption, InvalidTensor, MissingDependency, WireError, printable
from ..protocol.datatypes import datatype_of, dtype_of
from .request import shared_memory_parameters

if TYPE_CHECKING:
    from ..management.metadata import TensorMetadata
    from ..protocol.codec import Header, ResponseDecoder
    from ..shared_memory.pool import Slot

__all__ = ["InferResult", "Places", "Receiver", "check_out", "result_of"]

_NOTHING: Mapping[str, Any] = MappingProxyType({})
# The parameters that say where in shared memory a tensor is.
_PLACE = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
# What can be done in a millisecond or two, in bytes: copied, and decoded to bytes objects.
_MUCH = 2 << 20
_MANY = 256 << 10
# How much of an element an error shows.
_MOST_SHOWN = 80


class InferResult(Mapping[str, np.ndarray[Any, Any]]):
    """The answer to an inference: a mapping of output name to array.

    Attributes
    ----------
    model_name, model_version : str
        Which model ran.
    id : str
        The request's id.
    parameters : mapping
        Parameters of the response.
    shared_memory : mapping of str to TensorMetadata
        Outputs that the request had written to shared memory: they are not in the mapping, and
        this is what the server says of them.

    Notes
    -----
    Arrays are writable, C-contiguous, and own their memory, or are those given as ``out=``. BYTES
    outputs are arrays of ``bytes`` objects; `text` has them as ``str``. BF16 outputs are
    ``bfloat16`` if ml_dtypes is installed, else ``uint16`` with the same bits.

    A result can be pickled and copied. Copies, of `copy.copy` too, have arrays with memory of their
    own, never shared memory.
    """

    __slots__ = (
        "_arrays",
        "_output_parameters",
        "id",
        "model_name",
        "model_version",
        "parameters",
        "shared_memory",
    )

    def __init__(
        self,
        model_name: str,
        model_version: str,
        request_id: str,
        parameters: Mapping[str, Any],
        arrays: dict[str, np.ndarray[Any, Any]],
        output_parameters: Mapping[str, Mapping[str, Any]] = _NOTHING,
        shared_memory: Mapping[str, TensorMetadata] = _NOTHING,
    ) -> None:
        self.model_name = model_name
        self.model_version = model_version
        self.id = request_id
        self.parameters = parameters
        self.shared_memory = shared_memory
        self._arrays = arrays
        self._output_parameters = output_parameters

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        try:
            return self._arrays[name]
        except KeyError:
            if name in self.shared_memory:
                raise KeyError(
                    f"output {name!r} is in the shared memory that the request named for it"
                ) from None
            raise KeyError(
                f"no output {name!r} in the answer of model {self.model_name!r}, which has "
                f"{', '.join(map(repr, self._arrays)) or 'none'}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    # Mapping's own look every name up again.
    def keys(self) -> KeysView[str]:
        """Return the outputs' names."""
        return self._arrays.keys()

    def values(self) -> ValuesView[np.ndarray[Any, Any]]:
        """Return the outputs' arrays."""
        return self._arrays.values()

    def items(self) -> ItemsView[str, np.ndarray[Any, Any]]:
        """Return pairs of name and array."""
        return self._arrays.items()

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return sum([array.nbytes for array in self._arrays.values()])

    def output_parameters(self, name: str) -> Mapping[str, Any]:
        """Return the parameters that the response has for one output; empty if there are none."""
        return self._output_parameters.get(name, _NOTHING)

    def text(self, name: str, errors: str = "strict") -> np.ndarray[Any, Any]:
        """Return an output of BYTES as text, which is read as UTF-8.

        Parameters
        ----------
        name : str
            The output's.
        errors : str, default "strict"
            What becomes of bytes that are no UTF-8, as in `bytes.decode`: ``"replace"``, say.

        Returns
        -------
        numpy.ndarray of object
            ``str`` objects, in the output's shape.

        Raises
        ------
        KeyError
            If there is no such output.
        InvalidOption
            If it is a tensor of numbers, or there is no such way with errors.
        InvalidTensor
            If an element is no UTF-8; it names output and element.

        Examples
        --------
        >>> client.infer("namer", inputs).text("name").tolist()  # doctest: +SKIP
        [['Ada'], ['Grace']]
        """
        array = self[name]
        if not array.dtype.hasobject:
            raise InvalidOption(
                f"output {name!r} is {array.dtype} {list(array.shape)} and no text: it must be "
                "BYTES"
            )
        try:
            codecs.lookup_error(errors)
        except (LookupError, TypeError) as error:
            raise InvalidOption(
                f"errors must be a way with errors that bytes.decode knows, got {errors!r}"
            ) from error
        texts = np.empty(array.shape, np.object_)
        flat = texts.reshape(-1)
        for number, element in enumerate(array.reshape(-1)):
            try:
                flat[number] = str(element, "utf-8", errors)
            except UnicodeDecodeError as error:
                place = [int(index) for index in np.unravel_index(number, array.shape)]
                shown = repr(element[:_MOST_SHOWN]) + ("…" if len(element) > _MOST_SHOWN else "")
                raise InvalidTensor(
                    f"output {name!r}, element {place}: {shown} is no UTF-8 ({error.reason} at "
                    f"byte {error.start}); errors='replace' reads it nevertheless"
                ) from error
        return texts

    def torch(self, name: str) -> Any:
        """Return an output as a torch tensor, on the same memory.

        Parameters
        ----------
        name : str
            The output's.

        Returns
        -------
        torch.Tensor
            On the CPU. Of BF16 one of ``torch.bfloat16``; without ml_dtypes installed, its bits, as
            they are in the array.

        Raises
        ------
        KeyError
            If there is no such output.
        InvalidTensor
            If it is BYTES, of which torch has no tensors, or of a dtype that torch does not know.
        MissingDependency
            If torch is not installed.
        """
        array = self[name]
        if array.dtype.hasobject:
            raise InvalidTensor(f"output {name!r} is BYTES, of which torch has no tensors")
        try:
            import torch  # noqa: PLC0415 - it takes seconds, and is nobody's that does not ask
        except ImportError as error:
            raise MissingDependency(
                "result.torch() takes torch, which is not installed: pip install torch"
            ) from error
        if datatype_of(array.dtype) == "BF16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        try:
            return torch.from_numpy(array)
        except TypeError as error:
            raise InvalidTensor(f"output {name!r}: {error}") from error

    def classes(self, name: str) -> list[Any]:
        """Return the best classes of an output that was asked for with a ``class_count``.

        Parameters
        ----------
        name : str
            The output's.

        Returns
        -------
        list
            ``k`` of `Class` in the server's order, the best first; a list of such lists, one for
            each row, from a model that batches: nested as the output's shape says.

        Raises
        ------
        KeyError
            If there is no such output.
        InvalidOption
            If it is a tensor of numbers: the request did not ask for classes.
        WireError
            If an element is not what a class looks like; it names output and element.

        Notes
        -----
        The output itself, ``result[name]``, has the classes as ``bytes``, as they came.

        Examples
        --------
        >>> best = RequestedOutput("scores", class_count=3)  # doctest: +SKIP
        >>> client.infer("resnet", inputs, outputs=[best]).classes("scores")  # doctest: +SKIP
        [[Class(value=11.2, index=281, label='tabby'), Class(value=10.9, index=285, ...
        """
        array = self[name]
        if not array.dtype.hasobject or not array.ndim:
            raise InvalidOption(
                f"output {name!r} is {array.dtype} {list(array.shape)} and no classes; ask for "
                f"them with RequestedOutput({name!r}, class_count=…)"
            )
        from .classification import parse_classes  # noqa: PLC0415 - imported on use

        return parse_classes(name, array)

    def __copy__(self) -> Self:
        copied = {name: np.array(array, subok=False) for name, array in self._arrays.items()}
        return type(self)(*self._fields(copied))

    def __reduce__(self) -> tuple[Any, ...]:
        plain = {name: np.asarray(array) for name, array in self._arrays.items()}
        return type(self), self._fields(plain)

    def _fields(self, arrays: dict[str, np.ndarray[Any, Any]]) -> tuple[Any, ...]:
        return (
            self.model_name,
            self.model_version,
            self.id,
            dict(self.parameters),
            arrays,
            {name: dict(own) for name, own in self._output_parameters.items()},
            dict(self.shared_memory),
        )

    def __repr__(self) -> str:
        arrays = ", ".join(
            f"{name}: {array.dtype}{list(array.shape)}" for name, array in self._arrays.items()
        )
        return printable(f"InferResult({self.model_name} {self.model_version}, {{{arrays}}})")


class Places(dict[str, np.ndarray[Any, Any]]):
    """Arrays that outputs are written to if they come, in place of ``out``, which must come."""

    __slots__ = ()


def check_out(name: str, array: np.ndarray[Any, Any]) -> None:
    """Refuse an array in ``out`` that can take no output.

    Raises
    ------
    InvalidTensor
        If it is no array, or read-only, or of a dtype that no output has.
    """
    if not isinstance(array, np.ndarray):
        raise InvalidTensor(f"out[{name!r}] is a {type(array).__name__}; it must be a numpy array")
    if not array.flags.writeable:
        raise InvalidTensor(f"out[{name!r}] is read-only")
    dtype = array.dtype
    if datatype_of(dtype) is None and datatype_of(dtype.newbyteorder("=")) is None:
        raise InvalidTensor(f"out[{name!r}] has dtype {dtype}, which no output can have")


class Receiver:
    """Receives one response, into arrays of its own or into the caller's.

    Parameters
    ----------
    header : Header
        Of the request: it knows which outputs will be in shared memory.
    out : mapping of str to numpy.ndarray, optional
        See `triton_fast.Client.infer`; or `Places`.
    placed : mapping of str to Slot, optional
        Outputs that the server writes to slots of ours; those without a lease are in ``out``.
    own : mapping of str to mapping, optional
        Outputs that it writes to shared memory of the caller's, and the parameters that say where.

    Raises
    ------
    InvalidTensor
        If an array in ``out`` can take no output: it is read-only, or of a dtype that none has.
    """

    __slots__ = ("_copied", "_out", "_own", "_placed", "response")

    def __init__(
        self,
        header: Header,
        out: Mapping[str, np.ndarray[Any, Any]] | None = None,
        placed: Mapping[str, Slot] = _NOTHING,
        own: Mapping[str, Mapping[str, Any]] = _NOTHING,
    ) -> None:
        self.response = header.response()
        self._out = out or {}
        self._placed = placed
        self._own = own
        # Arrays that the bytes cannot be written to as they come.
        self._copied: set[str] = set()
        try:
            for name, array in self._out.items():
                self._place(name, array)
        except BaseException:
            self.response.release()
            raise

    def _place(self, name: str, array: np.ndarray[Any, Any]) -> None:
        check_out(name, array)
        datatype = datatype_of(array.dtype)
        if name in self._placed:
            if self._placed[name].lease is not None:
                self._copied.add(name)
            return
        if datatype in {None, "BYTES"} or not array.flags.c_contiguous:
            self._copied.add(name)
            return
        assert datatype is not None
        self.response.place(name, datatype, array.shape, array)

    @property
    def takes_long(self) -> bool:
        """Whether `result` takes longer than an event loop should wait: it copies, or decodes."""
        copied = sum([self._out[name].nbytes for name in self._copied]) if self._copied else 0
        return copied > _MUCH or self.response.string_bytes > _MANY

    def result(self) -> InferResult:
        """Return the answer, once; the response must be complete.

        Raises
        ------
        InvalidTensor
            If an output is not what the caller's array for it takes, or did not come.
        WireError
            If an output is not where in shared memory it was to be written, as far as the answer
            says.
        """
        model_name, model_version, request_id, parameters, outputs = self.response.take()
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        output_parameters: dict[str, Mapping[str, Any]] = {}
        shared_memory: dict[str, TensorMetadata] = {}
        for name, datatype, shape, payload, own in outputs:
            if own:
                output_parameters[name] = own
            if payload is None and name in self._placed:
                slot = self._placed[name]
                place = (slot.region, slot.offset, slot.byte_size)
                _check_place(name, datatype, shape, own, shared_memory_parameters(*place))
                array = self._written(name, slot, datatype, shape)
                arrays[name] = self._copy(name, array) if name in self._copied else array
            elif payload is None:
                _check_place(name, datatype, shape, own, self._own.get(name, _NOTHING))
                from ..management.metadata import TensorMetadata  # noqa: PLC0415 - rare

                shared_memory[name] = TensorMetadata(name, datatype, shape)
            elif payload is True:
                arrays[name] = self._out[name]
            else:
                assert isinstance(payload, _wire.Payload)
                array = _array(datatype, shape, payload)
                arrays[name] = self._copy(name, array) if name in self._out else array
        for name in self._out:
            if name not in arrays and not isinstance(self._out, Places):
                raise InvalidTensor(
                    f"out[{name!r}]: model {model_name!r} gave no such output to write there; it "
                    f"gave {', '.join(map(repr, arrays)) or 'none'}"
                )
        return InferResult(
            model_name,
            model_version,
            request_id,
            parameters,
            arrays,
            output_parameters or _NOTHING,
            shared_memory or _NOTHING,
        )

    def _written(
        self, name: str, slot: Slot, datatype: str, shape: tuple[int, ...]
    ) -> np.ndarray[Any, Any]:
        """Return what the server has written to a slot."""
        dtype = dtype_of(datatype)
        if datatype == "BYTES":
            raise WireError(
                f"output {name!r} is BYTES {list(shape)}, and it was to be written to "
                f"{slot.byte_size} bytes of shared memory: its elements have no size"
            )
        if slot.lease is not None:
            return np.ndarray(shape, dtype, slot.lease)  # type: ignore[arg-type]  # has a buffer
        array = self._out[name]
        self._check_fit(name, array, dtype, shape)
        return array

    def _check_fit(
        self,
        name: str,
        array: np.ndarray[Any, Any],
        dtype: np.dtype[Any],
        shape: tuple[int, ...],
    ) -> None:
        if array.dtype.newbyteorder("=") != dtype or array.shape != shape:
            raise InvalidTensor(
                f"out[{name!r}] is {array.dtype} {list(array.shape)}; the answer is "
                f"{dtype} {list(shape)}",
                output=name,
                answer=f"{datatype_of(dtype)} {list(shape)}",
            )

    def _copy(self, name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        destination = self._out[name]
        self._check_fit(name, destination, array.dtype, array.shape)
        np.copyto(destination, array)
        return destination

    def release(self) -> None:
        """Let go of the caller's arrays. Idempotent."""
        self.response.release()


def _check_place(
    name: str,
    datatype: str,
    shape: tuple[int, ...],
    answer: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> None:
    """Refuse an output that is not where in shared memory it was to be written.

    Parameters
    ----------
    name, datatype, shape
        The output, as the answer has it.
    answer : mapping
        Its parameters in the answer. Triton 2.51 sends none, and no content either: the output
        is where it was asked for, then.
    asked : mapping
        Those that the request had.

    Raises
    ------
    WireError
        If it is elsewhere, or larger than there was room, or than what the answer says was written.

    Source
    ------
    Triton's "system shared memory extension": what an offset is that is not there.
    """
    room = asked.get("shared_memory_byte_size")
    needed = 0 if datatype == "BYTES" else math.prod(shape) * dtype_of(datatype).itemsize
    if isinstance(room, int) and needed > room:
        raise WireError(
            f"output {name!r} is {datatype} {list(shape)}, which takes {needed} bytes, and it was "
            f"to be written to {room} bytes of shared memory"
        )
    if answer.keys().isdisjoint(_PLACE) or not asked:
        return
    region, offset = asked.get("shared_memory_region"), asked.get("shared_memory_offset", 0)
    there = answer.get("shared_memory_region", region)
    at = answer.get("shared_memory_offset", 0 if "shared_memory_region" in answer else offset)
    size = answer.get("shared_memory_byte_size", room)
    if (there, at) == (region, offset) and (
        size == room or (isinstance(size, int) and needed <= size and (room is None or size < room))
    ):
        return
    raise WireError(
        f"output {name!r} ({datatype} {list(shape)}, {needed} bytes) was to be written to "
        f"{room} bytes at offset {offset} of the shared memory region {region!r}, and the answer "
        f"has {size!r} bytes at offset {at!r} of region {there!r}"
    )


def result_of(response: ResponseDecoder) -> InferResult:
    """Return a complete response as an answer with arrays of its own."""
    model_name, model_version, request_id, parameters, outputs = response.take()
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    own: dict[str, Mapping[str, Any]] = {}
    for name, datatype, shape, payload, output_parameters in outputs:
        assert isinstance(payload, _wire.Payload)
        arrays[name] = _array(datatype, shape, payload)
        if output_parameters:
            own[name] = output_parameters
    return InferResult(model_name, model_version, request_id, parameters, arrays, own or _NOTHING)


def _array(datatype: str, shape: tuple[int, ...], payload: _wire.Payload) -> np.ndarray[Any, Any]:
    dtype = dtype_of(datatype)
    if datatype == "BYTES":
        array = np.empty(shape, np.object_)
        _wire.decode_elements(payload, array)
        return array
    if len(payload) == 0:
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, payload)  # type: ignore[arg-type]  # it has a buffer
