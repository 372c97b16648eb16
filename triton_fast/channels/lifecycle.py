"""The ends of processes, and their forks: who has a turn then, and in which order.

Owns the only ``os.register_at_fork``, ``atexit.register`` and ``multiprocessing.util.Finalize`` of
the client's Python. Not here: the connections' descriptors, which C++ closes in a forked child
before anything of Python's runs (``csrc/src/http2/fork.cpp``); and the test server
(`triton_fast.testing.server`), which its own exit hook keeps alive, and which is to be gone before
hooks run that were there before it.
"""

from __future__ import annotations

import atexit
import enum
import functools
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

__all__ = [
    "Lifecycle",
    "Phase",
    "inherit",
    "renew_after_fork",
    "run_exit_in_multiprocessing",
    "watch",
]

T = TypeVar("T")


class Phase(enum.Enum):
    """A time at which things may have a turn. Those of one moment come in the order given here."""

    # Around a fork, with what comes last in the child. The last hooks to be registered are the
    # first to run before a fork, and the last after it: these are registered when the first thing
    # asks for them, which is when grpcio has registered its own. grpcio's calls end only while its
    # threads run, and may go on only when they run again.
    BEFORE_FORK = enum.auto()
    """Calls through grpcio end, and new ones wait."""
    AFTER_FORK_IN_PARENT = enum.auto()
    """Calls through grpcio go on."""
    CHILD_GRPCIO = enum.auto()
    """Channels on grpcio are put out of use, after grpcio has seen to its own."""

    # Around a fork too, for memory that children share.
    BEFORE_FORK_ARRAYS = enum.auto()
    """What arrays lie on in shared memory is noted."""
    AFTER_FORK_ARRAYS = enum.auto()
    """The parent waits until the child has copies."""
    CHILD_ARRAYS = enum.auto()
    """The child puts copies of its own in place of that memory."""

    # In a forked child.
    CHILD_IMPORTS = enum.auto()
    """Imports that were under way in other threads are forgotten."""
    CHILD_STREAMS = enum.auto()
    """Streams get new locks, and are over: they are the parent's."""
    CHILD_CHANNELS = enum.auto()
    """Native channels are put out of use: their connections are the parent's."""
    CHILD_ENDPOINTS = enum.auto()
    """What clients are made of starts afresh, with channels of its own."""

    # At the interpreter's end, or that of a process of multiprocessing.
    EXIT_STREAMS = enum.auto()
    """Streams are closed. Later, when the interpreter is taken down, threads that hold a lock may
    be gone."""
    EXIT_SHARED_MEMORY = enum.auto()
    """Servers are told to let go of shared memory, over channels, which stay open to the end."""


_BEFORE = (Phase.BEFORE_FORK,)
_IN_PARENT = (Phase.AFTER_FORK_IN_PARENT,)
_LATE_IN_CHILD = (Phase.CHILD_GRPCIO,)
_ARRAYS = (Phase.BEFORE_FORK_ARRAYS, Phase.AFTER_FORK_ARRAYS, Phase.CHILD_ARRAYS)
_IN_CHILD = (
    Phase.CHILD_IMPORTS,
    Phase.CHILD_STREAMS,
    Phase.CHILD_CHANNELS,
    Phase.CHILD_ENDPOINTS,
)
_AT_EXIT = (Phase.EXIT_STREAMS, Phase.EXIT_SHARED_MEMORY)


class Lifecycle:
    """Groups of things that have turns, and the interpreter's hooks that give them these.

    Notes
    -----
    There is one for the process; tests make others. The interpreter is told of a moment when the
    first group asks for a phase of it.
    """

    def __init__(self) -> None:
        self._turns: dict[Phase, list[tuple[weakref.WeakSet[Any], Callable[[Any], None]]]] = {
            phase: [] for phase in Phase
        }
        self._hooked: set[Callable[[], None]] = set()
        self._finalized_pid = -1  # the process that has told multiprocessing

    def watch(self, turns: Mapping[Phase, Callable[[T], None]]) -> weakref.WeakSet[T]:
        """Return a new group, whose things have turns as long as they are alive.

        Parameters
        ----------
        turns : mapping of Phase to callable
            What is done with each thing in which phase. Groups that have one in common take their
            turns in the order of these calls; within a group there is no order.
        """
        group: weakref.WeakSet[T] = weakref.WeakSet()
        for phase, turn in turns.items():
            self._turns[phase].append((group, turn))
            self._hook(phase)
        return group

    def run(self, phases: Iterable[Phase]) -> None:
        """Give all things their turns, one phase after the other.

        Raises
        ------
        BaseException
            What a turn raised, once all have had theirs: the interpreter reports it then as it does
            for any hook (`sys.unraisablehook`, or to standard error at exit), and goes on. If
            several did, a group of them.
        """
        failures: list[BaseException] = []
        for phase in phases:
            for group, turn in list(self._turns[phase]):
                for thing in _alive(group):
                    try:
                        turn(thing)
                    except BaseException as error:  # noqa: BLE001 - raised below
                        failures.append(error)
        if len(failures) > 1:
            raise BaseExceptionGroup("several things failed at a fork or an exit", failures)
        if failures:
            raise failures[0]

    def run_exit_in_multiprocessing(self) -> None:
        """Have a process that multiprocessing has made run the exit's phases too.

        To be called when there is something that must not be left behind: such a process runs
        nothing of atexit's.
        """
        util = sys.modules.get("multiprocessing.util")
        if util is None or sys.modules["multiprocessing"].parent_process() is None:
            return
        if self._finalized_pid != os.getpid():
            self._finalized_pid = os.getpid()
            util.Finalize(None, self.run, (_AT_EXIT,), exitpriority=0)

    def _hook(self, phase: Phase) -> None:
        if phase in _AT_EXIT:
            hook = self._hook_exit
        elif phase in _IN_CHILD:
            hook = self._hook_child
        elif phase in _ARRAYS:
            hook = self._hook_arrays
        else:
            hook = self._hook_fork
        if hook not in self._hooked:
            hook()
            self._hooked.add(hook)  # after that: a signal's handler may raise in between

    def _hook_exit(self) -> None:
        atexit.register(self.run, _AT_EXIT)

    def _hook_child(self) -> None:
        os.register_at_fork(after_in_child=functools.partial(self.run, _IN_CHILD))

    def _hook_arrays(self) -> None:
        before, in_parent, in_child = (functools.partial(self.run, (phase,)) for phase in _ARRAYS)
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)

    def _hook_fork(self) -> None:
        os.register_at_fork(
            before=functools.partial(self.run, _BEFORE),
            after_in_parent=functools.partial(self.run, _IN_PARENT),
            after_in_child=functools.partial(self.run, _LATE_IN_CHILD),
        )


def _alive(group: weakref.WeakSet[T]) -> list[T]:
    while True:
        try:
            return list(group)
        except RuntimeError:  # a thread has added one meanwhile
            continue


_process = Lifecycle()
watch = _process.watch
run_exit_in_multiprocessing = _process.run_exit_in_multiprocessing


class Renewed(Protocol):
    """Something that starts afresh in a forked child."""

    def after_fork(self) -> None:
        """Start afresh; runs in the child, before anything else of it."""


def renew_after_fork(thing: Renewed) -> None:
    """Have something start afresh in forked children, as long as it is there."""
    _renewed.add(thing)


def inherit(thing: object) -> None:
    """Keep, in a forked child, what is the parent's: taking it down would wait for its threads."""
    _inherited.append(thing)


def _renew(thing: Renewed) -> None:
    thing.after_fork()


_renewed = watch({Phase.CHILD_ENDPOINTS: _renew})
_inherited: list[Any] = []
