"""What is imported on its first use, and forks: no child is left with half an import.

A module that another thread is importing at a fork can never be imported in the child, which waits
for a lock whose holder is not there. So before a fork beside other threads all that a client may
still import is imported, which waits for whoever is at it. Owns what is known of that.
"""

from __future__ import annotations

import importlib
import sys
import weakref
from collections.abc import Iterator

from .lifecycle import Phase, watch

__all__ = ["announce", "finish_before_forks"]

_PACKAGE = __name__.partition(".")[0]
_ROOMS = (
    "_core",
    "channels",
    "channels.grpcio",
    "channels.native",
    "client",
    "inference",
    "management",
    "options",
    "protocol",
    "protocol.grpc",
    "shared_memory",
    "streaming",
    "text",
)
# What only some clients use, by the end of its name, and what is loaded where they do.
_FACES = (("_async", "asyncio"), ("event_loop", "asyncio"), ("_gevent", "gevent"))
# Of other packages, in functions of ours.
_OTHERS = ("difflib", "importlib.resources", "urllib.parse")


class _Imports:
    def __init__(self) -> None:
        self.announced: set[str] = set()
        self._done: set[str] = set()

    def finish(self) -> None:
        """Import what is left, if there is another thread that may be importing it."""
        if len(sys._current_frames()) == 1:
            return
        for name in [*_own(), *_OTHERS, *self.announced]:
            if name not in self._done:
                try:
                    importlib.import_module(name)
                except ImportError:  # whoever needs it is told, with what to do about it
                    continue
                self._done.add(name)


def announce(name: str) -> None:
    """Say that a package of others is about to be imported."""
    _imports.announced.add(name)


def _own() -> Iterator[str]:
    """Return the names of the package's modules that a client may yet import."""
    import pkgutil  # noqa: PLC0415 - at forks only

    root = sys.modules[_PACKAGE].__path__
    for room in _ROOMS:
        folders = [f"{path}/{room.replace('.', '/')}" for path in root]
        for module in pkgutil.iter_modules(folders, f"{_PACKAGE}.{room}."):
            if all(
                needed in sys.modules for ending, needed in _FACES if module.name.endswith(ending)
            ):
                yield module.name


def finish_before_forks() -> None:
    """See to it, from now on; for whoever makes what calls are made on."""
    if len(_watched) == 0:
        # It takes its lock before a fork, and imports take that: what is registered last is first.
        import logging  # noqa: F401, PLC0415

        _watched.append(watch({Phase.BEFORE_FORK_IMPORTS: _Imports.finish}))
        _watched[0].add(_imports)


_imports = _Imports()
_watched: list[weakref.WeakSet[_Imports]] = []
