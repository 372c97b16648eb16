# Written by `make twins` from sequence_async.py, which is the one to edit.
"""Sequences: what is asked of a model that keeps state from one request to the next."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..channels.one_process import OneProcess
from ..errors import TritonFastError
from ..inference.result import InferResult
from ..options.headers import checked_headers
from .sequence_requests import (
    CLOSE_TIMEOUT_S,
    NO_SEQUENCE,
    SequenceRequest,
    SequenceRequests,
    only_answer,
    unary_only,
)

if TYPE_CHECKING:
    from ..client.endpoint import Endpoint
    from ..options.headers import HeaderSource
    from .stream import ResponseStream, Stream

__all__ = ["InferSequence"]


class InferSequence(OneProcess):
    """Requests that a model with state sees as one sequence; made by `Client.sequence`.

    Attributes
    ----------
    id : int or str
        What the server knows the sequence by.

    Notes
    -----
    A context manager: leaving it ends the sequence on the server, however it is left.
    Triton ends one with a request, so unless the last one said ``end=True``, one more is sent, of
    the last one's form and with zeros, and its answer dropped: the model sees it as any other. One
    thread at a time.

    The order of the requests counts, and so each is sent before the next one can be made: also what
    `stream` is asked for is on its way when that returns.

    A request that fails does not end the sequence: it goes on, as far as the model does, and starts
    anew if none was answered yet. A stream that is over takes the sequence with it: if it breaks
    (`Unavailable`), or a deadline passes before the server has taken a request.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        requests: SequenceRequests,
        stream: Stream | None,
        timeout: float | None,
        headers: HeaderSource | None,
    ) -> None:
        self._endpoint = endpoint
        self._requests = requests
        self._stream = stream
        self._timeout = timeout  # checked
        self._headers = checked_headers(headers)

    def __repr__(self) -> str:
        return f"<InferSequence {self._requests}>"

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
        timeout: float | None = None,
    ) -> InferResult:
        """Make the next request, and wait for its answer.

        Parameters
        ----------
        inputs, request_id
            As in `Client.infer`.
        end : bool, default False
            Whether this is the sequence's last request.
        timeout : float, seconds, optional
            As in `Client.infer`; the sequence's by default. After it the request may still
            count.

        Raises
        ------
        ClosedError
            If the sequence was ended.
        Internal
            If the model gave no answer, or several; `stream` takes any number.
        InvalidTensor, InvalidOption, ServerError, WireError
            As in `Client.infer`.
        """
        request = self._requests.next(inputs, end=end)
        if self._stream is None:
            return self._infer(request, inputs, request_id, timeout)
        with self._send(request, inputs, request_id, timeout) as answers:
            return only_answer(list(answers), self._requests)

    def stream(
        self,
        inputs: Mapping[str, Any],
        *,
        end: bool = False,
        request_id: str = "",
        timeout: float | None = None,
    ) -> ResponseStream:
        """Make the next request of a model that gives many answers; see `infer`.

        Raises
        ------
        InvalidOption
            If the sequence was made with ``stream=False``.

        Examples
        --------
        >>> for answer in sequence.stream(inputs):  # doctest: +SKIP
        ...     print(answer["OUTPUT"])
        """
        return self._send(self._requests.next(inputs, end=end), inputs, request_id, timeout)

    def close(self) -> None:
        """End the sequence on the server, unless it was ended. Idempotent.

        Raises
        ------
        ServerError, WireError, ClosedError
            If the server could not be told.
        """
        self._close(None)

    def _infer(
        self,
        request: SequenceRequest,
        inputs: Mapping[str, Any],
        request_id: str,
        timeout: float | None,
    ) -> InferResult:
        limit = self._timeout if timeout is None else timeout
        options = self._endpoint.options(request.prepared.call, limit, self._headers)
        with request:
            return self._endpoint.infer(request.prepared, inputs, request_id, options, None)

    def _send(
        self,
        request: SequenceRequest,
        inputs: Mapping[str, Any],
        request_id: str,
        timeout: float | None,
    ) -> ResponseStream:
        if self._stream is None:
            raise unary_only()
        limit = self._timeout if timeout is None else timeout
        deadline_ns = self._endpoint.deadline_ns(limit)
        with request:
            answers = self._stream._make(request.prepared, inputs, request_id, deadline_ns)
            request.pending = answers._pending
        return answers

    def _close(self, timeout: float | None) -> None:
        try:
            ending_request = self._requests.ending_request()
            if ending_request is not None:
                self._end(*ending_request, timeout)
        finally:
            self._requests.closed = True
            if self._stream is not None:
                self._stream.close()

    def _end(
        self,
        request: SequenceRequest,
        inputs: Mapping[str, Any],
        in_doubt: bool,
        timeout: float | None,
    ) -> None:
        try:
            if self._stream is None:
                self._infer(request, inputs, "", timeout)
                return
            with self._send(request, inputs, "", timeout) as answers:
                for _ in answers:
                    pass
        except NO_SEQUENCE:
            if not in_doubt:
                raise

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
        try:
            limit = CLOSE_TIMEOUT_S if self._timeout is None else self._timeout
            self._close(min(limit, CLOSE_TIMEOUT_S))
        except TritonFastError as failure:
            # The error that is on its way is the one to see; this one is told with it.
            error.add_note(f"and sequence {self.id!r} could not be ended: {failure}")
