"""The Future that `Client.submit` gives: a standard one whose cancel() reaches the server."""

from __future__ import annotations

import threading
import weakref
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from ..channels.lifecycle import Phase, watch
from ..errors import ClosedError

if TYPE_CHECKING:
    from ..channels.base import Call

__all__ = ["CallFuture"]

T = TypeVar("T")


class CallFuture(Future[T]):
    """A `concurrent.futures.Future` for a call on a channel.

    Notes
    -----
    ``cancel()`` works until the result is there, not only before the call starts: the server is
    told, and waiters get ``concurrent.futures.CancelledError`` at once. The inputs' memory is let
    go when the channel has really stopped reading it. In a forked child it ends with `ClosedError`:
    the call is the parent's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._call: Call | None = None
        self._call_lock = threading.Lock()
        _futures.add(self)

    def attach(self, call: Call) -> None:
        """Say which call this is the future of."""
        with self._call_lock:
            self._call = call
            cancelled = self.cancelled()
        if cancelled:  # in between the call's start and now
            call.cancel()

    def cancel(self) -> bool:
        """Cancel the call; False if it is over already."""
        if not super().cancel():
            return False
        with self._call_lock:
            call = self._call
        if call is not None:
            call.cancel()
        return True

    def settle(self, result: T | None, error: BaseException | None) -> None:
        """End the future with a result or an error, unless it was cancelled meanwhile."""
        if not self.set_running_or_notify_cancel():
            return
        if error is not None:
            self.set_exception(error)
        else:
            self.set_result(result)  # type: ignore[arg-type]  # None only if T is

    def _abandon(self) -> None:
        """End the future in a forked child, where nobody would."""
        # A thread that is not here may have had the old ones.
        self._condition = threading.Condition()
        self._call_lock = threading.Lock()
        if self.done():
            return
        self._call = None
        error = ClosedError("the call is the parent process's; make one in this process")
        try:
            self.settle(None, error)
        except RuntimeError:  # the parent was just settling it
            self.set_exception(error)


_futures: weakref.WeakSet[CallFuture[Any]] = watch({Phase.CHILD_ENDPOINTS: CallFuture._abandon})
