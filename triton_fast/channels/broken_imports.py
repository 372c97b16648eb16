"""Imports that a fork has cut off: another thread was at them, and is not there in the child.

Its lock of such a module is held for ever there, so that whoever imports that would never return.
The child forgets the lock and what there is of the module, and imports it anew when it wants it.
Owns nothing.
"""

from __future__ import annotations

import importlib
import sys
import threading
from importlib.machinery import ExtensionFileLoader
from typing import Any

from .lifecycle import Phase, watch

__all__ = ["forget_after_forks"]


class _Imports:
    def forget(self) -> None:
        """Forget, in a forked child, imports of threads that it has not got."""
        for name in _cut_off():
            _locks().pop(name, None)
            for known, module in list(sys.modules.items()):
                # What lies in a package may have had the half of it that there was.
                inside = known.startswith(f"{name}.")
                if known == name or (inside and not _is_extension(module)):
                    del sys.modules[known]


def forget_after_forks() -> None:
    """See to it, from now on; for whoever makes what calls are made on."""
    _group.add(_imports)


def _locks() -> Any:
    # Not public: where there are none, a child may hang as it would in any program.
    return getattr(getattr(importlib, "_bootstrap", None), "_module_locks", {})


def _cut_off() -> list[str]:
    """Return the modules that threads of the parent were importing."""
    mine = threading.get_ident()
    found = []
    for name, reference in list(_locks().items()):
        owner = getattr(reference(), "owner", None)
        if owner is not None and owner != mine:
            found.append(name)
    return found


def _is_extension(module: Any) -> bool:
    return isinstance(getattr(module, "__loader__", None), ExtensionFileLoader)


_imports = _Imports()
_group = watch({Phase.CHILD_IMPORTS: _Imports.forget})
