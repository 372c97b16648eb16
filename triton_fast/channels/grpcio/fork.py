"""What keeps forks safe around grpcio, for all channels of the process that go through it.

Owns the one gate that calls enter, and that a fork closes for a moment. When that is, before and
after grpcio's own hooks, is for `triton_fast.channels.lifecycle` to see to.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Any, Protocol

from ...errors import DeadlineExceeded
from ..base import CallOptions
from ..lifecycle import Phase, watch

__all__ = ["ActiveCall", "Guarded", "collect_calls", "gate", "here"]

# How long a fork waits for running calls to end before the child has to do without grpcio.
_FORK_PATIENCE_S = 1.0

_FORK_SWITCH = "GRPC_ENABLE_FORK_SUPPORT"
_OFF = ("0", "f", "false", "n", "no")
# How grpcio's asyncio names its thread, which is inside grpcio as long as it exists.
_POLLER = "(_poll_wrapper)"
# How long that thread may take to end, once grpcio has no more use for it.
_LAST_STEPS_S = 0.1


class Guarded(Protocol):
    """A channel that forked children have to do without."""

    def rest(self, patience_s: float) -> Callable[[float], None] | None:
        """Give back, before a fork, what keeps threads inside grpcio; opened again when needed.

        Returns None if there was nothing, and otherwise what waits, so many seconds at most, until
        a thread that has given it back is out of grpcio.
        """

    def leave_to_parent(self) -> None:
        """Be of no more use, in a forked child, without touching what is the parent's."""


class ActiveCall:
    """A call that is inside grpcio, or about to be.

    Notes
    -----
    On a thread that signals may interrupt, it is taken out of `ForkGate.flights` by itself, before
    `ForkGate.leave`: a handler may raise as that begins, and forks would wait for the call for
    ever.
    """

    __slots__ = ("channel", "slow", "thread")

    def __init__(self, channel: Guarded, thread: int) -> None:
        self.channel = channel
        self.thread = thread  # without which it does not end; 0 for none
        self.slow = False  # has outlasted a fork's patience


class ForkGate:
    """Keeps calls and forks apart: grpcio survives a fork only while no thread is inside it.

    Without it, of the children forked while other threads called, 7 of 720 crashed (SIGSEGV, or an
    abort in grpcio's poller), and 10 of 192 where those calls were long; with it none of 2,400
    (grpcio 1.85, 2026-11-21). Nobody has to set ``GRPC_ENABLE_FORK_SUPPORT`` for that; where it is
    0, every child hangs past its deadlines, and where it is 1, those forked during a call.
    """

    def __init__(self) -> None:
        self._renew_lock()
        self.flights: set[ActiveCall] = set()
        self.forks = 0  # threads that are about to fork
        self.opened: weakref.WeakSet[Guarded] = weakref.WeakSet()
        self.inherited: list[Any] = []
        self.unusable: str | None = None  # why grpcio cannot be used in this process
        self.no_asyncio: str | None = None  # why its asyncio cannot
        self._support_off = False
        self._polling = False  # at the last fork, whether grpcio's asyncio was in use
        self._group: weakref.WeakSet[ForkGate] | None = None  # once forks are watched
        self._pid = os.getpid()

    def _renew_lock(self) -> None:
        # Re-entrant, for a signal handler or a finaliser may make or end a call anywhere. Taken by
        # itself where nobody waits: through the condition it costs a microsecond more per call.
        self.lock = threading.RLock()
        self._condition = threading.Condition(self.lock)

    def enter(self, flight: ActiveCall, options: CallOptions, target: str) -> None:
        """Count a call in, once no fork is waiting; no longer than to the call's deadline."""
        if self._pid != os.getpid():
            self.notice_fork()
        with self.lock:
            if self.forks and not getattr(here, "delivering", False):
                self._await_forks(options, target)
            self.flights.add(flight)

    def try_enter(self, flight: ActiveCall) -> bool:
        """Count a call in, unless a fork is waiting; for those that must not block."""
        if self._pid != os.getpid():
            self.notice_fork()
        with self.lock:
            if self.forks:
                return False
            self.flights.add(flight)
        return True

    def leave(self, flight: ActiveCall) -> None:
        """Count a call out. Idempotent."""
        with self.lock:
            self.flights.discard(flight)
            if self.forks and not self.flights:
                self._condition.notify_all()

    def notice_fork(self) -> None:
        """Start afresh if this is a forked child, whose locks may be held by threads it lacks.

        The hook below does this too, but not before those that were registered earlier, nor after
        a fork that runs no hooks.
        """
        if self._pid != os.getpid():
            self._after_fork_in_child()

    def serves(self, channel: Guarded) -> bool:
        """Tell whether this very thread is in a blocking call on the channel."""
        thread = get_ident()
        return any(flight.thread == thread and flight.channel is channel for flight in self.flights)

    def watch(self, channel: Guarded) -> None:
        """Have a channel put out of use in forked children."""
        self.opened.add(channel)
        if self._group is None:
            self._support_off = os.environ.get(_FORK_SWITCH, "").lower() in _OFF
            # Not before: the first channel has just had grpcio register its own hooks.
            group = watch(
                {
                    Phase.BEFORE_FORK: ForkGate._before_fork,
                    Phase.AFTER_FORK_IN_PARENT: ForkGate._after_fork_in_parent,
                    Phase.CHILD_GRPCIO: ForkGate._after_fork_in_child,
                }
            )
            group.add(self)
            self._group = group

    def _await_forks(self, options: CallOptions, target: str) -> None:
        while self.forks:
            patience = None
            if options.deadline_ns is not None:
                patience = (options.deadline_ns - time.monotonic_ns()) * 1e-9
                if patience <= 0:
                    raise DeadlineExceeded(
                        "the deadline passed while the process was being forked",
                        call=options.call,
                        target=target,
                    )
            self._condition.wait(patience)

    def _before_fork(self) -> None:
        with self.lock:
            self.forks += 1
            # Where a call outlasted an earlier fork, this child has lost its channel already.
            patient = not any(flight.slow for flight in self.flights)
            end = time.monotonic() + _FORK_PATIENCE_S
            while patient and self._others_run() and (left := end - time.monotonic()) > 0:
                self._condition.wait(left)
            for flight in self.flights:
                flight.slow = True
            opened = list(self.opened) if not self.flights else []
        rested = [channel.rest(max(end - time.monotonic(), 0.0)) for channel in opened]
        departures = [leave for leave in rested if leave is not None]
        if departures:
            collect_calls()
            for thread in _pollers():
                thread.join(_LAST_STEPS_S)
            # The thread that gave back the last of grpcio's asyncio waits for that one too, and
            # holds a lock meanwhile, on which the child would hang.
            for leave in departures:
                leave(max(end - time.monotonic(), _LAST_STEPS_S))
        self._polling = bool(_pollers())

    def _others_run(self) -> bool:
        """Tell whether a call is running that may end while this thread waits."""
        thread = get_ident()
        return any(flight.thread != thread for flight in self.flights)

    def _after_fork_in_parent(self) -> None:
        with self.lock:
            self.forks -= 1
            self._condition.notify_all()

    def _after_fork_in_child(self) -> None:
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        running = len(self.flights)
        self._renew_lock()
        self.flights = set()
        self.forks = 0
        opened, self.opened = list(self.opened), weakref.WeakSet()
        for channel in opened:
            channel.leave_to_parent()
        if self._polling:
            self.no_asyncio = (
                "grpcio's asyncio cannot be used in this forked process, because it was in use in "
                "the parent during the fork: start the process with the spawn or forkserver "
                "method, or use channel='native'"
            )
        if self._support_off:
            why = f"{_FORK_SWITCH} is off: unset it"
        elif running:
            calls = "1 call was" if running == 1 else f"{running} calls were"
            why = f"{calls} running in the parent during the fork: fork while none is"
        else:
            return
        self.unusable = (
            f"grpcio cannot be used in this forked process, because {why}, or start the process "
            "with the spawn or forkserver method"
        )


def collect_calls() -> None:
    """Collect grpcio's calls for coroutines that are over; they keep its asyncio and its thread."""
    if _pollers():
        gc.collect()


def _pollers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.endswith(_POLLER)]


gate = ForkGate()
here = threading.local()
