"""When to ping a server that is silent: the settings, which every channel takes from here.

Imports errors and the checks of `values`, and nothing else of the package.
"""

from __future__ import annotations

import contextlib
import math
import numbers
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidOption
from .values import instead

__all__ = ["Keepalive"]


@dataclass(frozen=True, slots=True)
class Keepalive:
    """Ping a server that is silent during a call, so that a connection that died is noticed.

    Parameters
    ----------
    time : float, seconds
        Send a ping after this long without traffic.
    timeout : float, seconds, default 20
        Take the connection for dead when the answer takes longer than this.

    Raises
    ------
    InvalidOption
        If a time is not a positive number.

    Notes
    -----
    There are no pings between calls. What else grpcio knows of them goes into ``channel_options``.

    A Triton server closes the connection of a client that pings it, while idle, more often than its
    ``--grpc-http2-min-recv-ping-interval-without-data`` allows: every 300 s unless set otherwise.
    """

    time: float
    timeout: float = 20.0

    def __post_init__(self) -> None:
        for name in ("time", "timeout"):
            given: Any = getattr(self, name)
            seconds = math.nan
            if not isinstance(given, bool) and isinstance(given, numbers.Real):
                with contextlib.suppress(OverflowError):
                    seconds = float(given)
            if not 0.001 <= seconds <= 2_147_483:
                raise InvalidOption(
                    f"keepalive: {name} must be a number of seconds, from 0.001 to 2147483, "
                    f"got {instead(given)}"
                )
            if not isinstance(given, int | float):
                object.__setattr__(self, name, seconds)
