"""When what the server has not seen is sent again, and how often. The one rule for all of it.

Owns the count of one call's or one stream's tries. Channels make a call once, and say with the
error whether the server can have begun it (`ServerError.safe_to_retry`): it refused the stream, or
said good-bye before it, or the connection was dead. Whoever makes the call asks here.
"""

from __future__ import annotations

import time

from ..errors import DeadlineExceeded, ServerError, add_remark

__all__ = ["Unseen"]

# The second try is made at once: mostly a connection has idled, or was closed in good order. Then a
# server that refuses all it is sent is asked less and less often.
_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.1
# Of a call without a deadline, in two and a half seconds.
_MOST_TRIES = 32


class Unseen:
    """How often a call was made that the server has not seen; made when one fails so.

    Parameters
    ----------
    deadline_ns : int or None
        Until when it is made again, in nanoseconds of ``time.monotonic_ns()``. None for 32 times.
    """

    __slots__ = ("_deadline_ns", "_last", "_tries")

    def __init__(self, deadline_ns: int | None) -> None:
        self._deadline_ns = deadline_ns
        self._tries = 0
        self._last = ""  # what the last one said; the error itself would be kept by its own frames

    def pause(self, error: BaseException) -> float | None:
        """Say after how many seconds to make a failed call again; None not to, and raise the error.

        The error says then how often the server has not taken the call, if it was made again.

        Parameters
        ----------
        error : BaseException
            What the channel has raised.
        """
        if not isinstance(error, ServerError):
            return None
        if not error.safe_to_retry:
            if isinstance(error, DeadlineExceeded) and self._tries:
                add_remark(error, f"{_times(self._tries)} before, it was not taken: {self._last}")
            return None
        self._last = error.message
        self._tries += 1
        pause = 0.0 if self._tries == 1 else _FIRST_PAUSE_S * 2.0 ** (self._tries - 2)
        pause = min(pause, _LONGEST_PAUSE_S)
        if self._deadline_ns is None:
            if self._tries < _MOST_TRIES:
                return pause
        elif time.monotonic_ns() + pause * 1e9 < self._deadline_ns:
            return pause
        if self._tries > 1:
            add_remark(error, f"tried {_times(self._tries)}")
        return None


def _times(tries: int) -> str:
    return "once" if tries == 1 else f"{tries} times"
