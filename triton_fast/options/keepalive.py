"""When to ping a server that is silent: the settings, which every channel takes from here.

Imports errors and nothing else of the package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InvalidOption

__all__ = ["Keepalive"]


@dataclass(frozen=True, slots=True)
class Keepalive:
    """Ping an idle connection, so that one that died quietly is noticed.

    Parameters
    ----------
    time : float, seconds
        Send a ping after this long without traffic.
    timeout : float, seconds, default 20
        Take the connection for dead when the answer takes longer than this.
    permit_without_calls : bool, default False
        Ping also while no call is running.
    max_pings_without_data : int, optional
        How many pings may be sent in a row without a message between them; 0 for any number. Left
        out, the transport's own limit (2 in grpcio).

    Raises
    ------
    InvalidOption
        If a time is not a positive number, or a count is negative.

    Notes
    -----
    A Triton server closes the connection of a client that pings it, while idle, more often than its
    ``--grpc-http2-min-recv-ping-interval-without-data`` allows: every 300 s unless set otherwise.
    """

    time: float
    timeout: float = 20.0
    permit_without_calls: bool = False
    max_pings_without_data: int | None = None

    def __post_init__(self) -> None:
        for name in ("time", "timeout"):
            seconds = getattr(self, name)
            if (
                isinstance(seconds, bool)
                or not isinstance(seconds, int | float)
                or not math.isfinite(seconds)
                or not 0.001 <= seconds <= 2_147_483
            ):
                raise InvalidOption(
                    f"keepalive: {name} must be a number of seconds, from 0.001 to 2147483, "
                    f"got {seconds!r}"
                )
        pings = self.max_pings_without_data
        if pings is not None and (
            isinstance(pings, bool) or not isinstance(pings, int) or pings < 0
        ):
            raise InvalidOption(
                f"keepalive: max_pings_without_data must be a count, 0 for any number, "
                f"got {pings!r}"
            )
