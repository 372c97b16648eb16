"""Clients that are dropped, not closed: what they have at a server is given back all the same."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable

from ..channels.lifecycle import Phase, watch

__all__ = ["give_back_when_dropped"]

# Longer than closing takes.
_LIMIT_S = 5.0


def give_back_when_dropped(
    endpoint: object, url: str, is_used: Callable[[], bool], give_back: Callable[[], None]
) -> Callable[[], object]:
    """Have an endpoint's shared memory given back when the endpoint is not used any more.

    Parameters
    ----------
    endpoint : Endpoint or AsyncEndpoint
        Which one; it must not be reachable from the two functions.
    url : str
        For the warning.
    is_used : callable
        Whether the server may have been told of regions.
    give_back : callable
        Tells it to let go of them, and waits no longer than closing may.

    Returns
    -------
    callable
        Has nothing happen: the endpoint was closed, or is a forked child's copy.

    Notes
    -----
    Nothing is done at the interpreter's end, when what is alive has its turn; see
    `triton_fast.channels.lifecycle`.
    """
    watch = weakref.finalize(endpoint, _dropped, url, is_used, give_back, os.getpid())
    watch.atexit = False
    return watch.detach


def _await(thread: threading.Thread) -> None:
    # It is done by then, or the server does not answer.
    thread.join(_LIMIT_S)


# At the interpreter's end those that have just begun are waited for.
_giving_back = watch({Phase.EXIT_SHARED_MEMORY: _await})


def _dropped(
    url: str, is_used: Callable[[], bool], give_back: Callable[[], None], pid: int
) -> None:
    if pid != os.getpid() or not is_used():
        return
    from ..channels.greenlets import are_patched, spawn  # noqa: PLC0415 - rare

    # Any thread may be here, in the middle of whatever it does, and giving back takes calls.
    if are_patched():
        spawn(give_back)  # who starts a thread waits until it runs, which gevent's hub cannot
    else:
        thread = threading.Thread(target=give_back, name="triton_fast", daemon=True)
        thread.start()
        _giving_back.add(thread)
    warnings.warn(
        f"the client of {url} was dropped without close(), and the server is told to let go of its "
        "shared memory only now; close it, or use it in a with block",
        ResourceWarning,
        stacklevel=2,
    )
