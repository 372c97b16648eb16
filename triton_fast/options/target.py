"""Targets: how a server's address is written, and what is wrong with one that is not.

Imports errors and nothing else of the package.
"""

from __future__ import annotations

import os
import re

from ..errors import InvalidOption

__all__ = ["checked_target"]

_PASSED_ON = ("unix-abstract:", "vsock:", "xds:", "google-c2p:")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_UNIX_PATH_LIMIT = 107  # sun_path in unix(7), less its NUL


def checked_target(target: str) -> str:
    """Return the address to give to grpcio, or say what to write instead."""
    if not isinstance(target, str):
        raise InvalidOption(f"a target must be a str such as 'localhost:8001', got {target!r}")
    if not target or target != target.strip() or any(not c.isprintable() for c in target):
        raise InvalidOption(f"target {target!r}: write host:port, such as 'localhost:8001'")
    if target.startswith("unix:"):
        return _checked_unix_target(target)
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
            _authority, slash, name = name[2:].partition("/")
            if not slash:
                raise InvalidOption(
                    f"target {target!r}: write three slashes, 'dns:///{_authority or 'host:port'}'"
                )
        _check_host_port(target, name)
        return target
    if scheme := _SCHEME.match(target):
        rest = target[scheme.end() :].split("/", 1)[0].rpartition("@")[2] or "host:port"
        secure = " with tls=TLS()" if scheme[1].lower() in ("https", "grpcs") else ""
        raise InvalidOption(
            f"target {target!r}: a gRPC target has no {scheme[1]}://; write {rest!r}{secure} "
            "(Triton's gRPC port is 8001 unless set otherwise)"
        )
    _check_host_port(target, target)
    return target


def _check_host_port(target: str, address: str, numeric: str = "") -> None:
    if "/" in address:
        raise InvalidOption(f"target {target!r}: a gRPC target ends with the port, without a path")
    host, colon, port = address.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        host, colon, port = address, "", ""
    if not colon:
        raise InvalidOption(f"target {target!r} has no port; write '{address}:8001'")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise InvalidOption(
            f"target {target!r}: write an IPv6 address in brackets, such as '[::1]:8001'"
        )
    if not host or any(c.isspace() for c in host):
        raise InvalidOption(f"target {target!r} has no host; write 'localhost:{port}' for this one")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidOption(f"target {target!r}: {port!r} is not a port from 1 to 65535")
    if numeric:
        # Not through ipaddress or socket: grpcio takes zone names (fe80::1%eth0) that they may not.
        pattern = r"\d{1,3}(\.\d{1,3}){3}" if numeric == "ipv4" else r"\[[0-9A-Fa-f:.]+(%\w+)?\]"
        if not re.fullmatch(pattern, host, re.ASCII):
            raise InvalidOption(
                f"target {target!r}: {host!r} is not an {numeric} address; write names as "
                f"'dns:///{host}:{port}'"
            )


def _checked_unix_target(target: str) -> str:
    path = target.removeprefix("unix:")
    if path.startswith("//"):
        path = path[2:]
        if not path.startswith("/"):
            raise InvalidOption(
                f"target {target!r}: write 'unix:/path' or 'unix:///path', or 'unix:path' for a "
                "relative one"
            )
    if not path:
        raise InvalidOption(f"target {target!r} names no socket file; write 'unix:/path'")
    if "," in path:
        raise InvalidOption(
            f"target {target!r}: grpcio cannot reach a socket with a comma in its path"
        )
    if len(os.fsencode(path)) > _UNIX_PATH_LIMIT:
        raise InvalidOption(
            f"target {target!r}: the path of a Unix socket has at most {_UNIX_PATH_LIMIT} bytes"
        )
    # grpcio reads this as a URI, where #, ? and % mean something; a file may have them in its name.
    from urllib.parse import quote  # noqa: PLC0415 - for Unix sockets alone

    return "unix:" + quote(path)
