"""Headers (gRPC metadata) as users give them, checked once, before a channel sees them.

Errors show no value, and of what may be a value in the wrong place its type alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from ..errors import InvalidOption

__all__ = ["HeaderSource", "checked_headers"]

HeaderSource: TypeAlias = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes]]
"""Headers of a call, by name or as pairs; bytes under names that end in ``-bin``."""

# gRPC over HTTP/2: names are lower case, values are printable ASCII unless the name ends in -bin.
_NAME = re.compile(r":?[0-9a-z_.-]+\Z")
_ALLOWED = re.compile(r"[0-9A-Za-z_.-]")
_VALUE = re.compile(r"[\x20-\x7e]*\Z")

_BY_CHANNEL = "the channel sets it itself"
_ONE_CONNECTION = "it is of one connection of HTTP/1, and HTTP/2 knows no such"
_RESERVED = {
    "connection": _ONE_CONNECTION,
    "content-length": "the length of a message is in the message",
    "content-type": _BY_CHANNEL,
    "host": "for the name that a proxy routes by there is the client's authority=",
    "keep-alive": f"{_ONE_CONNECTION}; for pings there is the argument keepalive=",
    "proxy-connection": _ONE_CONNECTION,
    "te": _BY_CHANNEL,
    "transfer-encoding": _ONE_CONNECTION,
    "upgrade": _ONE_CONNECTION,
    "user-agent": _BY_CHANNEL,
}


def checked_headers(
    headers: HeaderSource | None, what: str = "headers"
) -> tuple[tuple[str, str | bytes], ...]:
    """Return headers in the form in which channels take them.

    Parameters
    ----------
    headers : mapping or iterable of pairs, optional
        Names in any case; values are str, or bytes for names that end in ``-bin``. A name may come
        more than once in an iterable of pairs.
    what : str
        Where they are from, for errors.

    Raises
    ------
    InvalidOption
        If a name or value cannot be sent, or is gRPC's or HTTP/2's own.

    Source
    ------
    gRPC over HTTP/2 (PROTOCOL-HTTP2.md), Custom-Metadata and Call-Definition; RFC 9113, 8.2.2.
    """
    if headers is None:
        return ()
    pairs: Any = headers.items() if isinstance(headers, Mapping) else headers
    try:
        listed = list(pairs)
    except TypeError:
        raise _no_headers(headers, what) from None
    if isinstance(pairs, str | bytes) or not all(
        isinstance(pair, tuple | list) and len(pair) == 2 for pair in listed
    ):
        raise _no_headers(headers, what)
    return tuple(_header(number, *pair) for number, pair in enumerate(listed, 1))


def _no_headers(headers: Any, what: str) -> InvalidOption:
    # Of which any part may be a token.
    return InvalidOption(
        f"{what} must be a mapping or pairs of name and value, got {type(headers).__name__}"
    )


def _header(number: int, name: Any, value: Any) -> tuple[str, str | bytes]:
    if not isinstance(name, str):
        raise InvalidOption(f"the name of header {number} must be a str, got {type(name).__name__}")
    lower = name.lower() if name.isascii() else name
    if not _NAME.match(lower):
        # The value may have come in the name's place.
        wrong = _ALLOWED.sub("", name)[:1]
        raise InvalidOption(
            f"the name of header {number} must have letters, digits, '-', '_' and '.', "
            + (f"and it has {wrong!r} in it" if wrong else "and it is empty")
        )
    if why := _reserved(lower):
        raise InvalidOption(f"header {name!r} cannot be set: {why}")
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


def _reserved(name: str) -> str | None:
    """Return why a header is not a caller's to set; None if it is."""
    if name == ":authority":
        return _RESERVED["host"]
    if name.startswith(":"):
        return "names that begin with ':' are HTTP/2's own"
    if name.startswith("grpc-"):
        return "names that begin with 'grpc-' are gRPC's own"
    return _RESERVED.get(name)
