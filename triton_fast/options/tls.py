"""What a connection under TLS needs to know. Owns the settings and their checks, not the sockets.

Imports errors and the checks of `values`, and nothing else of the package: every channel takes its
settings from here. Neither reprs nor errors show what may be a key.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias

from ..errors import InvalidOption
from .values import instead

__all__ = ["TLS", "PemSource", "TLSMaterial", "checked_tls"]

PemSource: TypeAlias = bytes | str | os.PathLike[str]
"""PEM text as bytes, or the path of a file that holds it."""

_SOURCES = ("root_certificates", "private_key", "certificate_chain")
_PRIVATE_KEY_LABELS = (b"PRIVATE KEY", b"RSA PRIVATE KEY", b"EC PRIVATE KEY")
_CERTIFICATE_LABELS = (b"CERTIFICATE", b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE")


@dataclass(frozen=True, slots=True)
class TLSMaterial:
    """The bytes behind a `TLS`, read and looked over; None for what was not given."""

    # Files of certificates often have the key in them, too.
    root_certificates: bytes | None = field(repr=False)
    private_key: bytes | None = field(repr=False)
    certificate_chain: bytes | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class TLS:
    """Ask for TLS, and say whom to trust and who we are.

    Parameters
    ----------
    root_certificates : bytes or path, optional
        PEM certificates of the authorities that may have signed the server's. Left out, those that
        the transport ships or finds on the system.
    private_key : bytes or path, optional
        PEM key of this client's own certificate (mutual TLS); not one under a passphrase.
    certificate_chain : bytes or path, optional
        PEM certificate of this client, followed by any intermediate ones.
    server_name : str, optional
        Name that the server's certificate must carry, where it is not the one in the target: behind
        an address, a tunnel or a Unix socket. It is also what the server sees as ``:authority``.

    Raises
    ------
    InvalidOption
        If a key comes without its certificate or the other way round, or something is not PEM.

    Notes
    -----
    Files are read when a connection is set up, not here, so that renewed certificates are found by
    the next one. The repr shows what was given, and no PEM text: a file of certificates may have
    the key in it.

    Examples
    --------
    >>> TLS(b"-----BEGIN CERTIFICATE-----", server_name="triton.internal")
    TLS(root_certificates=<27 bytes>, server_name='triton.internal')
    """

    root_certificates: PemSource | None = None
    private_key: PemSource | None = None
    certificate_chain: PemSource | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.private_key is None) != (self.certificate_chain is None):
            given, missing = (
                ("private_key", "certificate_chain")
                if self.certificate_chain is None
                else ("certificate_chain", "private_key")
            )
            raise InvalidOption(f"TLS: {given} was given without {missing}; a server needs both")
        if self.server_name is not None and (
            not isinstance(self.server_name, str) or not self.server_name.strip()
        ):
            raise InvalidOption(
                f"TLS: server_name must be a host name, got {instead(self.server_name)}"
            )
        if self.server_name is not None and not self.server_name.isascii():
            raise InvalidOption("TLS: server_name must be a host name in ASCII, as DNS has it")
        for name in _SOURCES:
            source = getattr(self, name)
            if isinstance(source, bytes):
                _check_pem(name, source, "")
            elif isinstance(source, str) and "-----BEGIN" in source:
                raise InvalidOption(f"TLS: {name} is PEM text as str; pass bytes, or a path")
            elif source is not None and not _is_path(source):
                raise InvalidOption(
                    f"TLS: {name} must be PEM as bytes or a path, got {type(source).__name__}"
                )

    def __copy__(self) -> Self:
        return self  # nothing in it can be changed

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if isinstance(self.private_key, bytes):
            warnings.warn(
                "a TLS was pickled with its private_key, and whoever has the pickle can read it; "
                "of a key that is given as a path, the path alone is in it",
                stacklevel=2,
            )
        sources = (self.root_certificates, self.private_key, self.certificate_chain)
        return type(self), (*sources, self.server_name)

    def __repr__(self) -> str:
        given = [
            f"{name}={_described(getattr(self, name))}"
            for name in _SOURCES
            if getattr(self, name) is not None
        ]
        if self.server_name is not None:
            given.append(f"server_name={self.server_name!r}")
        return f"TLS({', '.join(given)})"

    def read(self) -> TLSMaterial:
        """Return the certificates and key as bytes, reading the files behind paths.

        Returns
        -------
        TLSMaterial
            What a transport takes.

        Raises
        ------
        InvalidOption
            If a file cannot be read or does not hold what it should.
        """
        return TLSMaterial(
            root_certificates=_read("root_certificates", self.root_certificates),
            private_key=_read("private_key", self.private_key),
            certificate_chain=_read("certificate_chain", self.certificate_chain),
        )


def checked_tls(tls: TLS | bool | None) -> TLS | None:
    """Return a client's ``tls=``; None for plain text.

    Raises
    ------
    InvalidOption
        If it is something else.
    """
    if isinstance(tls, TLS):
        return tls
    if tls is None or isinstance(tls, bool):
        return TLS() if tls else None
    raise InvalidOption(f"tls must be a TLS or True, got {type(tls).__name__}")  # it may be a key


def _is_path(source: Any) -> bool:
    if isinstance(source, str):
        return True
    try:
        return isinstance(os.fspath(source), str)
    except TypeError:
        return False


def _described(source: PemSource) -> str:
    if isinstance(source, bytes):
        return f"<{len(source)} bytes>"
    return repr(os.fspath(source)) if _is_shown(source) else f"<{type(source).__name__}>"


def _is_shown(source: str | os.PathLike[str]) -> bool:
    """Return whether a path may be told: what stands in for one may be a key in some other form."""
    try:
        return not isinstance(source, str) or os.path.lexists(source)
    except ValueError:
        return False


def _read(name: str, source: PemSource | None) -> bytes | None:
    if source is None or isinstance(source, bytes):
        return source
    where = f" from {os.fspath(source)}" if _is_shown(source) else ""
    try:
        pem = Path(source).read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no path"
        # None: the other error has the path in it.
        raise InvalidOption(f"TLS: cannot read {name}{where}: {why}") from None
    _check_pem(name, pem, where.replace(" from ", " in ", 1))
    return pem


def _check_pem(name: str, pem: bytes, where: str) -> None:
    # Of a bad key a transport says no more than that the handshake failed, at the first call.
    if name == "private_key":
        if b"-----BEGIN ENCRYPTED PRIVATE KEY" in pem or b"Proc-Type: 4,ENCRYPTED" in pem:
            raise InvalidOption(
                f"TLS: the private_key{where} is under a passphrase; decrypt it first "
                "(openssl pkey -in key.pem -out plain.pem)"
            )
        labels, what = _PRIVATE_KEY_LABELS, "private key"
    else:
        labels, what = _CERTIFICATE_LABELS, "certificate"
    if not any(b"-----BEGIN " + label + b"-----" in pem for label in labels):
        raise InvalidOption(f"TLS: no {what} in PEM form in {name}{where}")
