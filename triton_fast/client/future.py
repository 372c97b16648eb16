"""The Future that `Client.submit` gives: a standard one whose cancel() reaches the server."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

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
    go when the channel has really stopped reading it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._call: Call | None = None
        self._call_lock = threading.Lock()

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
