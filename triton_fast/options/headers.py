"""Headers (gRPC metadata) as users give them, checked once, before a channel sees them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from ..errors import InvalidOption

__all__ = ["HeaderSource", "checked_headers"]

HeaderSource: TypeAlias = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]
"""Headers of a call, by name or as pairs; bytes under names that end in ``-bin``."""

# gRPC over HTTP/2: names are lower case, values are printable ASCII unless the name ends in -bin.
_NAME = re.compile(r"[0-9a-z_.-]+\Z")
_VALUE = re.compile(r"[\x20-\x7e]*\Z")


def checked_headers(headers: HeaderSource | None) -> tuple[tuple[str, str | bytes], ...]:
    """Return headers in the form in which channels take them.

    Parameters
    ----------
    headers : mapping or iterable of pairs, optional
        Names in any case; values are str, or bytes for names that end in ``-bin``. A name may come
        more than once in an iterable of pairs.

    Raises
    ------
    InvalidOption
        If a name or value cannot be sent, or is gRPC's own.

    Source
    ------
    gRPC over HTTP/2 (PROTOCOL-HTTP2.md), Custom-Metadata.
    """
    if headers is None:
        return ()
    pairs: Any = headers.items() if isinstance(headers, Mapping) else headers
    checked = []
    try:
        for name, value in pairs:
            checked.append(_header(name, value))
    except (TypeError, ValueError) as error:
        if isinstance(error, InvalidOption):
            raise
        raise InvalidOption(
            f"headers must be a mapping or pairs of name and value, got {headers!r}"
        ) from error
    return tuple(checked)


def _header(name: Any, value: Any) -> tuple[str, str | bytes]:
    if not isinstance(name, str) or not _NAME.match(lower := name.lower()):
        raise InvalidOption(f"header name {name!r} may only have letters, digits, '-', '_' and '.'")
    if lower.startswith("grpc-"):
        raise InvalidOption(f"header {name!r}: names that begin with 'grpc-' are gRPC's own")
    if lower.endswith("-bin"):
        if not isinstance(value, bytes):
            raise InvalidOption(f"header {name!r} ends in -bin, so its value must be bytes")
    elif not isinstance(value, str):
        raise InvalidOption(
            f"header {name!r} has a value of type {type(value).__name__}; it must be a str, or "
            "bytes under a name that ends in -bin"
        )
    elif not _VALUE.match(value):
        raise InvalidOption(f"header {name!r} has a value that is not printable ASCII")
    return lower, value
