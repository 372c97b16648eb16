"""Daemon threads that carry the native channel's calls which nobody waits for."""

from __future__ import annotations

import contextlib
import heapq
import threading
import time
from _queue import SimpleQueue  # gevent has another one in queue, for greenlets: not for threads
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..base import Call

if TYPE_CHECKING:
    from ..._core import _http2

__all__ = ["Threads"]

_MOST_THREADS = 32
_NEVER_NS = 2**63 - 1


class Turn:
    """A call that nobody waits for, from `NativeChannel.start` on until a thread takes it."""

    __slots__ = ("_threads", "due_ns", "native", "work")

    def __init__(
        self, threads: Threads, native: _http2.Call, work: Callable[[], None], due_ns: int
    ) -> None:
        self._threads = threads
        self.native = native
        self.work: Callable[[], None] | None = work  # None once it was taken
        self.due_ns = due_ns

    def __lt__(self, other: Turn) -> bool:
        return self.due_ns < other.due_ns

    def cancel(self) -> None:
        """End the call with `Cancelled`; see `triton_fast.channels.base.Call.cancel`."""
        self.native.cancel()
        self._threads.hurry(self)


class Threads:
    """Daemon threads for calls that nobody waits for; made as they are needed, up to a limit.

    A call that finds all of them busy waits for its turn. If it is due before that, or cancelled,
    one more thread takes it, where it ends at once.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[Turn | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._count = 0
        self._pending = 0  # turns that are waiting or running
        self._closed = False
        self._due: list[Turn] = []  # a heap of those that may have to be taken out of turn
        self._due_changed = threading.Condition(self._lock)
        self._watched = False  # whether there is a thread for those

    def run(self, native: _http2.Call, work: Callable[[], None], due_ns: int | None) -> Call:
        """Have work done on a thread; at once if it is due before its turn comes."""
        turn = Turn(self, native, work, _NEVER_NS if due_ns is None else due_ns)
        with self._lock:
            closed = self._closed
            if not closed:
                self._pending += 1
                if self._pending > self._count and self._count < _MOST_THREADS:
                    self._add_thread()
                if self._pending > self._count and due_ns is not None:
                    self._watch(turn)
                self._queue.put(turn)
        if closed:
            work()  # closing has ended the call
        return turn

    def hurry(self, turn: Turn) -> None:
        """See to a turn at once, if it is still waiting."""
        with self._lock:
            if turn.work is not None and not self._closed:
                turn.due_ns = 0
                self._watch(turn)

    def close(self) -> None:
        """Let the threads end once they have done what they were given."""
        with self._lock:
            self._closed = True
            for _ in range(self._count):
                self._queue.put(None)

    def abandon(self) -> None:
        """Forget, in a forked child, the threads and a lock that one of them may have held."""
        self._lock = threading.Lock()
        self._closed = True

    def _add_thread(self) -> None:
        self._count += 1
        try:
            threading.Thread(target=self._serve, name="triton_fast", daemon=True).start()
        except RuntimeError:  # the system allows no more
            self._count -= 1
            if self._count == 0:
                self._pending -= 1
                raise

    def _watch(self, turn: Turn) -> None:
        heapq.heappush(self._due, turn)
        if self._watched:
            self._due_changed.notify()
            return
        # Where no thread can be had, the turn comes when one of the others is free.
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=self._serve_due, name="triton_fast", daemon=True).start()
            self._watched = True

    def _take(self, turn: Turn) -> Callable[[], None] | None:
        with self._lock:
            work, turn.work = turn.work, None
        return work

    def _finish(self) -> None:
        with self._lock:
            self._pending -= 1

    def _serve(self) -> None:
        while (turn := self._queue.get()) is not None:
            work = self._take(turn)
            del turn
            if work is not None:
                work()
                del work
                self._finish()

    def _serve_due(self) -> None:
        while (turn := self._next_due()) is not None:
            work = self._take(turn)
            del turn
            if work is not None:
                work()
                del work
                self._finish()

    def _next_due(self) -> Turn | None:
        """Wait for the next turn that is due; None if none can be."""
        with self._lock:
            while self._due:
                left_ns = self._due[0].due_ns - time.monotonic_ns()
                if left_ns <= 0 or self._due[0].work is None:
                    return heapq.heappop(self._due)
                self._due_changed.wait(min(left_ns / 1e9, 3600.0))
            self._watched = False
            return None
