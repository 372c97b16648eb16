"""A stream on the native channel: one call with many messages each way, for threads that block."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import ClosedError, DeadlineExceeded, StatusCode, TritonFastError, server_error
from ..base import CallOptions, Outgoing

if TYPE_CHECKING:
    from ..._core import _http2

__all__ = ["DrivenStream", "NativeStream", "stream_failure"]


class DrivenStream(Protocol):
    """A call that the thread which sends or receives drives, as `_http2.StreamCall` is one."""

    def send(self, outgoing: Outgoing, deadline_ns: int | None, last: bool, /) -> bool:
        """Send one message, and return whether it was sent."""

    def half_close(self) -> None:
        """Say that no more messages will be sent."""

    def receive(self, into: list[Any], deadline_ns: int | None, /) -> bool:
        """Wait for messages, and return whether there are any, or the call is over."""

    def over(self) -> bool:
        """Return whether the call is over."""

    def outcome(self) -> _http2.Outcome:
        """Say what came of it."""

    def cancel(self) -> None:
        """End it."""


class NativeStream:
    """A stream on a connection of its own; see `triton_fast.channels.base.ChannelStream`.

    Parameters
    ----------
    call : DrivenStream
        The call.
    options : CallOptions
        That it was made with.
    target : str
        For errors.
    closed : callable
        Whether the channel was closed.
    """

    def __init__(
        self,
        call: DrivenStream,
        options: CallOptions,
        target: str,
        closed: Callable[[], bool],
    ) -> None:
        self._call = call
        self._options = options
        self._target = target
        self._closed = closed
        self._half_closed = False

    def send(
        self, outgoing: Outgoing, deadline_ns: int | None = None, *, last: bool = False
    ) -> None:
        """Send one message; see `triton_fast.channels.base.ChannelStream.send`."""
        self._check_open()
        if self._half_closed:
            raise ClosedError(f"{self._options.call}: the stream is half closed")
        self._half_closed = last
        if self._call.send(outgoing, deadline_ns, last):
            return
        failure = self._failure()
        if deadline_ns is not None and time.monotonic_ns() >= deadline_ns:
            raise DeadlineExceeded(
                "the deadline passed while the request was being sent",
                call=self._options.call,
                target=self._target,
            ) from failure
        raise failure or ClosedError(
            f"{self._options.call}: the server has ended the stream, and takes no more requests"
        )

    def half_close(self) -> None:
        """Say that no more messages will be sent. Idempotent."""
        self._check_open()
        self._half_closed = True
        self._call.half_close()

    def receive(self, into: list[Any], deadline_ns: int | None = None) -> None:
        """Wait for messages; see `triton_fast.channels.base.ChannelStream.receive`."""
        self._check_open()
        if not self._call.receive(into, deadline_ns):
            raise DeadlineExceeded(
                "the deadline passed before there was an answer",
                call=self._options.call,
                target=self._target,
            )
        if not into:
            failure = self._failure()
            if failure is not None:
                raise failure

    def cancel(self) -> None:
        """End the call; see `triton_fast.channels.base.ChannelStream.cancel`."""
        self._call.cancel()

    def _check_open(self) -> None:
        # Also in a forked child: it was abandoned there.
        if self._closed():
            raise ClosedError(f"the channel to {self._target} is closed")

    def _failure(self) -> TritonFastError | None:
        """Return how the call went wrong; None if it did not, or is not over."""
        if not self._call.over():
            return None
        try:
            outcome = self._call.outcome()
        except TritonFastError as error:
            return error
        return stream_failure(outcome, self._options, self._target, self._closed())


def stream_failure(
    outcome: _http2.Outcome, options: CallOptions, target: str, closed: bool
) -> TritonFastError | None:
    """Return the error for how a stream ended; None if it ended well."""
    if outcome.status == StatusCode.OK:
        return None
    if outcome.status == StatusCode.CANCELLED and closed:
        return ClosedError(f"the channel to {target} was closed during the call")
    return server_error(
        outcome.status,
        outcome.message,
        call=options.call,
        target=target,
        safe_to_retry=outcome.safe_to_retry,
    )
