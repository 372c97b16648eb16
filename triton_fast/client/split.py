"""Batches larger than a model takes: cut along the first axis, run in pieces, joined in place."""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from ..errors import InvalidOption, InvalidTensor, ServerError, TritonFastError, server_error
from ..inference.request import check_inputs
from ..inference.result import InferResult, Places, check_out
from ..inference.tensor import InputTensor, Tensor, input_rows, input_tensor
from ..protocol.datatypes import datatype_of, dtype_of

if TYPE_CHECKING:
    from ..channels.base import CallOptions
    from ..inference.request import Prepared
    from ..inference.signature import Signature
    from .attempt import Out
    from .endpoint import Endpoint

__all__ = ["IN_FLIGHT", "Split", "infer_split"]

Empty: TypeAlias = "Callable[[Sequence[int], Any], np.ndarray[Any, Any]]"

IN_FLIGHT = 4
"""How many pieces are on their way at a time.

Enough to keep a server's instances busy while the next ones travel, few enough to leave connections
and slots to others.
"""


def infer_split(
    endpoint: Endpoint,
    prepared: Prepared,
    inputs: Mapping[str, Any],
    request_id: str,
    options: CallOptions,
    out: Out | None,
) -> InferResult:
    """Run a model on a batch of any size; see ``split`` of `triton_fast.Client.infer`.

    Raises
    ------
    InvalidOption
        If the model takes no batches, or an output is to be in shared memory of the caller's.
    InvalidTensor
        If an input cannot be cut, inputs have different batch sizes, or answers cannot be joined.
    ServerError
        The first piece's that failed, with its number; no piece is running any more then.
    """
    signature = endpoint.signatures.get(prepared)
    if signature is None or signature.max_batch_size is None:
        signature = endpoint.fetch_signature(prepared, options)
    batch = Split(signature, prepared, inputs, out, endpoint.empty)
    if len(batch.pieces) == 1:
        return endpoint.infer(prepared, batch.part(0), request_id, options, out)
    waiting: deque[tuple[int, Future[InferResult]]] = deque()
    try:
        for number in range(len(batch.pieces)):
            try:
                future = endpoint.submit(
                    prepared, batch.part(number), request_id, options, batch.out(number)
                )
            except TritonFastError as error:
                raise batch.error(number, error) from error
            waiting.append((number, future))
            # What the outputs are like may have to be learnt from the first piece.
            if len(waiting) >= IN_FLIGHT or not batch.ready:
                _take(batch, waiting)
        while waiting:
            _take(batch, waiting)
    except TritonFastError:
        # The caller may use the arrays again as soon as this has failed.
        wait(future for _, future in waiting)
        raise
    except BaseException:
        for _, future in waiting:
            future.cancel()
        raise
    return batch.result()


def _take(batch: Split, waiting: deque[tuple[int, Future[InferResult]]]) -> None:
    """Wait for the piece that was sent first, and put its answer where it belongs."""
    number, future = waiting[0]
    try:
        batch.put(number, future.result())
    except TritonFastError as error:
        raise batch.error(number, error) from error
    finally:
        if future.done():
            waiting.popleft()


class Split:
    """A batch that is cut along its first axis, and the arrays that its answers are written to.

    Parameters
    ----------
    signature : Signature or None
        The model's.
    prepared : Prepared
        Of each piece's request.
    inputs, out
        As in `triton_fast.Client.infer`.
    empty : callable
        Makes arrays; `triton_fast.Client.empty`.

    Attributes
    ----------
    pieces : list of slice
        Which rows each piece has.
    gathers : bool
        Whether making a piece's inputs copies samples.

    Raises
    ------
    InvalidOption, InvalidTensor
        See `infer_split`.
    """

    def __init__(
        self,
        signature: Signature | None,
        prepared: Prepared,
        inputs: Mapping[str, Any],
        out: Out | None,
        empty: Empty,
    ) -> None:
        if signature is None or not signature.max_batch_size:
            raise InvalidOption(
                f"split: model {prepared.model_name!r} takes no batches, as far as the server says"
            )
        check_inputs(inputs)
        shared = prepared.header.shared_memory_outputs
        if shared:
            raise InvalidOption(
                f"output {shared[0]!r} of a call with split=True cannot be in shared memory: each "
                "piece would overwrite the one before"
            )
        batches = {name: _batch(empty, name, value) for name, value in inputs.items()}
        self.gathers = any(isinstance(batch, _Samples) for batch in batches.values())
        rows = _rows(batches)
        most = signature.max_batch_size
        self.pieces = [slice(first, min(first + most, rows)) for first in range(0, rows, most)]
        self._join = _Join(empty, prepared, rows, self.pieces, out)
        # Strings are encoded here, so that one that cannot be is found before anything is sent.
        self._parts = {name: batch.cut(self.pieces) for name, batch in batches.items()}
        if len(self.pieces) > 1:
            self._join.prepare(signature)

    @property
    def ready(self) -> bool:
        """Whether it is known where answers go; until then, pieces are run one at a time."""
        return self._join.ready

    def part(self, number: int) -> dict[str, Any]:
        """Return a piece's inputs."""
        return {name: parts(number) for name, parts in self._parts.items()}

    def out(self, number: int) -> Out | None:
        """Return where a piece's outputs are to be written, as far as that is known."""
        return self._join.out(number)

    def put(self, number: int, result: InferResult) -> None:
        """Take a piece's answer."""
        self._join.put(number, result)

    def error(self, number: int, error: TritonFastError) -> TritonFastError:
        """Return a piece's error with the piece's number in it."""
        where = f"{_label(self.pieces, number)}: " if len(self.pieces) > 1 else ""
        return _of_piece(self._join.misfit(number, error) or error, where)

    def result(self) -> InferResult:
        """Return the answer to the whole batch."""
        return self._join.result()


def _label(pieces: Sequence[slice], number: int) -> str:
    if len(pieces) == 1:
        return "the whole batch"
    piece = pieces[number]
    return f"piece {number} of {len(pieces)} (rows {piece.start} to {piece.stop - 1})"


def _of_piece(error: TritonFastError, where: str) -> TritonFastError:
    if isinstance(error, ServerError):
        return server_error(
            error.status, f"{where}{error.message}", call=error.call, target=error.target
        )
    if isinstance(error, OSError):
        return type(error)(error.errno, f"{where}{error.strerror}")
    return type(error)(f"{where}{error}")


# --- Inputs ---------------------------------------------------------------------------------------

Parts: TypeAlias = "Callable[[int], Any]"
"""Given a piece's number, returns its part of an input."""


class _Batch(Protocol):
    """An input whose rows can be cut off."""

    def __len__(self) -> int:
        """How many rows it has."""

    def cut(self, pieces: Sequence[slice]) -> Parts:
        """Return what makes the parts of the input for these pieces."""


class _Rows:
    """An array of numbers: its parts are views."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def cut(self, pieces: Sequence[slice]) -> Parts:
        return lambda number: self._array[pieces[number]]


class _Strings:
    """An array of strings: its parts are encoded at once."""

    def __init__(self, name: str, array: np.ndarray[Any, Any]) -> None:
        self._name = name
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def cut(self, pieces: Sequence[slice]) -> Parts:
        try:
            parts = [input_tensor(self._name, self._array[piece]) for piece in pieces]
        except InvalidTensor:
            input_tensor(self._name, self._array)  # says where in all of it the element is
            raise
        tensors = [Tensor(part.payload, part.datatype, part.shape) for part in parts]
        return lambda number: tensors[number]


class _RawRows:
    """A `Tensor`, of memory or in shared memory: its parts are views."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor

    def __len__(self) -> int:
        return self._tensor.shape[0]

    def cut(self, pieces: Sequence[slice]) -> Parts:
        tensor = self._tensor
        row_shape = tensor.shape[1:]
        if tensor.datatype == "BYTES":
            counts = [piece.stop * math.prod(row_shape) for piece in pieces]
            ends = _ends(_bytes_of(tensor.data), counts)
        else:
            size = math.prod(row_shape) * dtype_of(tensor.datatype).itemsize
            ends = [piece.stop * size for piece in pieces]

        def part(number: int) -> Tensor:
            piece = pieces[number]
            start, end = ends[number - 1] if number else 0, ends[number]
            shape = (piece.stop - piece.start, *row_shape)
            parameters = tensor.parameters
            if tensor.data is None:
                assert parameters is not None
                first = parameters.get("shared_memory_offset", 0)
                place = {
                    "shared_memory_offset": first + start,
                    "shared_memory_byte_size": end - start,
                }
                return Tensor(None, tensor.datatype, shape, parameters={**parameters, **place})
            data = _bytes_of(tensor.data)[start:end]
            return Tensor(data, tensor.datatype, shape, parameters=parameters)

        return part


def _bytes_of(data: Any) -> np.ndarray[Any, Any]:
    """Return a payload's bytes; of any dtype, also of those that memoryview knows no format for."""
    size = data.nbytes if isinstance(data, np.ndarray) else len(data)
    return np.frombuffer(data, np.uint8) if size else np.empty(0, np.uint8)


def _ends(encoded: np.ndarray[Any, Any], counts: Sequence[int]) -> list[int]:
    """Return where in an encoded BYTES tensor so many elements end."""
    lengths = struct.Struct("<I")
    ends = []
    done = position = 0
    for count in counts:
        for _ in range(count - done):
            position += lengths.size + lengths.unpack_from(encoded.data, position)[0]
        done = count
        ends.append(position)
    return ends


class _Samples:
    """A list of samples, of which a part becomes a batch when it is about to be sent.

    Numbers are written straight to where they are sent from, while earlier parts are on their way.
    """

    def __init__(self, empty: Empty, name: str, samples: Sequence[Any]) -> None:
        self._empty = empty
        self._arrays: list[np.ndarray[Any, Any]] = []
        self._tensors: list[InputTensor] = []  # in place of arrays: strings, and raw memory
        for number, sample in enumerate(samples):
            try:
                rows = input_rows(sample)
                raw = isinstance(rows, Tensor) or _is_text(rows)
                if isinstance(rows, Tensor) and (rows.data is None or rows.parameters):
                    raise InvalidTensor("a Tensor with parameters cannot be a row of a batch")
                encoded = input_tensor(name, rows) if raw else None
            except InvalidTensor as error:
                text = str(error).removeprefix(f"input {name!r}: ")
                raise InvalidTensor(f"input {name!r}: sample {number}: {text}") from error
            if encoded is not None:
                self._tensors.append(encoded)
                layout = (encoded.datatype, encoded.shape)
            else:
                assert isinstance(rows, np.ndarray)
                self._arrays.append(rows)
                layout = (rows.dtype.newbyteorder("=").name, rows.shape)
            if number == 0:
                first = layout
            if layout != first:
                raise InvalidTensor(
                    f"input {name!r}: sample {number} is {layout[0]} {list(layout[1])}, and "
                    f"sample 0 is {first[0]} {list(first[1])}"
                )

    def __len__(self) -> int:
        return len(self._arrays) or len(self._tensors)

    def cut(self, pieces: Sequence[slice]) -> Parts:
        return lambda number: self._part(pieces[number])

    def _part(self, piece: slice) -> np.ndarray[Any, Any] | Tensor:
        tensors = self._tensors[piece]
        if tensors:
            payload = b"".join(_bytes_of(tensor.payload).data for tensor in tensors)
            return Tensor(payload, tensors[0].datatype, (len(tensors), *tensors[0].shape))
        arrays = self._arrays[piece]
        first = arrays[0]
        batch = self._empty((len(arrays), *first.shape), first.dtype.newbyteorder("="))
        for row, array in enumerate(arrays):
            batch[row] = array
        return batch


def _is_text(array: np.ndarray[Any, Any]) -> bool:
    return datatype_of(array.dtype) == "BYTES"


def _batch(empty: Empty, name: str, value: Any) -> _Batch:
    """Return an input as something whose rows can be cut off."""
    if isinstance(value, list | tuple) and value and _is_sample(value[0]):
        return _Samples(empty, name, value)
    try:
        rows = input_rows(value)
    except InvalidTensor as error:
        raise InvalidTensor(f"input {name!r}: {error}") from error
    if isinstance(rows, Tensor) and rows.data is None and rows.datatype == "BYTES":
        raise InvalidTensor(
            f"input {name!r} cannot be split: it is BYTES in shared memory, where its rows end is "
            "not known"
        )
    if not rows.shape:
        raise InvalidTensor(f"input {name!r} is a scalar, and has no rows to split")
    if isinstance(rows, Tensor):
        return _RawRows(rows)
    return _Strings(name, rows) if _is_text(rows) else _Rows(rows)


def _is_sample(value: Any) -> bool:
    """Whether a list of such values is one of samples; others are of strings, or are refused."""
    if isinstance(value, str | bytes | list | tuple):
        return False
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return True
    if any(hasattr(value, name) for name in ("__dlpack__", "__array__", "__array_interface__")):
        return True
    try:
        memoryview(value)
    except (TypeError, BufferError):
        return False
    return True


def _rows(batches: Mapping[str, _Batch]) -> int:
    rows = {name: len(batch) for name, batch in batches.items()}
    if not rows:
        raise InvalidTensor("split: there are no inputs")
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name!r} has {count}" for name, count in rows.items())
        raise InvalidTensor(f"split: inputs have different batch sizes: {counts}")
    name, count = next(iter(rows.items()))
    if not count:
        raise InvalidTensor(f"input {name!r} has no rows: a batch must have one or more")
    return count


# --- Outputs --------------------------------------------------------------------------------------


class _Join:
    """The outputs of all pieces, as they come in."""

    def __init__(
        self,
        empty: Empty,
        prepared: Prepared,
        rows: int,
        pieces: Sequence[slice],
        out: Out | None,
    ) -> None:
        self._empty = empty
        self._prepared = prepared
        self._rows = rows
        self._pieces = pieces
        self._given = dict(out or {})
        for name, array in self._given.items():
            check_out(name, array)
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}
        self._handed: dict[int, Places] = {}  # what pieces are written to, by their numbers
        self._first: InferResult | None = None
        self._first_number = 0  # of the piece that was answered first
        self._names: frozenset[str] = frozenset()  # of the outputs that it has
        self._by_signature = False
        self.ready = False

    def prepare(self, signature: Signature) -> None:
        """Make the arrays for the outputs, if the model's signature says what they are like."""
        names = self._prepared.output_names or tuple(signature.outputs)
        if any(parameters for _, parameters in self._prepared.requested):
            return  # classes, say, are not what the signature says
        arrays = {}
        for name in names:
            output = signature.outputs.get(name)
            if output is None or output.datatype == "BYTES" or min(output.shape[1:], default=1) < 0:
                return
            arrays[name] = self._array(name, dtype_of(output.datatype), tuple(output.shape[1:]))
        self._arrays = arrays
        self._by_signature = self.ready = True

    def _array(
        self, name: str, dtype: np.dtype[Any], row_shape: tuple[int, ...]
    ) -> np.ndarray[Any, Any]:
        shape = (self._rows, *row_shape)
        given = self._given.get(name)
        if given is None:
            return np.empty(shape, dtype) if dtype.hasobject else self._empty(shape, dtype)
        if given.shape != shape or given.dtype.newbyteorder("=") != dtype:
            raise InvalidTensor(
                f"out[{name!r}] is {given.dtype} {list(given.shape)}; the answer is {dtype} "
                f"{list(shape)}"
            )
        return given

    def out(self, number: int) -> Out | None:
        """Return where a piece's outputs are to be written, as far as that is known."""
        piece = self._pieces[number]
        places = Places({name: array[piece] for name, array in self._arrays.items()})
        if not places:
            return None
        self._handed[number] = places
        return places

    def put(self, number: int, result: InferResult) -> None:
        """Take a piece's answer."""
        handed = self._handed.pop(number, Places())
        if self._first is None:
            self._first_number = number
            self._names = frozenset(result)
        elif self._names != result.keys():
            name = min(self._names ^ result.keys())
            has, lacks = "has no", "had one"
            if name in result:
                has, lacks = "has an", "had none"
            raise InvalidTensor(
                f"the answer {has} output {name!r}, and that of "
                f"{_label(self._pieces, self._first_number)} {lacks}: they cannot be joined"
            )
        if self._first is None or number == 0:
            self._first = result
        piece = self._pieces[number]
        for name, array in result.items():
            if name in handed:
                continue  # it was written in place
            if array.ndim == 0 or len(array) != piece.stop - piece.start:
                raise InvalidTensor(
                    f"output {name!r} has shape {list(array.shape)} for {piece.stop - piece.start} "
                    "rows: it cannot be joined"
                )
            whole = self._arrays.get(name)
            if whole is None:
                whole = self._arrays[name] = self._array(name, array.dtype, array.shape[1:])
            if whole.shape[1:] != array.shape[1:] or whole.dtype.newbyteorder("=") != array.dtype:
                raise self._unlike(name, f"{datatype_of(array.dtype)} {list(array.shape)}")
            np.copyto(whole[piece], array)
        self.ready = True

    def misfit(self, number: int, error: TritonFastError) -> InvalidTensor | None:
        """Return what an error says of a place that nobody but us gave; None if it does not."""
        if not isinstance(error, InvalidTensor) or error.output is None or error.answer is None:
            return None
        if error.output not in self._handed.get(number, ()) or error.output in self._given:
            return None
        return self._unlike(error.output, error.answer)

    def _unlike(self, name: str, answer: str) -> InvalidTensor:
        whole = self._arrays[name]
        datatype = datatype_of(whole.dtype.newbyteorder("="))
        if self._by_signature:
            other = "the model's signature says"
            rows = -1
        else:
            other = f"that of {_label(self._pieces, self._first_number)} is"
            first = self._pieces[self._first_number]
            rows = first.stop - first.start
        return InvalidTensor(
            f"output {name!r} is {answer}, and {other} {datatype} "
            f"{[rows, *whole.shape[1:]]}: they cannot be joined"
        )

    def result(self) -> InferResult:
        """Return the answer to the whole batch."""
        first = self._first
        assert first is not None
        for name in self._given:
            if name not in self._names:
                raise InvalidTensor(
                    f"out[{name!r}]: model {self._prepared.model_name!r} gave no such output to "
                    f"write there; it gave {', '.join(map(repr, first)) or 'none'}"
                )
        return InferResult(
            first.model_name,
            first.model_version,
            first.id,
            first.parameters,
            {name: self._arrays[name] for name in first},
            {name: first.output_parameters(name) for name in first},
        )
