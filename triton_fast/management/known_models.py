"""Which models a server has, for an error about one that it has not. Owns how they are listed."""

from __future__ import annotations

from typing import Any

from ..errors import printable

__all__ = ["models_in_place_of"]

_MOST_NAMED = 5
_MOST_SHOWN = 60


def models_in_place_of(name: str, index: Any) -> str:
    """Return what a server has in place of a model that it has not, in a few words.

    Parameters
    ----------
    name : str
        Of the model that was asked for; its version may be what is unknown.
    index : message
        The server's RepositoryIndexResponse.
    """
    versions: dict[str, list[str]] = {}
    for model in index.models:
        versions.setdefault(model.name, []).append(model.version)
    if name in versions:
        known = sorted(version for version in versions[name] if version)
        return f"it has version {', '.join(known[:_MOST_NAMED])}" if known else "it is not loaded"
    if not versions:
        return "the server has no models"
    import difflib  # noqa: PLC0415 - for this alone

    named = difflib.get_close_matches(name, versions, _MOST_NAMED) or sorted(versions)[:_MOST_NAMED]
    more = len(versions) - len(named)
    shown = ", ".join(repr(printable(one, _MOST_SHOWN)) for one in named)
    return f"the server has {shown}" + (f" and {more} more" if more else "")
