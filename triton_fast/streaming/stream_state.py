"""What is known of a stream, and who may do what on it next. Shared by both faces. No I/O.

Owns the stream's requests, why it is over if it is, and the rules by which those who wait for
answers take turns at reading. `Stream` guards it with a lock; `AsyncStream` is one event loop's.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from ..errors import (
    ClosedError,
    DeadlineExceeded,
    ResourceExhausted,
    TritonFastError,
    Unavailable,
)
from ..options.values import checked_text, whole_number
from .demux import Inbox, Item, Pending, Refusal, ResponseDemux

if TYPE_CHECKING:
    from ..channels.base import CallOptions
    from ..inference.request import Prepared
    from ..inference.tensor import InputTensor
    from ..protocol.codec import ResponseDecoder

__all__ = [
    "CLOSE_TIMEOUT_NS",
    "PATIENCE_NS",
    "Explain",
    "StreamState",
    "answers_repr",
    "described",
]

R = TypeVar("R")

# An explanation that took so long is the last one that a stream's errors have.
_SLOW_NS = 500_000_000

Explain: TypeAlias = Callable[[BaseException, "Prepared", "list[InputTensor]", "CallOptions"], R]
"""Adds to a refusal what the server did not say, or raises what says more."""

PATIENCE_NS = 30 * 10**9
"""How long a reader lets answers lie that others do not read, before it says so."""

CLOSE_TIMEOUT_NS = 200_000_000
"""How long the end of a call is waited for, once its last answer is there."""


class StreamState:
    """A stream's requests, and its turns.

    Parameters
    ----------
    target : str
        For errors.
    options : CallOptions
        Of the call.
    buffer_size : int, bytes
        How much of answers may wait to be read.
    wake : callable
        Wakes all who wait, so that they look again.

    Attributes
    ----------
    wake : callable
        As given; a forked child sets another one.
    options : CallOptions
        As given, until the call is made with others.
    inbox : Inbox
        Of the requests that were sent by hand.
    failure : TritonFastError or None
        Why nothing can be done on the stream any more.
    half_closed : bool
        Whether it takes no more requests.
    reading : bool
        Whether somebody is at the channel.
    starved : bool
        Whether somebody does not read on before others have read what is there.
    explains : bool
        Whether it is worth asking the server what a refusal leaves unsaid.

    Raises
    ------
    InvalidOption
        If ``buffer_size`` makes no sense.
    """

    def __init__(
        self, target: str, options: CallOptions, buffer_size: int, wake: Callable[[], None]
    ) -> None:
        self.wake = wake
        self.options = options
        self.inbox: Inbox = deque()
        self.failure: TritonFastError | None = None
        self.half_closed = False
        self.reading = False
        self.starved = False
        self.explains = True
        self._buffer_size = whole_number(buffer_size, "buffer_size must be a number of bytes", 1)
        self._demux = ResponseDemux(target)
        self._by_hand: dict[Pending, None] = {}

    def add(
        self,
        prepared: Prepared,
        tensors: list[InputTensor],
        request_id: str,
        inbox: Inbox,
        *,
        last: bool,
    ) -> Pending:
        """Take note of a request before it is sent.

        Raises
        ------
        TritonFastError
            How the stream ended, if it did.
        ClosedError
            If it takes no more requests.
        InvalidOption
            If the id is no str.
        """
        if self.failure is not None:
            raise self.failure.with_traceback(None)
        if self.half_closed:
            raise ClosedError("the stream is half closed, and takes no more requests")
        checked_text(request_id, "request_id", empty=True)
        pending = self._demux.add(request_id, described(prepared, request_id), inbox, alone=last)
        # Their memory is the caller's again once they are sent.
        pending.sent = prepared, [tensor._replace(payload=None) for tensor in tensors]
        if inbox is self.inbox:
            self._by_hand[pending] = None
        self.half_closed = last
        return pending

    def withdraw(self, pending: Pending, error: BaseException) -> None:
        """Forget a request that could not be sent."""
        self._demux.withdraw(pending)
        self._by_hand.pop(pending, None)
        if isinstance(error, DeadlineExceeded):
            self.conclude(error)  # a part of the request may be on its way

    def drop(self, pending: Pending) -> None:
        """Read no more of a request's answers."""
        pending.unwanted = True
        pending.inbox.clear()
        self.wake()

    def is_over(self, pending: Pending | None) -> bool:
        """Whether nothing more comes for a request, or for those that were sent by hand."""
        if pending is not None:
            return pending.over
        for made in [made for made in self._by_hand if made.over]:
            del self._by_hand[made]
        return not self._by_hand

    def may_read(self, patience: int | None) -> tuple[bool, int | None]:
        """Say whether it is one's turn at the channel, for one who has found no answer.

        Parameters
        ----------
        patience : int or None
            What this has returned when it was asked before.

        Returns
        -------
        bool
            Whether to read now; otherwise one waits until something has changed.
        int or None
            Until when at most, if it is for answers that others do not read; nanoseconds of
            ``time.monotonic_ns()``.
        """
        room = self._demux.unread(self._buffer_size) < self._buffer_size
        if self.reading or room:
            patience = None
        else:
            self.starved = True
            patience = patience or time.monotonic_ns() + PATIENCE_NS
        return room and not self.reading, patience

    def seconds_to_wait(self, deadline_ns: int | None, patience: int | None) -> float | None:
        """Return how long one waits at most; None for as long as it takes.

        Raises
        ------
        DeadlineExceeded
            If the deadline has passed.
        ResourceExhausted
            If it is for answers that others do not read, and patience is at an end.
        """
        now = time.monotonic_ns()
        if deadline_ns is not None and now >= deadline_ns:
            raise DeadlineExceeded("the deadline passed before the answer", call=self.options.call)
        if patience is not None and now >= patience:
            raise ResourceExhausted(
                f"{self._demux.unread(0)} bytes of answers to other requests on the stream wait to "
                f"be read; buffer_size is {self._buffer_size}. Read them, in turn or at the same "
                "time, or give requests streams of their own",
                call=self.options.call,
            )
        ends = [end for end in (deadline_ns, patience) if end is not None]
        return (min(ends) - now) * 1e-9 if ends else None

    def took(self, item: Item) -> None:
        """Wake readers that wait for room, once there is some: an answer was read."""
        if self._demux.took(item, self._buffer_size) < self._buffer_size:
            self.starved = False
            self.wake()

    def deliver(self, responses: list[ResponseDecoder]) -> None:
        """Hand out what has come; see `ResponseDemux.deliver`."""
        self._demux.deliver(responses)

    def ended_by_server(self) -> None:
        """Have the requests end whose last answer did not come. There may be none."""
        self._demux.end()
        self.conclude(
            Unavailable(
                "the server ended the stream before a request's last answer",
                call=self.options.call,
            )
        )

    def is_readers_own(self, error: TritonFastError, deadline_ns: int | None) -> bool:
        """Whether an error is that a reader's own deadline has passed: the stream goes on."""
        if not isinstance(error, DeadlineExceeded) or deadline_ns is None:
            return False
        now = time.monotonic_ns()
        own = self.options.deadline_ns
        return now >= deadline_ns and (own is None or now < own)

    def options_until(self, deadline_ns: int | None) -> CallOptions:
        """Return the options of a call that is made for a reader, who waits no longer than this."""
        own = self.options.deadline_ns
        if deadline_ns is None or (own is not None and own <= deadline_ns):
            return self.options
        return replace(self.options, deadline_ns=deadline_ns)

    @contextlib.contextmanager
    def explaining(self, refusal: Refusal, inbox: Inbox) -> Iterator[None]:
        """Have a refusal, taken from an inbox, explained in a ``with`` block.

        If that is interrupted, by a signal's handler or as the task is cancelled, the refusal goes
        back: it was not told yet. What says more than it does is raised in its place.
        """
        began = time.monotonic_ns()
        try:
            yield
        except TritonFastError:
            raise
        except BaseException:
            inbox.appendleft(refusal)
            raise
        finally:
            self.explains = time.monotonic_ns() - began < _SLOW_NS

    def conclude(self, failure: TritonFastError) -> bool:
        """Have nothing more be done on the stream; False if that was so before."""
        if self.failure is not None:
            return False
        self.failure = failure
        self._demux.fail(failure)
        self.wake()
        return True

    def describe(self, stream: object) -> str:
        """Return what a stream is, and in what state."""
        if self.failure is not None:
            state = "over"
        else:
            state = f"requests without their last answer: {len(self._demux)}"
            state += ", half closed" if self.half_closed else ""
        return f"<{type(stream).__name__} to {self._demux.target}; {state}>"


def answers_repr(answers: object, pending: Pending, *, closed: bool) -> str:
    """Return what the answers to a request are of, and how many wait to be read."""
    unread = len(pending.inbox)
    state = "over" if closed or (pending.over and not unread) else f"unread: {unread}"
    return f"<{type(answers).__name__} of {pending.call}; {state}>"


def described(prepared: Prepared, request_id: str) -> str:
    """Return what errors call a request."""
    return f"{prepared.call[:-1]}, request {request_id!r})" if request_id else prepared.call
