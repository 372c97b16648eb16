"""Classes: what the server makes of an output of which the best so many are asked for.

Owns the form in which they come, and reads it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import WireError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Class", "parse_classes"]

# The value is what C's %f or %d makes of a number. The label may hold anything, colons too.
_ELEMENT = re.compile(
    rb"([-+]?(?:nan|inf|[0-9]{1,400}(?:\.[0-9]{0,64})?(?:[eE][-+]?[0-9]{1,4})?)):([0-9]{1,19})"
    rb"(?::(.*))?",
    re.DOTALL | re.IGNORECASE,
)
# How much of an element an error shows.
_MOST_SHOWN = 80


class Class(NamedTuple):
    """One of the best classes of a classification.

    Parameters
    ----------
    value : float
        The output's element, in six decimals as the server writes it, whatever the datatype.
    index : int
        Which element it is.
    label : str
        The model's name for it; empty if the model has none.

    Source
    ------
    Triton's "classification extension".
    """

    value: float
    index: int  # type: ignore[assignment]  # in place of tuple.index(), which nobody misses
    label: str


def parse_classes(name: str, array: np.ndarray[Any, Any]) -> list[Any]:
    """Return an output's classes.

    Parameters
    ----------
    name : str
        The output's, for errors.
    array : numpy.ndarray of object
        ``bytes`` objects, ``value:index`` or ``value:index:label``. Of one dimension or more.

    Returns
    -------
    list
        `Class` objects, nested as the array's dimensions are.

    Raises
    ------
    WireError
        If an element is something else; it names output and element.
    """
    return _nested(name, array.tolist(), ())


def _nested(name: str, elements: list[Any], place: tuple[int, ...]) -> list[Any]:
    return [
        _nested(name, element, (*place, number))
        if isinstance(element, list)
        else _class(name, element, (*place, number))
        for number, element in enumerate(elements)
    ]


def _class(name: str, element: bytes, place: tuple[int, ...]) -> Class:
    match = _ELEMENT.fullmatch(element)
    try:
        if match is not None:
            return Class(float(match[1]), int(match[2]), (match[3] or b"").decode())
    except UnicodeDecodeError:
        pass
    shown = repr(element[:_MOST_SHOWN]) + ("…" if len(element) > _MOST_SHOWN else "")
    raise WireError(
        f"output {name!r}, element {list(place)}: {shown} is no class, 'value:index' or "
        "'value:index:label' in UTF-8"
    )
