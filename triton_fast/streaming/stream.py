"""Streams, the blocking face: requests that many answers come to, one call for one or for many.

Owns the channel's stream from its opening to its end. Threads that wait for answers take turns at
reading, by the rules of `stream_state`; whoever reads hands out what came for the others.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from ..channels.lifecycle import Phase, watch
from ..channels.one_process import OneProcess
from ..channels.waiting import Waiters
from ..errors import Cancelled, ClosedError, TritonFastError
from ..inference.request import Outputs, Prepared, encode_request, prepare_streamed
from ..inference.result import InferResult
from ..options.deadline import deadline_after, seconds
from .demux import Inbox, Item, Pending, Refusal
from .stream_state import CLOSE_TIMEOUT_NS, Explain, StreamState, answers_repr

if TYPE_CHECKING:
    from ..channels.base import CallOptions, ChannelStream
    from ..inference.tensor import InputTensor
    from ..protocol.codec import Codec, ResponseDecoder

__all__ = ["ResponseStream", "Stream"]


class ResponseStream(OneProcess, Iterator[InferResult]):
    """The answers to one request, in order; made by `Client.stream` and `Stream.stream`.

    Ends after the model's final response, which is not among the answers if it has no outputs. An
    error of the request is raised where its answer would have been; a model may go on after one.

    Attributes
    ----------
    id : str
        The request's, as the caller gave it.

    Notes
    -----
    A context manager, and closed when it is not used any more. One thread at a time.
    """

    def __init__(
        self, stream: Stream, pending: Pending, deadline_ns: int | None, own: bool
    ) -> None:
        self.id = pending.id
        self._pending = pending
        self._stream = stream
        self._inbox = pending.inbox
        self._deadline_ns = deadline_ns
        self._own = own  # whether the stream is this request's alone
        self._closed = False

    def __repr__(self) -> str:
        return answers_repr(self, self._pending, closed=self._closed)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> InferResult:
        item: Item | None
        try:
            item = self._inbox.popleft()
        except IndexError:
            item = None
        if item is None:  # out of the handler: what is raised here has nothing to do with it
            if not self._closed:
                item = self._stream._next(self._pending, self._deadline_ns)
            if item is None:
                self._finish()
                raise StopIteration
        elif self._stream._state.starved:
            self._stream._took(item)
        if isinstance(item, InferResult):
            return item
        try:
            raise self._stream._failure(item, self._inbox, self._deadline_ns)
        finally:
            if self._pending.over and not self._inbox:
                self._finish()

    def close(self) -> None:
        """Read no more. Idempotent.

        The server is told to stop if the request has a stream to itself; on one that it shares,
        what still comes is dropped.
        """
        if self._closed:
            return
        self._closed = True
        self._stream._drop(self._pending)
        if self._own:
            self._stream.close()

    def _finish(self) -> None:
        if not self._closed:
            self._closed = True
            if self._own:
                self._stream._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._stream._state.failure is None:
            self.close()


class Stream(OneProcess):
    """A call that many requests share, driven by hand; made by `Client.open_stream`.

    `stream` makes a request whose answers are read from an iterator of its own. `send` and
    `receive` are for those who take answers as they come. Both may be used on one stream, by any
    number of threads.

    Notes
    -----
    A context manager: leaving it ends the requests whose answers have not all come. Answers that
    nobody reads are kept up to ``buffer_size`` bytes; then reading stops, and so, before long, does
    the server. One request's error does not end the others. The stream goes to one server, and has
    one connection to itself.
    """

    def __init__(
        self,
        channel_stream: ChannelStream[ResponseDecoder],
        options: CallOptions,
        target: str,
        inputs: Callable[[Prepared, Mapping[str, Any], CallOptions], list[InputTensor]],
        buffer_size: int,
        codec: Codec,
        explain: Explain[None],
    ) -> None:
        self._codec = codec
        self._explain = explain
        self._channel_stream = channel_stream
        self._inputs = inputs
        self._lock = threading.RLock()  # guards what follows
        self._waiters = Waiters()
        self._state = StreamState(target, options, buffer_size, self._waiters.wake)
        self._arrived: list[ResponseDecoder] = []  # and not handed out yet; the reader's
        self._handing_out = False
        self._sending = threading.Lock()
        _streams.add(self)

    def __repr__(self) -> str:
        return self._state.describe(self)

    def stream(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        outputs: Outputs | None = None,
        model_version: str = "",
        request_id: str = "",
        parameters: Mapping[str, Any] | None = None,
        priority: int = 0,
        queue_timeout: float | None = None,
        timeout: float | None = None,
    ) -> ResponseStream:
        """Make a request, and return its answers.

        Parameters
        ----------
        model, inputs, outputs, model_version, request_id, parameters, priority, queue_timeout
            As in `Client.infer`. Inputs may be changed once this has returned.
        timeout : float, seconds, optional
            When the last answer must have come; the stream's own limit counts too.

        Returns
        -------
        ResponseStream

        Raises
        ------
        InvalidTensor, InvalidOption
            If the request cannot be sent.
        ServerError, WireError, ClosedError
            If the stream is over.
        """
        prepared = prepare_streamed(
            self._codec, model, model_version, outputs, parameters, priority, queue_timeout
        )
        deadline_ns = deadline_after(seconds(timeout, "timeout"))
        return self._make(prepared, inputs, request_id, deadline_ns)

    def _make(
        self,
        prepared: Prepared,
        inputs: Mapping[str, Any],
        request_id: str,
        deadline_ns: int | None = None,
        *,
        last: bool = False,
    ) -> ResponseStream:
        """Make a prepared request; see `stream`. After the ``last`` one there can be no others."""
        inbox: Inbox = deque()
        pending = self._send(prepared, inputs, request_id, inbox, deadline_ns, last=last)
        return ResponseStream(self, pending, deadline_ns, own=last)

    def send(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        outputs: Outputs | None = None,
        model_version: str = "",
        request_id: str = "",
        parameters: Mapping[str, Any] | None = None,
        priority: int = 0,
        queue_timeout: float | None = None,
        timeout: float | None = None,
    ) -> None:
        """Make a request whose answers `receive` gives; they have its ``request_id`` as their id.

        Parameters and errors are those of `stream`, but for ``timeout``: the seconds in which the
        server must have taken the request. After that the stream is over.
        """
        prepared = prepare_streamed(
            self._codec, model, model_version, outputs, parameters, priority, queue_timeout
        )
        deadline_ns = deadline_after(seconds(timeout, "timeout"))
        self._send(prepared, inputs, request_id, self._state.inbox, deadline_ns)

    def receive(self, timeout: float | None = None) -> InferResult | None:
        """Return the next answer to a request that `send` made.

        Parameters
        ----------
        timeout : float, seconds, optional
            How long to wait.

        Returns
        -------
        InferResult, or None
            None if the last answers to all requests that were made have been read.

        Raises
        ------
        DeadlineExceeded
            If none came in time; the stream goes on.
        ServerError
            What went wrong with a request; its ``call`` has the request's id.
        """
        deadline_ns = deadline_after(seconds(timeout, "timeout"))
        item = self._next(None, deadline_ns)
        if item is None or isinstance(item, InferResult):
            return item
        raise self._failure(item, self._state.inbox, deadline_ns)

    def __iter__(self) -> Iterator[InferResult]:
        """Iterate over what `receive` returns."""
        return iter(self.receive, None)

    def half_close(self) -> None:
        """Say that no more requests will be made; answers may still come. Idempotent."""
        with self._lock:
            if self._state.half_closed or self._state.failure is not None:
                return
            self._state.half_closed = True
        with self._sending:
            self._channel_stream.half_close()

    def close(self) -> None:
        """End the stream, and what is running on it, also on the server. Idempotent."""
        with self._lock:
            if not self._state.conclude(ClosedError("the stream was closed")):
                return
            self._arrived = []
        self._channel_stream.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        state = getattr(self, "_state", None)
        if state is not None and state.failure is None:
            self.close()

    def _send(
        self,
        prepared: Prepared,
        inputs: Mapping[str, Any],
        request_id: str,
        inbox: Inbox,
        deadline_ns: int | None,
        *,
        last: bool = False,
    ) -> Pending:
        tensors = self._inputs(prepared, inputs, self._state.options)
        with self._sending:
            with self._lock:
                pending = self._state.add(prepared, tensors, request_id, inbox, last=last)
            try:
                request = encode_request(prepared.header, pending.wire_id, tensors)
                try:
                    self._channel_stream.send(request, deadline_ns, last=last)
                finally:
                    request.release()
            except BaseException as error:
                with self._lock:
                    self._state.withdraw(pending, error)
                raise
        return pending

    def _next(self, pending: Pending | None, deadline_ns: int | None) -> Item | None:
        """Return what comes next for a request, or for those sent by hand; None at the end."""
        state = self._state
        inbox = state.inbox if pending is None else pending.inbox
        patience = None
        while True:
            mine = False
            try:
                with self._lock:
                    if inbox:
                        item = inbox.popleft()
                        if state.starved:
                            state.took(item)
                        return item
                    if state.is_over(pending):
                        return None
                    my_turn, patience = state.may_read(patience)
                    if my_turn:
                        state.reading = mine = True
                    else:
                        waiter = self._waiters.join()
                if mine:
                    self._read(deadline_ns)
                else:
                    self._wait(waiter, deadline_ns, patience)
            finally:
                # Also if a signal's handler has raised, wherever that was.
                if mine:
                    state.reading = False  # by itself, for the next line may raise again
                    with self._lock:
                        self._waiters.wake()

    def _failure(
        self, item: Refusal | TritonFastError, inbox: Inbox, deadline_ns: int | None
    ) -> TritonFastError:
        """Return what is raised for something that came in place of an answer, or the end."""
        if isinstance(item, Refusal):
            error, pending = item
            state = self._state
            if pending.sent is not None and state.explains:
                with state.explaining(item, inbox):
                    self._explain(error, *pending.sent, state.options_until(deadline_ns))
            item = error
        # Others may raise it too, and it is not to hold on to the frames of all.
        return item.with_traceback(None)

    def _took(self, item: Item) -> None:
        with self._lock:
            self._state.took(item)

    def _wait(self, waiter: threading.Lock, deadline_ns: int | None, patience: int | None) -> None:
        """Wait until another thread has read, or taken, something."""
        try:
            with self._lock:
                limit = self._state.seconds_to_wait(deadline_ns, patience)
            self._waiters.wait(waiter, limit)
        finally:
            self._waiters.leave(waiter)

    def _read(self, deadline_ns: int | None) -> None:
        """Wait for answers, and hand them out.

        A signal's handler may raise anywhere in here, and in what is called. What has arrived by
        then is there for the next reader; if some of it may have been handed out, the requests
        end, lest one misses an answer or has it twice.
        """
        try:
            if self._handing_out:
                raise Cancelled("reading the stream was interrupted", call=self._state.options.call)
            if not self._arrived:
                self._channel_stream.receive(self._arrived, deadline_ns)
            with self._lock:
                if not self._arrived:
                    self._state.ended_by_server()
                    return
                self._handing_out = True
                self._state.deliver(self._arrived)
                self._arrived = []
                self._handing_out = False
        except TritonFastError as error:
            if self._state.is_readers_own(error, deadline_ns):
                raise
            with self._lock:
                self._state.conclude(error)
                self._arrived = []
            self._channel_stream.cancel()

    def _abandon(self) -> None:
        """End the stream in a forked child, where it is the parent's and goes on there."""
        # Threads that the child does not have may have had these.
        self._lock = threading.RLock()
        self._waiters = Waiters()
        self._state.wake = self._waiters.wake
        self._sending = threading.Lock()
        self._state.conclude(ClosedError("the stream is the parent process's"))
        self._arrived = []

    def _drop(self, pending: Pending) -> None:
        with self._lock:
            self._state.drop(pending)

    def _end(self) -> None:
        """See the call to its end: the last answer has come."""
        with self._lock:
            if not self._state.conclude(ClosedError("the stream is over")):
                return
            self._arrived = []
        try:
            self._channel_stream.receive([], time.monotonic_ns() + CLOSE_TIMEOUT_NS)
        except TritonFastError:
            pass  # the answers are there; how the call went after them is nobody's concern
        finally:
            self._channel_stream.cancel()


_streams = watch({Phase.CHILD_STREAMS: Stream._abandon, Phase.EXIT_STREAMS: Stream.close})
