"""Sequences: requests that belong together, for models that keep state between them.

`SequenceRequests` owns what both faces need, the flags and the id; `InferSequence` is the blocking
face.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from .datatypes import datatype_of, dtype_of
from .errors import ClosedError, Internal, InvalidOption, InvalidTensor, TritonFastError
from .request import UNSET, Outputs, Prepared, prepare, prepare_streamed
from .response import InferResult
from .tensor import Tensor, input_tensor

if TYPE_CHECKING:
    from .connection import Connection
    from .headers import HeaderSource
    from .streams import ResponseStream, Stream

__all__ = ["FAREWELL_S", "InferSequence", "SequenceRequests", "only_answer", "unary_only"]

FAREWELL_S = 2.0
"""How long a sequence that is left by an exception may take to be ended."""


class SequenceRequests:
    """What the requests of one sequence have beside their tensors.

    Parameters
    ----------
    model, model_version, outputs, parameters, priority, queue_timeout
        As in `triton_fast.Client.infer`.
    sequence_id : int or str, optional
        A random number if left out.
    streamed : bool
        Whether they go on a stream.

    Raises
    ------
    InvalidOption
        If the id is none, or an argument is wrong.

    Source
    ------
    Triton's "sequence extension": sequence_id, sequence_start, sequence_end.
    """

    def __init__(
        self,
        model: str,
        model_version: str,
        outputs: Outputs | None,
        parameters: Mapping[str, Any] | None,
        priority: int,
        queue_timeout: float | None,
        sequence_id: int | str | None,
        *,
        streamed: bool,
    ) -> None:
        self.id = _checked_id(sequence_id)
        self.started = False
        self.ended = False
        self._form: list[tuple[str, str, tuple[int, ...]]] = []
        self._prepare = prepare_streamed if streamed else prepare
        self._arguments = (
            model,
            model_version,
            None if outputs is None else list(outputs) if not isinstance(outputs, str) else outputs,
            dict(parameters or {}),
            priority,
            queue_timeout,
        )
        self._prepared: dict[tuple[bool, bool], Prepared] = {}
        self.prepared(end=False)  # so that what is wrong is said here

    def prepared(self, *, end: bool) -> Prepared:
        """Return the constant part of the next request.

        Raises
        ------
        ClosedError
            If the sequence was ended.
        """
        if self.ended:
            raise ClosedError(f"sequence {self.id!r} was ended, and takes no more requests")
        flags = (not self.started, end)
        known = self._prepared.get(flags)
        if known is None:
            model, version, outputs, parameters, priority, queue_timeout = self._arguments
            marked = {
                **parameters,
                "sequence_id": self.id,
                "sequence_start": flags[0],
                "sequence_end": flags[1],
            }
            known = self._prepare(model, version, outputs, marked, priority, queue_timeout)
            self._prepared[flags] = known
        return known

    @contextmanager
    def sending(self, inputs: Mapping[str, Any], *, end: bool) -> Iterator[None]:
        """Take note of a request that is sent in this block, unless it turns out to be none."""
        before = self.started, self.ended, self._form
        self.started, self.ended, self._form = True, end, _form_of(inputs)
        try:
            yield
        except (InvalidTensor, InvalidOption):
            self.started, self.ended, self._form = before
            raise

    @property
    def wants_end(self) -> bool:
        """Whether the server keeps a place for the sequence, as far as is known."""
        return self.started and not self.ended

    def blank(self) -> dict[str, Any]:
        """Return inputs of the last request's form, zeros and empty strings, to carry a flag."""
        return {name: _blank(datatype, shape) for name, datatype, shape in self._form}


class InferSequence:
    """Requests that a model with state sees as one sequence; made by `Client.sequence`.

    Attributes
    ----------
    id : int or str
        What the server knows the sequence by.

    Notes
    -----
    A context manager: leaving it ends the sequence on the server, however it is left. Triton ends
    one with a request, so unless the last one said ``end=True``, one more is sent, of the last
    one's form and with zeros, and its answer dropped. One thread at a time.
    """

    def __init__(
        self,
        connection: Connection,
        requests: SequenceRequests,
        stream: Stream | None,
        timeout: float | None,
        headers: HeaderSource | None,
    ) -> None:
        self._connection = connection
        self._requests = requests
        self._stream = stream
        self._timeout = timeout
        self._headers = headers

    @property
    def id(self) -> int | str:
        """What the server knows the sequence by."""
        return self._requests.id

    def infer(
        self,
        inputs: Mapping[str, Any],
        *,
        end: bool = False,
        request_id: str = "",
        timeout: float | None = UNSET,
    ) -> InferResult:
        """Make the next request, and wait for its answer.

        Parameters
        ----------
        inputs, request_id
            As in `Client.infer`.
        end : bool, default False
            Whether this is the sequence's last request.
        timeout : float, seconds, optional
            As in `Client.infer`; the sequence's by default.

        Raises
        ------
        ClosedError
            If the sequence was ended.
        InvalidTensor, InvalidOption, ServerError, WireError
            As in `Client.infer`. The sequence goes on, as far as the model does.
        """
        if self._stream is not None:
            with self.stream(inputs, end=end, request_id=request_id, timeout=timeout) as answers:
                return only_answer(list(answers), self._requests)
        prepared = self._requests.prepared(end=end)
        limit = self._timeout if timeout is UNSET else timeout
        options = self._connection.options(prepared.call, limit, self._headers)
        with self._requests.sending(inputs, end=end):
            return self._connection.infer(prepared, inputs, request_id, options, None)

    def stream(
        self,
        inputs: Mapping[str, Any],
        *,
        end: bool = False,
        request_id: str = "",
        timeout: float | None = UNSET,
    ) -> ResponseStream:
        """Make the next request of a model that gives many answers; see `infer`.

        Raises
        ------
        InvalidOption
            If the sequence was made with ``stream=False``.
        """
        if self._stream is None:
            raise unary_only()
        prepared = self._requests.prepared(end=end)
        deadline_ns = self._connection.deadline_ns(self._timeout if timeout is UNSET else timeout)
        with self._requests.sending(inputs, end=end):
            return self._stream.make(prepared, inputs, request_id, deadline_ns)

    def close(self) -> None:
        """End the sequence on the server, unless it was ended. Idempotent.

        Raises
        ------
        ServerError, WireError, ClosedError
            If the server could not be told.
        """
        try:
            if self._requests.wants_end:
                self.infer(self._requests.blank(), end=True)
        finally:
            self._requests.ended = True
            if self._stream is not None:
                self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        self._timeout = FAREWELL_S
        try:
            self.close()
        except TritonFastError as failure:
            # The error that is on its way is the one to see; this one is told with it.
            error.add_note(f"and sequence {self.id!r} could not be ended: {failure}")


def only_answer(answers: list[InferResult], requests: SequenceRequests) -> InferResult:
    """Return the one answer to a request; Internal if there is none, or more."""
    if len(answers) != 1:
        raise Internal(
            f"the model gave {len(answers)} answers to a request of sequence {requests.id!r}; "
            "infer() takes one, stream() any number"
        )
    return answers[0]


def unary_only() -> InvalidOption:
    """Return the error for a sequence of unary calls that is asked for many answers."""
    return InvalidOption("many answers to a request need a sequence with stream=True")


def _checked_id(value: int | str | None) -> int | str:
    if value is None:
        return secrets.randbits(62) + 1
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 63:
        return value
    raise InvalidOption(
        f"a sequence's id is a positive int64 or a str that is not empty, not {value!r}"
    )


def _form_of(inputs: Mapping[str, Any]) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return names, datatypes and shapes."""
    form = []
    for name, value in inputs.items():
        datatype = datatype_of(value.dtype) if isinstance(value, np.ndarray) else None
        if datatype is not None:
            form.append((name, datatype, value.shape))
        else:
            tensor = input_tensor(name, value)
            form.append((name, tensor.datatype, tensor.shape))
    return form


def _blank(datatype: str, shape: tuple[int, ...]) -> Any:
    if datatype == "BYTES":
        return np.full(shape, b"", np.object_)
    return Tensor(np.zeros(shape, dtype_of(datatype)), datatype, shape)
