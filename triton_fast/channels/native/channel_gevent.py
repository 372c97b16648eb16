"""The native channel where gevent has patched sockets: a greenlet waits, and the others go on.

What blocks in C++ does so on a thread; everything else stays on that of the greenlets.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import DeadlineExceeded
from ..base import Call, CallOptions, Incoming, Outgoing
from ..greenlets import in_thread, in_turns, semaphore, spawn
from .channel import MOST_CONNECTIONS, NativeChannel

if TYPE_CHECKING:
    from ..._core import _http2
    from ...options.keepalive import Keepalive
    from .stream import DrivenStream

__all__ = ["GeventNativeChannel"]


class GeventNativeChannel(NativeChannel):
    """A `NativeChannel` for greenlets.

    Parameters
    ----------
    target, keepalive, busy_poll_ns
        As in `NativeChannel`.

    Notes
    -----
    Each call that waits has a thread. There are no more of them than connections: further calls
    wait for their turn as greenlets.
    """

    def __init__(
        self,
        target: str,
        *,
        keepalive: Keepalive | None = None,
        authority: str | None = None,
        busy_poll_ns: int = 0,
    ) -> None:
        super().__init__(
            target, keepalive=keepalive, authority=authority, busy_poll_ns=busy_poll_ns
        )
        self._turns = semaphore(MOST_CONNECTIONS)

    def _make(self, native: _http2.Call, incoming: Incoming, options: CallOptions) -> None:
        try:
            self._wait_for_turn(options)
            try:
                in_thread(native.run, native.cancel)
            finally:
                self._turns.release()
        except BaseException:
            if not self.inherited:
                native.end()  # the caller's memory goes when this gets to it
            raise
        super()._make(native, incoming, options)  # which finds it over

    def _wait_for_turn(self, options: CallOptions) -> None:
        left = None
        if options.deadline_ns is not None:
            left = max((options.deadline_ns - time.monotonic_ns()) * 1e-9, 0.0)
        if not self._turns.acquire(timeout=left):
            raise DeadlineExceeded(
                "the deadline passed while waiting for a connection",
                call=options.call,
                target=self.target,
            )

    def _work_beside(
        self,
        native: _http2.Call,
        work: Callable[[], None],
        deadline_ns: int | None,  # noqa: ARG002 - the call keeps it itself
    ) -> Call:
        spawn(work)
        return native

    def _driven(self, call: _http2.StreamCall) -> DrivenStream:
        return _GeventStream(call)


class _GeventStream:
    """A stream's call, driven by threads for greenlets; see `_http2.StreamCall`."""

    def __init__(self, call: _http2.StreamCall) -> None:
        self._call = call
        self.half_close = call.half_close
        self.over = call.over
        self.outcome = call.outcome
        self.cancel = call.cancel

    def send(self, outgoing: Outgoing, deadline_ns: int | None, last: bool, /) -> bool:
        call = self._call
        return in_thread(partial(call.send, outgoing, deadline_ns, last), call.cancel)

    def receive(self, into: list[Any], deadline_ns: int | None, /) -> bool:
        return in_turns(partial(self._call.receive, into), deadline_ns)
