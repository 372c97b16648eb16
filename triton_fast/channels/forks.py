"""Forked children: what a client had open in the parent is replaced there, and left alone."""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol

__all__ = ["inherit", "renew_after_fork"]


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


_renewed: weakref.WeakSet[Renewed] = weakref.WeakSet()
_inherited: list[Any] = []


def _after_fork_in_child() -> None:
    for thing in list(_renewed):
        thing.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
