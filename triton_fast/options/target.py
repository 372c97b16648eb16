"""Targets: how a server's address is written, and what is wrong with one that is not.

Errors do not show what may be a password in it, or a token. Imports errors and the checks of
`values`, and nothing else of the package.
"""

from __future__ import annotations

import os
import re

from ..errors import InvalidOption
from .values import instead

__all__ = ["checked_authority", "checked_target"]

_PASSED_ON = ("unix-abstract:", "vsock:", "xds:", "google-c2p:")
_URIS = ("dns:", "ipv4:", "ipv6:", *_PASSED_ON)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_UNIX_PATH_LIMIT = 107  # sun_path in unix(7), less its NUL
_SOCKETS = ("unix:", "unix-abstract:")  # names of files and the like, with @ and ? as they come
_MOST_SHOWN = 200
# RFC 3986, 3.2: a host and perhaps a port; RFC 9113, 8.3.1: nobody's name and password before it.
_NOT_IN_AUTHORITY = re.compile(r"[^A-Za-z0-9._~!$&'()*+,;=%:\[\]-]")
_AUTHORITY = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]{1,255}\Z")


def checked_target(target: str) -> str:
    """Return the address to give to grpcio, or say what to write instead."""
    if not isinstance(target, str):
        raise InvalidOption(
            f"a target must be a str such as 'localhost:8001', got {instead(target)}"
        )
    if any(c.isspace() for c in target) and not target.startswith(_SOCKETS):
        # Not shown: it may be something else than an address, a header's value say.
        raise InvalidOption(
            f"a target must be host:port without spaces, such as 'localhost:8001', got a str of "
            f"{len(target)} characters with a space in it"
        )
    if not target or target != target.strip() or any(not c.isprintable() for c in target):
        raise InvalidOption(f"{_shown(target)}: write host:port, such as 'localhost:8001'")
    if target.startswith("unix:"):
        return _checked_unix_target(target)
    scheme = _SCHEME.match(target)
    if scheme and not target.startswith(_URIS):
        raise _no_uri(target, scheme)
    if not target.startswith(_SOCKETS):
        if "@" in target:
            raise InvalidOption(
                f"{_shown(target)}: a gRPC target has no user before an '@'; credentials go into "
                "headers="
            )
        if "?" in target or "#" in target:
            raise InvalidOption(f"{_shown(target)}: a gRPC target ends with the port")
    if target.startswith(("ipv4:", "ipv6:")):
        family, addresses = target.split(":", 1)
        for address in addresses.split(","):
            _check_host_port(target, address.strip(), numeric=family)
        return target
    if target.startswith(_PASSED_ON):
        return target
    if target.startswith("dns:"):
        name = target.removeprefix("dns:")
        if name.startswith("//"):
            authority, slash, name = name[2:].partition("/")
            if not slash:
                raise InvalidOption(
                    f"{_shown(target)}: write three slashes, 'dns:///{authority or 'host:port'}'"
                )
        _check_host_port(target, name)
        return target
    _check_host_port(target, target)
    return target


def checked_authority(authority: str | None) -> str | None:
    """Return a client's ``authority=``; None for the address's own.

    Raises
    ------
    InvalidOption
        If HTTP/2 has no place for it.

    Source
    ------
    RFC 9113, 8.3.1; RFC 3986, 3.2.
    """
    if authority is None:
        return None
    if not isinstance(authority, str):
        raise InvalidOption(
            f"authority must be a str such as 'triton.example', got {type(authority).__name__}"
        )
    if not _AUTHORITY.match(authority):
        wrong = _NOT_IN_AUTHORITY.search(authority)
        raise InvalidOption(
            "authority must be a host name, perhaps with a port, of 1 to 255 characters, got "
            + (f"{wrong[0]!r} in one" if wrong else f"{len(authority)}")
        )
    return str.__str__(authority)


def _check_host_port(target: str, address: str, numeric: str = "") -> None:
    if "/" in address:
        raise InvalidOption(f"{_shown(target)}: a gRPC target ends with the port, without a path")
    if "," in address:
        raise InvalidOption(
            f"{_shown(target)}: several addresses are written as 'ipv4:10.0.0.1:8001,10.0.0.2:8001'"
        )
    host, colon, port = address.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        host, colon, port = address, "", ""
    if not colon:
        raise InvalidOption(f"{_shown(target)} has no port; write '{address}:8001'")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise InvalidOption(
            f"{_shown(target)}: write an IPv6 address in brackets, such as '[::1]:8001'"
        )
    if not host or any(c.isspace() for c in host):
        raise InvalidOption(f"{_shown(target)} has no host; write 'localhost:{port}' for this one")
    if not (port.isascii() and port.isdigit() and len(port) < 10 and 0 < int(port) < 65536):
        raise InvalidOption(
            f"{_shown(target)}: what follows the last colon must be a port from 1 to 65535"
        )
    if not host.isascii():
        raise InvalidOption(f"{_shown(target)}: {_in_ascii(host, port)}")
    if numeric:
        # Not through ipaddress or socket: grpcio takes zone names (fe80::1%eth0) that they may not.
        pattern = r"\d{1,3}(\.\d{1,3}){3}" if numeric == "ipv4" else r"\[[0-9A-Fa-f:.]+(%\w+)?\]"
        if not re.fullmatch(pattern, host, re.ASCII):
            raise InvalidOption(
                f"{_shown(target)}: {host!r} is not an {numeric} address; write names as "
                f"'dns:///{host}:{port}'"
            )


def _in_ascii(host: str, port: str) -> str:
    """Say how to write a name that is not in ASCII, as DNS has it."""
    try:
        encoded = host.encode("idna").decode()
    except UnicodeError:
        return "a host name is in ASCII, and there is no other way to write this one"
    return f"a host name is in ASCII; write '{encoded}:{port}'"


def _no_uri(target: str, scheme: re.Match[str]) -> InvalidOption:
    rest = re.split("[/?#]", target[scheme.end() :], maxsplit=1)[0].rpartition("@")[2]
    secure = " with tls=TLS()" if scheme[1].lower() in ("https", "grpcs") else ""
    return InvalidOption(
        f"{_shown(target)}: a gRPC target has no {scheme[1]}://; write {rest or 'host:port'!r}"
        f"{secure} (Triton's gRPC port is 8001 unless set otherwise)"
    )


def _shown(target: str) -> str:
    """Return a target as errors show it: without what may be a password or token in it."""
    if not target.startswith(_SOCKETS):
        scheme = _SCHEME.match(target)
        begin = scheme.end() if scheme else 0
        before, at, rest = target[begin:].rpartition("@")
        place = re.split("[?#]" if target.startswith(_URIS) else "[/?#]", rest, maxsplit=1)[0]
        host, colon, port = place.rpartition(":")
        if colon and not port.isdigit() and not place.endswith("]"):
            port = "…" if port else ""
        target = (
            target[:begin]
            + ("…@" if before or at else "")
            + host
            + colon
            + port
            + ("…" if place != rest else "")
        )
    return f"target {target[:_MOST_SHOWN] + '…' if len(target) > _MOST_SHOWN else target!r}"


def _checked_unix_target(target: str) -> str:
    path = target.removeprefix("unix:")
    if path.startswith("//"):
        path = path[2:]
        if not path.startswith("/"):
            raise InvalidOption(
                f"{_shown(target)}: write 'unix:/path' or 'unix:///path', or 'unix:path' for a "
                "relative one"
            )
    if not path:
        raise InvalidOption(f"{_shown(target)} names no socket file; write 'unix:/path'")
    if "," in path:
        raise InvalidOption(
            f"{_shown(target)}: grpcio cannot reach a socket with a comma in its path"
        )
    if len(os.fsencode(path)) > _UNIX_PATH_LIMIT:
        raise InvalidOption(
            f"{_shown(target)}: the path of a Unix socket has at most {_UNIX_PATH_LIMIT} bytes"
        )
    # grpcio reads this as a URI, where #, ? and % mean something; a file may have them in its name.
    from urllib.parse import quote  # noqa: PLC0415 - for Unix sockets alone

    return "unix:" + quote(path)
