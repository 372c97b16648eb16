"""What streams on both grpcio channels go by, those for threads and those for coroutines.

Owns what they ask of their channel, how much they read ahead, and the errors that they end with
when it is not grpcio that ends them.
"""

from __future__ import annotations

from typing import Any, Protocol

from ...errors import Cancelled, ClosedError, DeadlineExceeded, TritonFastError
from ..base import CallOptions
from .fork import Guarded

__all__ = ["MOST_BYTES", "MOST_MESSAGES", "StreamOwner", "deadline_error", "withdrawn"]

MOST_MESSAGES = 64
"""How many messages are read ahead of those who receive."""

MOST_BYTES = 4 << 20
"""How many bytes are."""


class StreamOwner(Guarded, Protocol):
    """What a stream asks of its channel."""

    target: str

    @property
    def ended(self) -> str | None:
        """Why no call can be made any more; None if one can."""

    def failure(
        self, error: Any, options: CallOptions, *, cancelled: bool = False
    ) -> TritonFastError:
        """Return our error for one of grpcio's."""


def withdrawn(channel: StreamOwner, options: CallOptions) -> TritonFastError:
    """Return the error of a stream that we have ended, or its channel has."""
    if channel.ended is not None:
        return ClosedError(channel.ended)
    return Cancelled("the call was cancelled", call=options.call, target=channel.target)


def deadline_error(channel: StreamOwner, options: CallOptions, what: str) -> DeadlineExceeded:
    """Return the error of a deadline that has passed before something."""
    return DeadlineExceeded(
        f"the deadline passed before {what}", call=options.call, target=channel.target
    )
