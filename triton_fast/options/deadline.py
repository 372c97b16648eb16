"""Timeouts as users give them, and the absolute deadlines that channels keep."""

from __future__ import annotations

import math
import numbers
import time
from typing import Any

from ..errors import InvalidOption
from .values import instead

__all__ = ["deadline_after", "microseconds", "own_seconds", "seconds"]

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
    number = _number(value)
    if number is None:
        raise InvalidOption(f"{what} must be a number of seconds, got {instead(value)}")
    if math.isnan(number) or number < 0:
        raise InvalidOption(f"{what} must be zero or more seconds, got {instead(value)}")
    return None if number > _LONGEST else number


def own_seconds(value: float | None, what: str) -> float | None:
    """Check a duration that stands over one that was set before, a client's say; see `seconds`.

    Returns
    -------
    float or None
        None if the other one holds, and infinity for no limit.
    """
    if value is None:
        return None
    checked = seconds(value, what)
    return math.inf if checked is None else checked


def deadline_after(timeout: float | None) -> int | None:
    """Return the deadline that lies a timeout from now.

    Parameters
    ----------
    timeout : float or None
        Seconds, as `seconds` or `own_seconds` returns them; None and infinity for no limit.

    Returns
    -------
    int or None
        Nanoseconds of ``time.monotonic_ns()``; None for never.
    """
    if timeout is None or timeout == math.inf:
        return None
    return time.monotonic_ns() + round(timeout * 1e9)


def microseconds(value: float | None, what: str) -> int | None:
    """Return a duration as Triton's ``timeout`` parameter wants it; see `seconds`."""
    checked = seconds(value, what)
    return None if checked is None else round(checked * 1e6)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, numbers.Number):
        return None  # text that looks like one is none
    try:
        return float(value)  # type: ignore[arg-type]  # complex ones raise
    except (TypeError, ValueError, OverflowError):
        return None
