"""Timeouts as users give them, and the absolute deadlines that channels keep."""

from __future__ import annotations

import math
import time

from ..errors import InvalidOption

__all__ = ["deadline_after", "microseconds", "seconds"]

# Past this a deadline is none: int64 nanoseconds of the monotonic clock run for 292 years.
_LONGEST = 3.0e9


def seconds(value: float | None, what: str) -> float | None:
    """Check a duration.

    Parameters
    ----------
    value : float or None
        Seconds; None stands for no limit, as does infinity.
    what : str
        The argument's name, for the error.

    Returns
    -------
    float or None
        The same; None for no limit.

    Raises
    ------
    InvalidOption
        If it is negative, not a number, or no number at all.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        raise InvalidOption(f"{what} must be a number of seconds, got {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise InvalidOption(f"{what} must be a number of seconds, got {value!r}") from error
    if math.isnan(number) or number < 0:
        raise InvalidOption(f"{what} must be zero or more seconds, got {value!r}")
    return None if number > _LONGEST else number


def deadline_after(timeout: float | None) -> int | None:
    """Return the deadline that lies a timeout from now.

    Parameters
    ----------
    timeout : float or None
        Seconds, as `seconds` returns them.

    Returns
    -------
    int or None
        Nanoseconds of ``time.monotonic_ns()``; None for never.
    """
    return None if timeout is None else time.monotonic_ns() + round(timeout * 1e9)


def microseconds(value: float | None, what: str) -> int | None:
    """Return a duration as Triton's ``timeout`` parameter wants it; see `seconds`."""
    checked = seconds(value, what)
    return None if checked is None else round(checked * 1e6)
