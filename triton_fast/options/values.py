"""What an argument may be: checks that all calls have in common, and how errors show a value.

Imports errors and nothing else of the package.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import InvalidOption, InvalidTensor

__all__ = [
    "checked_flag",
    "checked_mapping",
    "checked_text",
    "instead",
    "one_of",
    "plain_parameters",
    "whole_number",
]

# Longer texts are no slip of the pen, but something else than was meant: a key, a prompt, a file.
_MOST_SHOWN = 60
_LARGEST = (1 << 63) - 1


def instead(value: Any) -> str:
    """Return what an error says came in place of what was expected.

    Numbers, None and short texts as they are, and of everything else the type: its repr may be of
    any length, raise, or tell a secret. Of what may be a secret itself, say the type in any case.
    """
    if value is None or isinstance(value, bool):
        return repr(value)
    if type(value) is str:
        return repr(value) if len(value) <= _MOST_SHOWN else f"str of {len(value)} characters"
    kind = type(value).__name__
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, int):
        bits = int.bit_length(value)
        return int.__repr__(value) if bits <= 64 else f"{kind} of {bits} bits"
    return kind


def whole_number(
    value: Any,
    what: str,
    least: int,
    most: int = _LARGEST,
    kind: type[InvalidOption | InvalidTensor] = InvalidOption,
) -> int:
    """Return an argument that is a whole number, numpy's too, as an int.

    Parameters
    ----------
    value : int
        What was given.
    what : str
        For the error: the argument's name, "must be", and what it counts.
    least, most : int
        What it may be.
    kind : type
        Of the error.

    Raises
    ------
    InvalidOption, or ``kind``
        If it is no whole number (a bool is not one), or too small or large.
    """
    number = None
    if type(value) is int:
        number = value
    elif not isinstance(value, bool):
        try:
            number = operator.index(value)
        except Exception:  # noqa: BLE001 - an array's own, say
            number = None
    if number is None or not least <= number <= most:
        limit = f"{least} or more" if most >= _LARGEST else f"from {least} to {most}"
        raise kind(f"{what}, {limit}, got {instead(value)}")
    return number


def checked_text(value: Any, what: str, *, empty: bool = False) -> str:
    """Return an argument that is a str which can be sent; what is derived of str, as a plain one.

    Raises
    ------
    InvalidOption
        If it is not a str, cannot be written as UTF-8, or is empty where it must not be.
    """
    if not isinstance(value, str):
        raise InvalidOption(f"{what} must be a str, got {instead(value)}")
    if not value and not empty:
        raise InvalidOption(f"{what} must be a str that is not empty, got ''")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidOption(
                f"{what} must be a str that can be written as UTF-8, got one with a lone surrogate"
            ) from None
    return str.__str__(value)


def checked_flag(value: Any, what: str) -> bool:
    """Return an argument that is True or False, numpy's too.

    Raises
    ------
    InvalidOption
        If it is neither.
    """
    if isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and type(value).__name__ in {"bool", "bool_"}:
        return bool(value)
    raise InvalidOption(f"{what} must be True or False, got {instead(value)}")


def one_of(value: Any, what: str, choices: Collection[str | None]) -> Any:
    """Return an argument that is one of some texts, or None if that is among them.

    Raises
    ------
    InvalidOption
        If it is not among them.
    """
    if (value is None or isinstance(value, str)) and value in choices:
        return value
    *first, last = map(repr, choices)
    raise InvalidOption(f"{what} must be {', '.join(first)} or {last}, got {instead(value)}")


def checked_mapping(value: Any, what: str, of: str) -> Mapping[Any, Any] | None:
    """Return an argument that is a mapping, or None.

    Raises
    ------
    InvalidOption
        If it is something else; ``of`` says what it maps.
    """
    if value is None or isinstance(value, Mapping):
        return value
    raise InvalidOption(f"{what} must be a mapping of {of}, got {instead(value)}")


def plain_parameters(
    parameters: Mapping[str, Any] | None, what: str = "parameters"
) -> dict[str, Any] | None:
    """Return parameters of a request or a tensor with numpy's scalars as Python's own.

    Raises
    ------
    InvalidOption
        If they are not a mapping, a name is not a str, or a value not of a kind that can be sent.
    """
    if checked_mapping(parameters, what, "name to value") is None:
        return None
    assert parameters is not None
    plain = {}
    for name, value in parameters.items():
        checked_text(name, "a parameter's name", empty=True)
        if isinstance(value, str):
            value = checked_text(value, f"parameter {name!r}", empty=True)  # noqa: PLW2901
        elif not isinstance(value, bool | int | float):
            value = _scalar(value, name)  # noqa: PLW2901
        plain[name] = value
    return plain


def _scalar(value: Any, name: str) -> bool | int | float | str:
    scalar = None
    try:
        if getattr(value, "ndim", None) == 0:
            scalar = value.item()
    except Exception:  # noqa: BLE001 - a tensor's that is on no CPU, say
        scalar = None
    if isinstance(scalar, bool | int | float | str):
        return scalar
    raise InvalidOption(
        f"parameter {name!r} is a {type(value).__name__}; a parameter is a bool, an int, a float "
        "or a str"
    )
