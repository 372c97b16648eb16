"""Batches larger than a model takes: cut along the first axis, run in pieces, joined in place."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence, Sized
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any

import numpy as np

from .datatypes import datatype_of, dtype_of
from .errors import InvalidOption, InvalidTensor, ServerError, TritonFastError, server_error
from .response import InferResult
from .tensor import Tensor

if TYPE_CHECKING:
    from .attempt import Out
    from .channels.base import CallOptions
    from .connection import Connection
    from .request import Prepared
    from .signature import Signature

__all__ = ["infer_split"]

# How many pieces are on their way at a time: enough to keep a server's instances busy while the
# next ones travel, few enough to leave connections and slots to others.
_IN_FLIGHT = 4


def infer_split(
    connection: Connection,
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
        If the model takes no batches.
    InvalidTensor
        If the inputs have not the same number of rows, or an output has no rows to join.
    ServerError
        The first piece's that failed, with its number; no piece is running any more then.
    """
    signature = connection.signatures.get(prepared)
    if signature is None or signature.max_batch_size is None:
        signature = connection.fetch_signature(prepared, options)
    if signature is None or not signature.max_batch_size:
        raise InvalidOption(
            f"split: model {prepared.model_name!r} takes no batches, as far as the server says"
        )
    batches = {name: _batch(connection, name, value) for name, value in inputs.items()}
    rows = _rows(batches)
    most = signature.max_batch_size
    if rows <= most:
        whole = {name: batch[0:rows] for name, batch in batches.items()}
        return connection.infer(prepared, whole, request_id, options, out)
    pieces = [slice(first, min(first + most, rows)) for first in range(0, rows, most)]
    join = _Join(connection, prepared, rows, out)
    join.prepare(signature)
    waiting: deque[tuple[int, Future[InferResult]]] = deque()
    try:
        for number, piece in enumerate(pieces):
            part = {name: batch[piece] for name, batch in batches.items()}
            try:
                future = connection.submit(prepared, part, request_id, options, join.out(piece))
            except TritonFastError as error:
                raise _of_piece(error, number, piece, len(pieces)) from error
            waiting.append((number, future))
            # What the outputs are like may have to be learnt from the first piece.
            if len(waiting) >= _IN_FLIGHT or not join.ready:
                _take(join, waiting, pieces)
        while waiting:
            _take(join, waiting, pieces)
    except TritonFastError:
        # The caller may use the arrays again as soon as this has failed.
        wait(future for _, future in waiting)
        raise
    except BaseException:
        for _, future in waiting:
            future.cancel()
        raise
    return join.result()


def _take(
    join: _Join, waiting: deque[tuple[int, Future[InferResult]]], pieces: Sequence[slice]
) -> None:
    """Wait for the piece that was sent first, and put its answer where it belongs."""
    number, future = waiting[0]
    piece = pieces[number]
    try:
        join.put(piece, future.result())
    except TritonFastError as error:
        raise _of_piece(error, number, piece, len(pieces)) from error
    finally:
        if future.done():
            waiting.popleft()


def _of_piece(error: TritonFastError, number: int, piece: slice, count: int) -> TritonFastError:
    where = f"piece {number} of {count} (rows {piece.start} to {piece.stop - 1})"
    if isinstance(error, ServerError):
        return server_error(
            error.status, f"{where}: {error.message}", call=error.call, target=error.target
        )
    return type(error)(f"{where}: {error}")


class _Samples:
    """A list of samples, of which a part becomes a batch when it is about to be sent.

    It is written straight to where it is sent from, while earlier parts are on their way.
    """

    def __init__(self, connection: Connection, name: str, samples: Sequence[Any]) -> None:
        self._connection = connection
        self._arrays = [np.asarray(sample) for sample in samples]
        first = self._arrays[0]
        for number, array in enumerate(self._arrays):
            if array.shape != first.shape or array.dtype != first.dtype:
                raise InvalidTensor(
                    f"input {name!r}: sample {number} is {array.dtype} {list(array.shape)}, and "
                    f"sample 0 is {first.dtype} {list(first.shape)}"
                )

    def __len__(self) -> int:
        return len(self._arrays)

    def __getitem__(self, piece: slice) -> np.ndarray[Any, Any]:
        arrays = self._arrays[piece]
        first = arrays[0]
        if datatype_of(first.dtype) in {None, "BYTES"}:
            return np.stack(arrays)
        batch = self._connection.empty((len(arrays), *first.shape), first.dtype)
        for row, array in enumerate(arrays):
            batch[row] = array
        return batch


def _batch(connection: Connection, name: str, value: Any) -> np.ndarray[Any, Any] | _Samples:
    """Return an input as something whose rows can be cut off."""
    if isinstance(value, Tensor):
        raise InvalidTensor(f"input {name!r}: a Tensor cannot be split; pass an array")
    if isinstance(value, list | tuple) and value and not isinstance(value[0], str | bytes):
        return _Samples(connection, name, value)
    array = np.array(value, np.object_) if isinstance(value, list | tuple) else np.asarray(value)
    if array.ndim == 0:
        raise InvalidTensor(f"input {name!r} has no rows to split")
    return array


def _rows(batches: Mapping[str, Sized]) -> int:
    rows = {name: len(batch) for name, batch in batches.items()}
    if not rows:
        raise InvalidTensor("split: there are no inputs")
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name!r}: {count}" for name, count in rows.items())
        raise InvalidTensor(f"split: the inputs have not the same number of rows ({counts})")
    return next(iter(rows.values()))


class _Join:
    """The outputs of all pieces, as they come in."""

    def __init__(
        self, connection: Connection, prepared: Prepared, rows: int, out: Out | None
    ) -> None:
        self._connection = connection
        self._prepared = prepared
        self._rows = rows
        self._given = dict(out or {})
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}
        self._first: InferResult | None = None
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
        self.ready = True

    def _array(
        self, name: str, dtype: np.dtype[Any], row_shape: tuple[int, ...]
    ) -> np.ndarray[Any, Any]:
        shape = (self._rows, *row_shape)
        given = self._given.get(name)
        if given is None:
            return (
                np.empty(shape, dtype) if dtype.hasobject else self._connection.empty(shape, dtype)
            )
        if given.shape != shape or given.dtype.newbyteorder("=") != dtype:
            raise InvalidTensor(
                f"out[{name!r}] is {given.dtype} {list(given.shape)}; the answer is {dtype} "
                f"{list(shape)}"
            )
        return given

    def out(self, piece: slice) -> Out | None:
        """Return where a piece's outputs are to be written, as far as that is known."""
        return {name: array[piece] for name, array in self._arrays.items()} or None

    def put(self, piece: slice, result: InferResult) -> None:
        """Take a piece's answer."""
        if self._first is None:
            self._first = result
        if self.ready:
            return  # it was written in place
        for name, array in result.items():
            if array.ndim == 0 or len(array) != piece.stop - piece.start:
                raise InvalidTensor(
                    f"output {name!r} has shape {list(array.shape)} for {piece.stop - piece.start} "
                    "rows: it cannot be joined"
                )
            whole = self._arrays.get(name)
            if whole is None:
                whole = self._arrays[name] = self._array(name, array.dtype, array.shape[1:])
            np.copyto(whole[piece], array)
        self.ready = True

    def result(self) -> InferResult:
        """Return the answer to the whole batch."""
        first = self._first
        assert first is not None
        for name in self._given:
            if name not in self._arrays:
                raise InvalidTensor(
                    f"out[{name!r}]: model {self._prepared.model_name!r} gave no such output"
                )
        return InferResult(
            first.model_name,
            first.model_version,
            first.id,
            first.parameters,
            self._arrays,
            {name: first.output_parameters(name) for name in self._arrays},
        )
