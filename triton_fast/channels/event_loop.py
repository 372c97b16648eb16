"""What channels and clients for coroutines ask of event loops.

Which loop something belongs to, how long is left to a deadline, whose cancellation it is, and work
that would keep a loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Collection
from typing import Any, TypeVar

from ..errors import DeadlineExceeded, LoopError
from .base import CallOptions, Incoming

__all__ = [
    "LONG",
    "MOVED",
    "Cancellation",
    "end_of",
    "fed",
    "in_thread",
    "running_loop",
    "seconds_left",
]

T = TypeVar("T")

MOVED = "the client is used on another event loop by now"
"""Why calls end that a loop has left, which runs again."""

LONG = 4 << 20
"""A message of at least so many bytes is read in pieces."""
_PIECE = 1 << 20


def running_loop(own: asyncio.AbstractEventLoop | None, what: object) -> asyncio.AbstractEventLoop:
    """Return the running event loop, if something that belongs to ``own`` may be used on it.

    Parameters
    ----------
    own : asyncio.AbstractEventLoop or None
        The loop that it has belonged to so far; None for none yet.
    what : object
        What it is, for the error; a string, or something that has one.

    Raises
    ------
    LoopError
        If no loop is running, or another one than ``own``, which is running too, in another thread.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise LoopError(f"{what} was used without a running event loop") from None
    if own is not None and own is not loop and own.is_running():
        raise LoopError(
            f"{what} belongs to another event loop, which is running; make one for each loop"
        )
    return loop


def seconds_left(deadline_ns: int | None) -> float | None:
    """Return how long it is to a deadline, in seconds and zero at least; None for no deadline."""
    if deadline_ns is None:
        return None
    return max((deadline_ns - time.monotonic_ns()) * 1e-9, 0.0)


async def in_thread(
    options: CallOptions,
    target: str,
    function: Callable[..., T],
    *arguments: Any,
    borrowed: bool = False,
    phase: str = "before the request was sent",
) -> T:
    """Return what a function returns that takes too long for the event loop's thread.

    Parameters
    ----------
    options : CallOptions
        Of the call that waits for it.
    target : str
        For errors.
    function : callable
        Runs on a thread of the loop's; to its end, even if nobody waits for it any more.
    *arguments
        What it is given.
    borrowed : bool
        Whether it reads memory that is taken back when the call is over. Once it has begun, its end
        is waited for then, even if the deadline has passed or the task was cancelled.
    phase : str
        When the deadline has passed then, for the error.

    Raises
    ------
    DeadlineExceeded
        If it takes longer than the call may.
    """
    work = _Work(function)
    future = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
    try:
        await asyncio.wait((future,), timeout=seconds_left(options.deadline_ns))
        if not future.done():
            raise DeadlineExceeded(f"the deadline passed {phase}", call=options.call, target=target)
        result: T = future.result()
        return result
    finally:
        if not future.done() and not work.withdraw() and borrowed:
            await end_of((future,))
        future.cancel()


class _Work:
    """A function that may be withdrawn as long as it has not begun."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._begun = False
        self._withdrawn = False

    def __call__(self, *arguments: Any) -> Any:
        with self._lock:
            if self._withdrawn:
                return None
            self._begun = True
        return self._function(*arguments)

    def withdraw(self) -> bool:
        """Have it not begin; False if it has."""
        with self._lock:
            self._withdrawn = True
            return not self._begun


async def end_of(futures: Collection[asyncio.Future[Any]]) -> None:
    """Wait until futures are done, for a call that fails and whose memory they use until then."""
    while not all(future.done() for future in futures):
        # The cancellation that has led here is raised again; another one must not cut this short.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(futures)


class Cancellation:
    """Tells a task's own cancellation from grpcio's, which raises the same when a call is."""

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._before = 0 if self._task is None else self._task.cancelling()

    def is_ours(self) -> bool:
        """Whether the task was cancelled since this was made."""
        return self._task is not None and self._task.cancelling() > self._before


async def fed(incoming: Incoming, message: bytes) -> None:
    """Give a message to its parser, in pieces, between which the event loop goes on."""
    incoming.begin(len(message))
    if len(message) < LONG:
        incoming.feed(message)
    else:
        view = memoryview(message)
        for first in range(0, len(view), _PIECE):
            incoming.feed(view[first : first + _PIECE])
            await asyncio.sleep(0)
