"""Arrays on shared memory, and forks: a forked child has copies of its own.

What a parent's arrays lie on is mapped into its children too, so that either side would see what
the other writes, and a child's array would change when the parent leases the memory again. So a
child puts memory of its own in place of it before anything else of it runs, and the parent goes on
when it has. Owns what is known of a fork that is under way.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import weakref
from collections.abc import Callable
from typing import NamedTuple

from .._core._shm import Arenas, make_private
from ..channels.lifecycle import Phase, watch

__all__ = ["ForkCopies"]

# How long a parent waits for its child: a second, and what copying takes on a slow machine.
_PATIENCE_S = 1.0
_BYTES_PER_S = 100e6


class _Fork(NamedTuple):
    pages: list[tuple[Arenas, list[tuple[int, int]]]]
    reading: int  # a pipe: what the child writes to, and the parent reads from
    writing: int


class ForkCopies:
    """Gives children copies of what is leased when they are forked.

    Parameters
    ----------
    on_late_child : callable
        Called in the parent if a child has not made its copies in time: nothing that is leased now
        may be leased again.

    Notes
    -----
    Costs nothing but when a process forks while arrays on shared memory are alive.
    """

    def __init__(self, on_late_child: Callable[[], None]) -> None:
        self._on_late_child = on_late_child
        self._arenas: weakref.WeakSet[Arenas] = weakref.WeakSet()
        self._forks: dict[int, _Fork] = {}  # by the thread that forks
        group = watch(
            {
                Phase.BEFORE_FORK_ARRAYS: ForkCopies._before,
                Phase.AFTER_FORK_ARRAYS: ForkCopies._in_parent,
                Phase.CHILD_ARRAYS: ForkCopies._in_child,
            }
        )
        group.add(self)
        self._group = group

    def add(self, arenas: Arenas) -> None:
        """See to what is leased of these, as long as anything is."""
        self._arenas.add(arenas)

    def _before(self) -> None:
        pages = []
        for arenas in list(self._arenas):
            found = None if arenas.inherited else arenas.leased_pages()
            if found:
                pages.append((arenas, found))
        if pages:
            self._forks[threading.get_ident()] = _Fork(pages, *os.pipe())

    def _in_child(self) -> None:
        fork = self._forks.pop(threading.get_ident(), None)
        others, self._forks = self._forks, {}
        for other in others.values():
            os.close(other.reading)
            os.close(other.writing)
        if fork is None:
            return
        os.close(fork.reading)
        try:
            for arenas, before in fork.pages:
                # What was leased since counts too, if one can look.
                now = arenas.leased_pages()
                make_private(before if now is None else now)
            with contextlib.suppress(BrokenPipeError):  # the parent waits no more
                os.write(fork.writing, b".")
        finally:
            os.close(fork.writing)

    def _in_parent(self) -> None:
        fork = self._forks.pop(threading.get_ident(), None)
        if fork is None:
            return
        os.close(fork.writing)
        try:
            byte_size = sum(size for _, pages in fork.pages for _, size in pages)
            poll = select.poll()
            poll.register(fork.reading, select.POLLIN)
            if not poll.poll(1000 * (_PATIENCE_S + byte_size / _BYTES_PER_S)):
                self._on_late_child()
        finally:
            with contextlib.suppress(OSError):
                os.close(fork.reading)
