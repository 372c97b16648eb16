"""Batches larger than a model takes: cut along the first axis, run in pieces, joined in place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence, Sized
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..errors import InvalidOption, InvalidTensor, ServerError, TritonFastError, server_error
from ..inference.result import InferResult
from ..inference.tensor import Tensor
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
        If the model takes no batches.
    InvalidTensor
        If inputs have different batch sizes, or an output has no rows to join.
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
        self._batches = {name: _batch(empty, name, value) for name, value in inputs.items()}
        self.gathers = any(isinstance(batch, _Samples) for batch in self._batches.values())
        rows = _rows(self._batches)
        most = signature.max_batch_size
        self.pieces = [slice(first, min(first + most, rows)) for first in range(0, rows, most)]
        self.pieces = self.pieces or [slice(0, 0)]
        self._join = _Join(empty, prepared, rows, out)
        if len(self.pieces) > 1:
            self._join.prepare(signature)

    @property
    def ready(self) -> bool:
        """Whether it is known where answers go; until then, pieces are run one at a time."""
        return self._join.ready

    def part(self, number: int) -> dict[str, Any]:
        """Return a piece's inputs."""
        return {name: batch[self.pieces[number]] for name, batch in self._batches.items()}

    def out(self, number: int) -> Out | None:
        """Return where a piece's outputs are to be written, as far as that is known."""
        return self._join.out(self.pieces[number])

    def put(self, number: int, result: InferResult) -> None:
        """Take a piece's answer."""
        self._join.put(self.pieces[number], result)

    def error(self, number: int, error: TritonFastError) -> TritonFastError:
        """Return a piece's error with the piece's number in it."""
        return _of_piece(error, number, self.pieces[number], len(self.pieces))

    def result(self) -> InferResult:
        """Return the answer to the whole batch."""
        return self._join.result()


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

    def __init__(self, empty: Empty, name: str, samples: Sequence[Any]) -> None:
        self._empty = empty
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
        batch = self._empty((len(arrays), *first.shape), first.dtype)
        for row, array in enumerate(arrays):
            batch[row] = array
        return batch


def _batch(empty: Empty, name: str, value: Any) -> np.ndarray[Any, Any] | _Samples:
    """Return an input as something whose rows can be cut off."""
    if isinstance(value, Tensor):
        raise InvalidTensor(f"input {name!r}: a Tensor cannot be split; pass an array")
    if isinstance(value, list | tuple) and value and not isinstance(value[0], str | bytes):
        return _Samples(empty, name, value)
    array = np.array(value, np.object_) if isinstance(value, list | tuple) else np.asarray(value)
    if array.ndim == 0:
        raise InvalidTensor(f"input {name!r} has no rows to split")
    return array


def _rows(batches: Mapping[str, Sized]) -> int:
    rows = {name: len(batch) for name, batch in batches.items()}
    if not rows:
        raise InvalidTensor("split: there are no inputs")
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name!r} has {count}" for name, count in rows.items())
        raise InvalidTensor(f"split: inputs have different batch sizes: {counts}")
    return next(iter(rows.values()))


class _Join:
    """The outputs of all pieces, as they come in."""

    def __init__(self, empty: Empty, prepared: Prepared, rows: int, out: Out | None) -> None:
        self._empty = empty
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
            return np.empty(shape, dtype) if dtype.hasobject else self._empty(shape, dtype)
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
        if self._first is None or piece.start == 0:
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
