"""Settings from the environment: which variables there are, and what is wrong with their values.

Turns them into a client's keyword arguments and makes nothing of them. No error shows a header's
value, or what a variable holds that might be a key.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..errors import InvalidOption
from .deadline import seconds
from .headers import checked_headers
from .keepalive import Keepalive
from .target import checked_authority, checked_target
from .tls import TLS
from .values import instead, whole_number

__all__ = ["settings_from_environment"]

# Variables of ours that begin with the same letters: of the build, of the tests, of
# triton_fast.testing.
_NOT_SETTINGS = frozenset(
    f"TRITON_FAST_{name}"
    for name in (
        "FUZZ",
        "FUZZ_COVERAGE",
        "HTTP2",
        "MATRIX",
        "NGHTTP2_SOURCE",
        "PROBE",
        "PYTHON",
        "REQUIRE_SERVER",
        "SANITIZE",
        "SOAK",
        "SOAK_CALLS",
        "SOAK_CANCELLED",
        "SOAK_FORKS",
        "SOAK_KILLS",
        "SOAK_ODD",
        "TESTS",
        "TOKEN_DELAY",
        "TRITONSERVER",
        "WHEEL",
    )
)

# What Kubernetes sets in every container for a service of that name, "triton-fast". Source:
# kubernetes.io, "Service", environment variables.
_KUBERNETES = re.compile(
    r"SERVICE_(?:HOST|PORT(?:_[A-Z0-9_]+)?)"
    r"|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?"
)

_SIZE = re.compile(r"([0-9]{1,18}) ?([KMGT]?)(?:i?B)?", re.ASCII)
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_BOOLS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


def settings_from_environment(
    prefix: str, environ: Mapping[str, str] | None, overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a client's keyword arguments, as environment variables and overrides have them.

    Parameters
    ----------
    prefix : str
        What the variables' names begin with; see `Client.from_env` for the names.
    environ : mapping of str to str, optional
        The environment; ``os.environ`` when left out.
    overrides : mapping of str to value
        Keyword arguments that win over the environment: variables for them are not looked at.

    Returns
    -------
    dict
        ``url``, and of the others those that are set.

    Raises
    ------
    InvalidOption
        If a variable's value makes no sense, a variable is none of ours, or nothing says where the
        server is. It names the variable.
    """
    if not isinstance(prefix, str) or not prefix:
        raise InvalidOption(
            f"prefix must be a str that the variables' names begin with, got {instead(prefix)}"
        )
    given = os.environ if environ is None else environ
    if not isinstance(given, Mapping):
        raise InvalidOption(
            f"environ must be a mapping of str to str, got {type(environ).__name__}"
        )
    values = _values(prefix, given)
    settings: dict[str, Any] = {}
    for name, (keyword, reader) in _READERS.items():
        if name in values and keyword not in overrides:
            with _named(prefix + name):
                settings[keyword] = reader(values[name])
    for keyword, gathered in (("tls", _tls), ("keepalive", _keepalive)):
        if keyword not in overrides and (value := gathered(prefix, values)) is not None:
            settings[keyword] = value
    settings.update(overrides)
    if "url" not in settings:
        raise InvalidOption(f"no server: set {prefix}URL to its address, such as localhost:8001")
    return settings


def _values(prefix: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what is set, by the names behind the prefix. An empty value is none."""
    values = {}
    unknown = []
    for variable, value in environ.items():
        if not isinstance(variable, str) or not isinstance(value, str):
            raise InvalidOption(
                f"environ must be a mapping of str to str, and has {type(variable).__name__} to "
                f"{type(value).__name__}"
            )
        if not variable.startswith(prefix) or variable in _NOT_SETTINGS:
            continue
        name = variable[len(prefix) :]
        if name not in _NAMES:
            if not _KUBERNETES.fullmatch(name):
                unknown.append(variable)
        elif value.strip():
            values[name] = value.strip()
    if unknown:
        raise InvalidOption(
            f"{', '.join(sorted(unknown))}: no such setting; there are "
            f"{', '.join(prefix + name for name in _NAMES)}"
        )
    return values


@contextlib.contextmanager
def _named(variable: str) -> Iterator[None]:
    """Have errors name the variable."""
    try:
        yield
    except InvalidOption as error:
        # None: there is nothing in the other one that is not in this.
        raise InvalidOption(f"{variable}: {error}") from None


def _url(value: str) -> str:
    checked_target(value)
    return value


def _authority(value: str) -> str | None:
    return checked_authority(value)


def _number(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise InvalidOption(f"it must be a number of seconds, got {instead(value)}") from None
    seconds(number, "it")
    return number


def _one_of(*choices: str) -> Callable[[str], str]:
    def reader(value: str) -> str:
        if value.lower() not in choices:
            raise InvalidOption(
                f"it must be one of {', '.join(map(repr, choices))}, got {instead(value)}"
            )
        return value.lower()

    return reader


def _bool(value: str) -> bool:
    try:
        return _BOOLS[value.lower()]
    except KeyError:
        raise InvalidOption(f"it must be 1 or 0, true or false, got {instead(value)}") from None


def _shared_memory(value: str) -> bool | str:
    if value.lower() == "auto":
        return "auto"
    try:
        return _bool(value)
    except InvalidOption:
        raise InvalidOption(f"it must be auto, 1 or 0, got {instead(value)}") from None


def _bytes(value: str) -> int:
    match = _SIZE.fullmatch(value)
    if match is None:
        raise InvalidOption(
            f"it must be a number of bytes, such as 1073741824 or 1G, got {instead(value)}"
        )
    return whole_number(int(match[1]) << _UNITS[match[2]], "it must be a number of bytes", 0)


def _headers(value: str) -> tuple[tuple[str, str | bytes], ...]:
    form = 'it is a JSON object of strings, such as {"authorization": "Bearer …"}'
    try:
        pairs = json.loads(value, object_pairs_hook=_Pairs)
    except (ValueError, RecursionError):
        raise InvalidOption(form) from None
    if not isinstance(pairs, _Pairs) or not all(isinstance(text, str) for _, text in pairs):
        raise InvalidOption(form)
    return checked_headers([(name, _header_value(name, text)) for name, text in pairs])


class _Pairs(list[tuple[str, Any]]):
    """A JSON object; a name may come more than once, as headers may."""


def _header_value(name: str, text: str) -> str | bytes:
    if not name.lower().endswith("-bin"):
        return text
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidOption(f"header {name!r} ends in -bin, so its value is in base64") from None


def _tls(prefix: str, values: Mapping[str, str]) -> TLS | bool | None:
    wanted: bool | None = None
    if "TLS" in values:
        wanted = _BOOLS.get(values["TLS"].lower())
        if wanted is None:  # it may be a key
            raise InvalidOption(f"{prefix}TLS: it must be 1 or 0, true or false")
    given: dict[str, Any] = {}
    for name, keyword in _TLS.items():
        if name in values:
            with _named(prefix + name):
                given[keyword] = _pem(values[name])
    if "TLS_SERVER_NAME" in values:
        given["server_name"] = values["TLS_SERVER_NAME"]
    if wanted is False or not given:
        return wanted
    with _named(f"{prefix}TLS_…"):
        return TLS(**given)


def _pem(value: str) -> str | bytes:
    if "-----BEGIN" in value:
        return value.encode()  # the text itself, as secrets are often handed to containers
    # Whoever opens it later would tell the name, and it may be a key in some other form.
    if not os.path.isfile(value):  # noqa: PTH113 - pathlib raises for what is too long
        raise InvalidOption("it is neither PEM text nor the path of a file")
    return value


def _keepalive(prefix: str, values: Mapping[str, str]) -> Keepalive | None:
    times: dict[str, Any] = {}
    for name, keyword in _KEEPALIVE.items():
        if name in values:
            with _named(prefix + name):
                times[keyword] = _number(values[name])
    if not times:
        return None
    if "time" not in times:
        raise InvalidOption(f"{prefix}KEEPALIVE_TIMEOUT is set without {prefix}KEEPALIVE_TIME")
    with _named(f"{prefix}KEEPALIVE_…"):
        return Keepalive(**times)


# By the variable's name behind the prefix: which argument it is, and what reads it.
_READERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "URL": ("url", _url),
    "TIMEOUT": ("timeout", _number),
    "CHANNEL": ("channel", _one_of("auto", "native", "grpc")),
    "HEADERS": ("headers", _headers),
    "COMPRESSION": ("compression", _one_of("gzip", "deflate")),
    "BUSY_POLL": ("busy_poll", _number),
    "AUTHORITY": ("authority", _authority),
    "SHARED_MEMORY": ("shared_memory", _shared_memory),
    "SHARED_MEMORY_LIMIT": ("shared_memory_limit", _bytes),
}
# Those that make up one argument, and what they are called there.
_TLS = {
    "TLS_ROOT_CERTIFICATES": "root_certificates",
    "TLS_PRIVATE_KEY": "private_key",
    "TLS_CERTIFICATE_CHAIN": "certificate_chain",
}
_KEEPALIVE = {"KEEPALIVE_TIME": "time", "KEEPALIVE_TIMEOUT": "timeout"}
_NAMES = (*_READERS, *_KEEPALIVE, "TLS", *_TLS, "TLS_SERVER_NAME")
