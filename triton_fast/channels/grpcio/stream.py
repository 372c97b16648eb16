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
from itertools import repeat
from typing import Any

from ...errors import ClosedError, StatusCode, TritonFastError
from ..base import CallOptions, Outgoing, StreamIncoming
from ..waiting import Waiters
from .answers import feed_answer
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
    incoming : StreamIncoming
        Makes what messages are fed to.
    options : CallOptions
        Of the call.
    """

    def __init__(
        self,
        channel: StreamOwner,
        start: Callable[[Iterator[bytes] | bytes], Any],
        incoming: StreamIncoming[Any],
        options: CallOptions,
    ) -> None:
        self._channel = channel
        self._start = start
        self._incoming = incoming
        self._options = options
        self._pid = os.getpid()
        self._flight = ActiveCall(channel, 0)
        self._lock = threading.RLock()  # guards what follows
        self._waiters = Waiters()  # until something of it has changed
        self._call: Any = None
        self._outbox: bytes | None = None  # until grpcio's thread has taken it
        self._half_closed = False
        self._inbox: deque[Any] = deque()
        self._inbox_bytes = 0  # as long as there are messages
        self._at_end = False
        self._failure: TritonFastError | None = None  # how the call ended, if not well

    def send(
        self, outgoing: Outgoing, deadline_ns: int | None = None, *, last: bool = False
    ) -> None:
        """Send one message; see `triton_fast.channels.base.ChannelStream.send`."""
        self._check_process()
        message = outgoing.render()
        with self._lock:
            self._check_channel()
            if self._half_closed or self._at_end:
                raise self._no_more()
            only = last and self._call is None
            self._outbox = None if only else message
            self._half_closed = last
            self._waiters.wake()
        try:
            if self._call is None:
                self._begin(message if only else iter(self._next_message, None))
            del message
            while True:
                with self._lock:
                    if self._is_taken():
                        return
                    if self._is_over():
                        self._outbox = None
                        raise self._failure or self._no_more()
                    waiter = self._waiters.join()
                self._wait(waiter, deadline_ns, "the server had taken the message")
        except BaseException as error:
            with self._lock:
                self._end(error if isinstance(error, TritonFastError) else self._withdrawn())
            raise

    def half_close(self) -> None:
        """Say that no more messages will be sent. Idempotent."""
        self._check_process()
        with self._lock:
            self._half_closed = True
            self._waiters.wake()

    def receive(self, into: list[Any], deadline_ns: int | None = None) -> None:
        """Wait for messages; see `triton_fast.channels.base.ChannelStream.receive`."""
        self._check_process()
        if self._call is None:
            deadline_ns = min(
                (end for end in (deadline_ns, self._options.deadline_ns) if end is not None),
                default=None,
            )
        while True:
            with self._lock:
                _move_all(self._inbox, into)
                if into:
                    self._waiters.wake()  # that more may be read
                    return
                if self._at_end or (self._call is None and self._half_closed):
                    return
                self._check_channel()
                waiter = self._waiters.join()
            self._wait(waiter, deadline_ns, "there was a message")

    def cancel(self) -> None:
        """End the call; see `triton_fast.channels.base.ChannelStream.cancel`."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._end(self._withdrawn())
            self._inbox.clear()

    def end(self) -> None:
        """End the call, unless it is over; what has been read can still be received."""
        with self._lock:
            self._end(self._withdrawn())

    def _is_taken(self) -> bool:
        return self._outbox is None

    def _is_over(self) -> bool:
        return self._at_end or self._failure is not None

    def _ended(self) -> TritonFastError | None:
        return self._failure

    def _check_process(self) -> None:
        if self._pid != os.getpid():  # where a thread that does not exist may hold the lock
            raise ClosedError(f"the stream to {self._channel.target} is the parent process's")

    def _check_channel(self) -> None:
        if self._channel.ended is not None:
            self._end(self._withdrawn())
        if self._failure is not None:
            raise self._failure

    def _begin(self, messages: Iterator[bytes] | bytes) -> None:
        try:
            gate.enter(self._flight, self._options, self._channel.target)
            call = self._call = self._start(messages)
            threading.Thread(
                target=self._read, args=(call,), name="triton_fast stream", daemon=True
            ).start()
        except BaseException:
            gate.flights.discard(self._flight)  # see ActiveCall
            gate.leave(self._flight)
            raise
        with self._lock:
            if self._is_over():  # it was cancelled meanwhile
                _withdraw(call)

    def _next_message(self) -> bytes | None:
        """Wait for the next message to send, on grpcio's thread; None if there will be none."""
        while True:
            with self._lock:
                if self._is_over():
                    self._outbox = None
                    return None
                if self._outbox is not None or self._half_closed:
                    message, self._outbox = self._outbox, None
                    self._waiters.wake()
                    return message
                waiter = self._waiters.join()
            self._waiters.wait(waiter, None)

    def _read(self, call: Any) -> None:
        """Read messages ahead of those who receive, until there is enough for them."""
        failure = None
        try:
            while True:
                try:
                    message = next(call)
                except StopIteration:
                    break
                parsed = self._incoming.message()
                byte_size = feed_answer(
                    parsed, message, self._options, self._channel.target, self._ended
                )
                parsed.finish()
                self._append(parsed, byte_size)
                del message, parsed
                self._wait_for_room()
        except BaseException as error:  # noqa: BLE001  it is told to those who receive
            failure = (
                error
                if isinstance(error, TritonFastError)
                else self._channel.failure(error, self._options, cancelled=False)
            )
        with self._lock:
            if failure is None:
                self._at_end = not self._is_over()
            self._end(failure)
        gate.leave(self._flight)  # not before: until here, this thread may be inside grpcio

    def _append(self, parsed: Any, byte_size: int) -> None:
        with self._lock:
            self._inbox_bytes = byte_size + (self._inbox_bytes if self._inbox else 0)
            self._inbox.append(parsed)
            self._waiters.wake()

    def _wait_for_room(self) -> None:
        while True:
            with self._lock:
                if not self._has_enough() or self._is_over():
                    return
                waiter = self._waiters.join()
            self._waiters.wait(waiter, None)

    def _has_enough(self) -> bool:
        return len(self._inbox) >= MOST_MESSAGES or (
            len(self._inbox) > 0 and self._inbox_bytes >= MOST_BYTES
        )

    def _end(self, failure: TritonFastError | None) -> None:
        """Take note that the call is over, or end it. With the lock."""
        if not self._is_over():
            self._failure = failure
            if self._call is not None:
                _withdraw(self._call)
        self._waiters.wake()

    def _wait(self, waiter: threading.Lock, deadline_ns: int | None, what: str) -> None:
        left = None
        if deadline_ns is not None:
            left = (deadline_ns - time.monotonic_ns()) * 1e-9
            if left <= 0:
                self._waiters.leave(waiter)
                raise deadline_error(self._channel, self._options, what)
        self._waiters.wait(waiter, left)

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


def _move_all(inbox: deque[Any], into: list[Any]) -> None:
    # One call of a function that is not Python's: between two, a signal's handler may raise, and
    # the messages would be in both places or in neither.
    into.extend(map(deque.popleft, repeat(inbox, len(inbox))))
