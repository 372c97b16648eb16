"""A stream on the grpcio channel: one call with many messages each way, for threads that block.

Owns the grpcio call, the thread that reads it, and what that has read. Where the first message is
the last one, that thread is the only one; otherwise grpcio has another for each such call, which
takes the messages to send from an iterator, and reads in one that serves the whole channel. The
first answer takes 0.7 of the time without them, 10,000 small ones 0.3 (grpcio 1.85, 2026-11-21).
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from ..._core import _wire
from ...errors import ClosedError, StatusCode, TritonFastError
from ..base import Answer, CallOptions, Outgoing
from .fork import ActiveCall, gate
from .stream_rules import MOST_BYTES, MOST_MESSAGES, StreamOwner, deadline_error, withdrawn

__all__ = ["GrpcStream"]


class GrpcStream:
    """A stream; answers `triton_fast.channels.base.ChannelStream`.

    Parameters
    ----------
    channel : GrpcChannel
        Whose call it is.
    start : callable
        Begins the call: given the iterator of messages, or the only one, returns grpcio's call.
    options : CallOptions
        Of the call.
    """

    def __init__(
        self,
        channel: StreamOwner,
        start: Callable[[Iterator[bytes] | bytes], Any],
        options: CallOptions,
    ) -> None:
        self._channel = channel
        self._start = start
        self._options = options
        self._pid = os.getpid()
        self._flight = ActiveCall(channel, 0)
        self._changed = threading.Condition()  # guards what follows
        self._call: Any = None
        self._outbox: bytes | None = None  # until grpcio's thread has taken it
        self._half_closed = False
        self._inbox: deque[bytes] = deque()
        self._inbox_bytes = 0
        self._at_end = False
        self._failure: TritonFastError | None = None  # how the call ended, if not well

    def send(
        self, outgoing: Outgoing, deadline_ns: int | None = None, *, last: bool = False
    ) -> None:
        """Send one message; see `triton_fast.channels.base.ChannelStream.send`."""
        self._check_process()
        message = outgoing.render()
        with self._changed:
            self._check_channel()
            if self._half_closed or self._at_end:
                raise self._no_more()
            only = last and self._call is None
            self._outbox = None if only else message
            self._half_closed = last
            self._changed.notify_all()
        try:
            if self._call is None:
                self._begin(message if only else iter(self._next_message, None))
            del message
            with self._changed:
                while not (self._is_taken() or self._is_over()):
                    self._wait(deadline_ns, "the server had taken the message")
                if self._is_taken():
                    return
                self._outbox = None
                raise self._failure or self._no_more()
        except BaseException as error:
            with self._changed:
                self._end(error if isinstance(error, TritonFastError) else self._withdrawn())
            raise

    def half_close(self) -> None:
        """Say that no more messages will be sent. Idempotent."""
        self._check_process()
        with self._changed:
            self._half_closed = True
            self._changed.notify_all()

    def receive(self, deadline_ns: int | None = None) -> list[Answer]:
        """Wait for messages; see `triton_fast.channels.base.ChannelStream.receive`."""
        self._check_process()
        if self._call is None:
            deadline_ns = min(
                (end for end in (deadline_ns, self._options.deadline_ns) if end is not None),
                default=None,
            )
        with self._changed:
            while not self._inbox:
                if self._at_end or (self._call is None and self._half_closed):
                    return []
                self._check_channel()
                self._wait(deadline_ns, "there was a message")
            messages = list(self._inbox)
            self._inbox.clear()
            self._inbox_bytes = 0
            self._changed.notify_all()  # that more may be read
        return [_answer(message) for message in messages]

    def cancel(self) -> None:
        """End the call; see `triton_fast.channels.base.ChannelStream.cancel`."""
        if self._pid != os.getpid():
            return
        with self._changed:
            self._end(self._withdrawn())
            self._inbox.clear()

    def end(self) -> None:
        """End the call, unless it is over; what has been read can still be received."""
        with self._changed:
            self._end(self._withdrawn())

    def _is_taken(self) -> bool:
        return self._outbox is None

    def _is_over(self) -> bool:
        return self._at_end or self._failure is not None

    def _check_process(self) -> None:
        if self._pid != os.getpid():  # where a thread that does not exist may hold the lock
            raise ClosedError(f"the stream to {self._channel.target} is the parent process's")

    def _check_channel(self) -> None:
        if self._channel.ended is not None:
            self._end(self._withdrawn())
        if self._failure is not None:
            raise self._failure

    def _begin(self, messages: Iterator[bytes] | bytes) -> None:
        gate.enter(self._flight, self._options, self._channel.target)
        call = None
        try:
            call = self._start(messages)
            threading.Thread(
                target=self._read, args=(call,), name="triton_fast stream", daemon=True
            ).start()
        except BaseException:
            gate.leave(self._flight)
            if call is not None:
                call.cancel()
            raise
        with self._changed:
            self._call = call
            if self._is_over():  # it was cancelled meanwhile
                _withdraw(call)

    def _next_message(self) -> bytes | None:
        """Wait for the next message to send, on grpcio's thread; None if there will be none."""
        with self._changed:
            while self._outbox is None and not self._half_closed and not self._is_over():
                self._changed.wait()
            message, self._outbox = self._outbox, None
            self._changed.notify_all()
            return None if self._is_over() else message

    def _read(self, call: Any) -> None:
        """Read messages ahead of those who receive, until there is enough for them."""
        failure = None
        try:
            while True:
                try:
                    message = next(call)
                except StopIteration:
                    break
                with self._changed:
                    self._inbox.append(message)
                    self._inbox_bytes += len(message)
                    del message
                    self._changed.notify_all()
                    while self._has_enough() and not self._is_over():
                        self._changed.wait()
        except BaseException as error:  # noqa: BLE001  it is told to those who receive
            failure = self._channel.failure(error, self._options, cancelled=False)
        with self._changed:
            if failure is None:
                self._at_end = not self._is_over()
            self._end(failure)
        gate.leave(self._flight)  # not before: until here, this thread may be inside grpcio

    def _has_enough(self) -> bool:
        return len(self._inbox) >= MOST_MESSAGES or self._inbox_bytes >= MOST_BYTES

    def _end(self, failure: TritonFastError | None) -> None:
        """Take note that the call is over, or end it. With the lock."""
        if not self._is_over():
            self._failure = failure
            if self._call is not None:
                _withdraw(self._call)
        self._changed.notify_all()

    def _wait(self, deadline_ns: int | None, what: str) -> None:
        left = None
        if deadline_ns is not None:
            left = (deadline_ns - time.monotonic_ns()) * 1e-9
            if left <= 0:
                raise deadline_error(self._channel, self._options, what)
        self._changed.wait(None if left is None else min(left, threading.TIMEOUT_MAX))

    def _withdrawn(self) -> TritonFastError:
        return withdrawn(self._channel, self._options)

    def _no_more(self) -> ClosedError:
        return ClosedError(
            f"{self._options.call}: the stream is half closed or over, and takes no more messages"
        )


def _withdraw(call: Any) -> None:
    """Cancel a grpcio call, and let the thread that reads it be told so.

    After ``call.cancel`` nobody would take that from grpcio's core, if no other thread reads for
    the whole channel, and 18 KiB of the call would stay as long as the channel is open (1.85).
    What is asked here is the inner call, which has no public name.
    """
    inner = getattr(call, "_call", None)
    if inner is None:
        call.cancel()
    else:
        inner.cancel(int(StatusCode.CANCELLED), "cancelled by its caller")


def _answer(message: bytes) -> Answer:
    response = _wire.Response(envelope=True)
    response.begin(len(message))
    response.feed(message)
    response.finish()
    return Answer(response.error_message, response)
