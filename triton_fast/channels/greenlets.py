"""Where gevent has patched sockets and threads: how a greenlet waits while the others go on.

Owns the threads that do the waiting, and is the only module that may import gevent, which it does
only in a process that gevent has patched.
"""

from __future__ import annotations

import contextlib
import sys
import time
import weakref
from _queue import Empty, SimpleQueue  # those of threads; gevent has others in queue
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from ..errors import ClosedError
from .lifecycle import Phase, watch

__all__ = ["are_patched", "in_thread", "in_turns", "is_own", "semaphore", "spawn"]

T = TypeVar("T")

# How long one look of `in_turns` takes at most: so long may a greenlet that is ended there take.
_TURN_NS = 200_000_000
# How long a thread is kept that has nothing to wait for.
_IDLE_S = 30.0


def are_patched() -> bool:
    """Return whether threads are greenlets here, and those who wait for a socket let others go on.

    Where only one of the two is patched, calls block their thread: a greenlet that waits may hold
    a lock of ours, for which the others would have the whole thread wait.
    """
    if "gevent.monkey" not in sys.modules:
        return False
    from gevent.monkey import is_module_patched  # noqa: PLC0415 - only where it is there

    return bool(is_module_patched("socket") and is_module_patched("threading"))


def is_own(hub: Any) -> bool:
    """Return whether a hub of gevent's is that of the calling thread."""
    import gevent  # noqa: PLC0415 - as above

    return hub is gevent.get_hub()


def spawn(function: Callable[[], object]) -> None:
    """Have a greenlet run a function soon; does not wait, and so may be called anywhere."""
    import gevent  # noqa: PLC0415 - as above

    gevent.spawn(function)


def semaphore(count: int) -> Any:
    """Return a semaphore of gevent's; who is ended while they wait leaves their turn to the next.

    What threading has instead of it forgets the next, if it has just woken who is ended.
    """
    from gevent.lock import Semaphore  # noqa: PLC0415 - as above

    return Semaphore(count)


def in_thread(function: Callable[[], T], interrupt: Callable[[], object]) -> T:
    """Return what a function returns that blocks, while other greenlets go on.

    Parameters
    ----------
    function : callable
        Runs on a thread, where it must not use anything of gevent's, which locks are too.
    interrupt : callable
        Has it return soon, called if the greenlet is ended meanwhile: killed, timed out, or
        interrupted by a signal. The function's end is waited for all the same, for it may be using
        the caller's memory.

    Raises
    ------
    BaseException
        What the function raises, or what the greenlet was ended with.
    RuntimeError
        If the system allows no more threads.
    ClosedError
        In a forked child, where the function is not.
    """
    import gevent  # noqa: PLC0415 - as above

    hub = gevent.get_hub()
    if gevent.getcurrent() is hub:
        return function()  # a callback of the hub's, or a finalizer: it cannot switch
    work = _Work(function, hub)
    try:
        try:
            _threads.run(work)
            work.done.wait()
        except BaseException:
            if not work.withdraw():
                interrupt()
                while not work.done.is_set():
                    # What has led here is raised again; another one must not cut this short.
                    with contextlib.suppress(BaseException):
                        work.done.wait()
            raise
    finally:
        _threads.forget(work)
        work.close()
    result: T = work.result()
    return result


def in_turns(look: Callable[[int], bool], deadline_ns: int | None) -> bool:
    """Wait for something that cannot be interrupted, while other greenlets go on.

    Parameters
    ----------
    look : callable
        Blocks until what is waited for is there, or a time in nanoseconds of
        ``time.monotonic_ns()`` has come; returns whether it is there. Runs as in `in_thread`.
    deadline_ns : int or None
        How long to wait.

    Returns
    -------
    bool
        Whether it is there.
    """
    while True:
        until_ns = time.monotonic_ns() + _TURN_NS
        last = deadline_ns is not None and deadline_ns <= until_ns
        if deadline_ns is not None and last:
            until_ns = deadline_ns
        if in_thread(partial(look, until_ns), _nothing):
            return True
        if last:
            return False


def _nothing() -> None:
    pass


class _Work:
    """A function that runs on a thread, and a greenlet that waits for its end."""

    def __init__(self, function: Callable[[], Any], hub: Any) -> None:
        from gevent.event import Event  # noqa: PLC0415 - as above

        self.done: Any = Event()
        self._function = function
        self._result: Any = None
        self._error: BaseException | None = None
        self._open = [True]  # taken out, in one step, by who runs the function or withdraws it
        # It wakes the hub from any thread, and keeps the hub from thinking that nobody ever will.
        self._watcher = hub.loop.async_()
        self._watcher.start(self.done.set)

    def __call__(self) -> None:
        """Run the function, unless it was withdrawn. On a thread."""
        if not self._take():
            return
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001 - it is the greenlet's
            self._error = error
        del self._function
        self._watcher.send()

    def abandon(self) -> None:
        """End the wait, in a forked child: the function is on a thread of the parent's."""
        self._error = ClosedError("the call is the parent process's; make one in this process")
        self.done.set()

    def withdraw(self) -> bool:
        """Have the function not begin; False if it has."""
        return self._take()

    def _take(self) -> bool:
        try:
            return self._open.pop()
        except IndexError:
            return False

    def result(self) -> Any:
        """Return what the function has returned, or raise what it has raised."""
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._result

    def close(self) -> None:
        """Let go of the hub; on its thread."""
        self._watcher.stop()
        self._watcher.close()


class _Threads:
    """Threads that are no greenlets: as many as there are greenlets that wait.

    Those of the hub's own pool would not do: when all ten wait for answers, nobody could send what
    one of them waits for, and no name be looked up.
    """

    def __init__(self) -> None:
        self._idle: list[SimpleQueue[_Work]] = []  # the queues of those that have nothing to do
        self._awaited: set[_Work] = set()
        _groups.add(self)

    def run(self, work: _Work) -> None:
        """Have a thread do something that a greenlet waits for until it says `forget`."""
        self._awaited.add(work)
        try:
            queue = self._idle.pop()
        except IndexError:
            queue = self._start()
        queue.put(work)

    def _start(self) -> SimpleQueue[_Work]:
        from gevent.monkey import get_original  # noqa: PLC0415 - as above

        queue: SimpleQueue[_Work] = SimpleQueue()
        get_original("_thread", "start_new_thread")(_serve, (queue, self._idle))
        return queue

    def forget(self, work: _Work) -> None:
        """Take note that nobody waits for something any more."""
        self._awaited.discard(work)

    def after_fork(self) -> None:
        """Forget, in a forked child, the threads that are the parent's.

        The greenlets that wait for them are here, too.
        """
        self._idle = []
        for work in self._awaited:
            work.abandon()
        self._awaited = set()


def _serve(queue: SimpleQueue[_Work], idle: list[SimpleQueue[_Work]]) -> None:
    while True:
        try:
            work = queue.get(timeout=_IDLE_S)
        except Empty:
            try:
                idle.remove(queue)
            except ValueError:
                continue  # it is about to be given something
            return
        work()
        del work
        idle.append(queue)


_groups: weakref.WeakSet[_Threads] = watch({Phase.CHILD_CHANNELS: _Threads.after_fork})
_threads = _Threads()
