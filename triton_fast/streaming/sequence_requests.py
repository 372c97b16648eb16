"""Requests that belong together, for models that keep state between them. Does no I/O.

`SequenceRequests` owns the id, the flags, and what became of the requests so far, on which the
flags of the next one depend.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..errors import (
    ClosedError,
    Internal,
    InvalidArgument,
    InvalidOption,
    InvalidTensor,
    NotFound,
)
from ..inference.request import Outputs, Prepared, check_inputs, prepare, prepare_streamed
from ..inference.result import InferResult
from ..inference.tensor import Tensor, input_tensor
from ..options.values import checked_flag, checked_text, plain_parameters, whole_number
from ..protocol.datatypes import datatype_of, dtype_of

if TYPE_CHECKING:
    from ..protocol.codec import Codec
    from .demux import Pending

__all__ = [
    "CLOSE_TIMEOUT_S",
    "NO_SEQUENCE",
    "SequenceRequest",
    "SequenceRequests",
    "only_answer",
    "unary_only",
]

CLOSE_TIMEOUT_S = 2.0
"""How long a sequence that is left by an exception may take to be ended."""

NO_SEQUENCE = (InvalidArgument, NotFound)
"""What a server says to a request of a sequence, or for a model, that it does not know."""

_OWN = ("sequence_id", "sequence_start", "sequence_end")

_Form = list[tuple[str, str, tuple[int, ...]]]
"""The names, datatypes and shapes of a request's inputs."""


class SequenceRequest:
    """One request of a sequence, and what became of it; made by `SequenceRequests`.

    A context manager around the call, or around the sending where the answers come on a stream:
    ``pending`` is set in the block then, and tells the rest. A request that raises `InvalidTensor`
    or `InvalidOption` there was none.

    Attributes
    ----------
    prepared : Prepared
        Its constant part, with the flags.
    form : list
        Of its inputs.
    ends : bool
        Whether it says that it is the last one.
    pending : Pending or None
        Where the stream keeps account of its answers.
    """

    __slots__ = ("_answered", "_over", "_requests", "ends", "form", "pending", "prepared")

    def __init__(
        self, requests: SequenceRequests, prepared: Prepared, form: _Form, *, ends: bool
    ) -> None:
        self.prepared = prepared
        self.form = form
        self.ends = ends
        self.pending: Pending | None = None
        self._requests = requests
        self._over = False
        self._answered = False

    @property
    def over(self) -> bool:
        """Whether nothing more comes for it."""
        return self._over if self.pending is None else self.pending.over

    @property
    def answered(self) -> bool:
        """Whether something came that was no error."""
        return self._answered if self.pending is None else self.pending.answered

    def __enter__(self) -> Self:
        self._requests.made.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, InvalidTensor | InvalidOption):
            self._requests.made.remove(self)
        self._over = True
        self._answered = error is None


class SequenceRequests:
    """What the requests of one sequence have beside their tensors.

    Parameters
    ----------
    codec : Codec
        The protocol that they are in.
    model, model_version, outputs, parameters, priority, queue_timeout
        As in `triton_fast.Client.infer`.
    sequence_id : int or str, optional
        A random number if left out.
    resume : bool
        Whether the server knows the sequence, so that no request starts it.
    streamed : bool
        Whether they go on a stream.

    Attributes
    ----------
    id : int or str
        What the server knows the sequence by.
    made : list of SequenceRequest
        Those of which it is not known yet what became of them.
    closed : bool
        Whether no more may be made.

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
        codec: Codec,
        model: str,
        model_version: str,
        outputs: Outputs | None,
        parameters: Mapping[str, Any] | None,
        priority: int,
        queue_timeout: float | None,
        sequence_id: int | str | None,
        *,
        resume: bool,
        streamed: bool,
    ) -> None:
        if resume and sequence_id is None:
            raise InvalidOption("resume=True: sequence_id must say which sequence, got None")
        self.id = _checked_id(sequence_id)
        self.made: list[SequenceRequest] = []
        self.closed = False
        self._answered = resume  # whether any request was
        self._untouched = resume  # whether no request was made here of a sequence that goes on
        self._form: _Form = []  # of the last request that was answered, or was the only one made
        self._in_doubt = False  # whether the last request failed
        self._ended = False
        self._prepare = functools.partial(prepare_streamed if streamed else prepare, codec)
        own = plain_parameters(parameters) or {}
        for name in own:
            if name in _OWN:
                raise InvalidOption(f"parameter {name!r} is set by the sequence itself")
        if isinstance(outputs, Iterator):
            outputs = list(outputs)  # they are needed more than once
        self._arguments = (
            model,
            model_version,
            outputs,
            own,
            priority,
            queue_timeout,
        )
        self._prepared: dict[tuple[bool, bool], Prepared] = {}
        self._marked(starts=True, ends=False)  # so that what is wrong is said here

    def __str__(self) -> str:
        if self.closed or self._ended or any(request.ends for request in self.made):
            state = "ended"
        else:
            state = "begun" if self._answered or self.made else "not begun"
        return f"{self.id!r} of model {self._arguments[0]!r}; {state}"

    def next(self, inputs: Mapping[str, Any], *, end: bool) -> SequenceRequest:
        """Return the next request.

        It says that the sequence starts there until a request was answered, or is on its way: what
        failed at the beginning did not begin it, or, as far as a model is concerned, begins anew.

        Raises
        ------
        ClosedError
            If the sequence was ended.
        InvalidTensor
            If the inputs are none.
        InvalidOption
            If ``end`` is neither True nor False.
        """
        end = checked_flag(end, "end")
        self._settle()
        if self.closed or self._ended or any(request.ends for request in self.made):
            raise ClosedError(f"sequence {self.id!r} was ended, and takes no more requests")
        starts = not self._answered and not self.made
        form = _form_of(inputs)
        self._untouched = False
        return SequenceRequest(self, self._marked(starts=starts, ends=end), form, ends=end)

    def ending_request(self) -> tuple[SequenceRequest, dict[str, Any], bool] | None:
        """Return the request that ends the sequence, if the server may keep a place for it.

        Returns
        -------
        SequenceRequest
            Marked as the last.
        dict
            Its inputs: zeros and empty strings, in the form of the last good request.
        bool
            Whether the server may know no such sequence, because the last request failed.
        """
        self._settle()
        if self.closed or self._ended or any(request.ends for request in self.made):
            return None
        if not self._answered and not self.made and not self._in_doubt:
            return None
        if self._untouched:
            return None  # what its inputs are like is not known here
        form = self.made[-1].form if self.made and not self._answered else self._form
        request = SequenceRequest(self, self._marked(starts=False, ends=True), form, ends=True)
        inputs = {name: _blank(datatype, shape) for name, datatype, shape in form}
        return request, inputs, self._in_doubt

    def _settle(self) -> None:
        """Draw the conclusions of the requests that are over."""
        for request in [request for request in self.made if request.over]:
            self.made.remove(request)
            self._in_doubt = not request.answered
            if request.answered:
                self._answered = True
                self._ended = self._ended or request.ends
            if request.answered or not self._answered:
                self._form = request.form

    def _marked(self, *, starts: bool, ends: bool) -> Prepared:
        known = self._prepared.get((starts, ends))
        if known is None:
            model, version, outputs, parameters, priority, queue_timeout = self._arguments
            marked = {**parameters, **dict(zip(_OWN, (self.id, starts, ends), strict=True))}
            known = self._prepare(model, version, outputs, marked, priority, queue_timeout)
            self._prepared[starts, ends] = known
        return known


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
    if isinstance(value, str):
        return checked_text(value, "sequence_id")
    return whole_number(value, "sequence_id must be a str or a whole number", 1)


def _form_of(inputs: Mapping[str, Any]) -> _Form:
    check_inputs(inputs)
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
