"""Settings of TLS: what is no certificate or key is told when they are made or read."""

from __future__ import annotations

import pytest

from triton_fast import TLS, InvalidOption

CERTIFICATE = b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
KEY = b"-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\n"


def test_tls_settings_that_make_no_sense(tmp_path):
    (tmp_path / "empty.pem").touch()
    encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n"
    for settings, says in (
        ({"private_key": KEY}, "private_key was given without certificate_chain"),
        ({"certificate_chain": CERTIFICATE}, "certificate_chain was given without private_key"),
        ({"root_certificates": b"DER"}, "no certificate in PEM form in root_certificates"),
        ({"root_certificates": KEY}, "no certificate in PEM form"),
        (
            {"private_key": CERTIFICATE, "certificate_chain": CERTIFICATE},
            "no private key in PEM form",
        ),
        ({"private_key": encrypted, "certificate_chain": CERTIFICATE}, "under a passphrase"),
        ({"root_certificates": CERTIFICATE.decode()}, "pass bytes, or a path"),
        ({"root_certificates": 5}, "got int"),
        ({"server_name": ""}, "server_name"),
        ({"server_name": 5}, "server_name"),
    ):
        with pytest.raises(InvalidOption, match=says):
            TLS(**settings)
    for settings, says in (
        ({"root_certificates": tmp_path / "none.pem"}, "cannot read root_certificates from .*none"),
        ({"root_certificates": str(tmp_path)}, "cannot read"),
        ({"root_certificates": tmp_path / "empty.pem"}, "no certificate in .* in .*empty.pem"),
    ):
        with pytest.raises(InvalidOption, match=says):
            TLS(**settings).read()


def test_tls_shows_no_key():
    tls = TLS(private_key=KEY, certificate_chain=CERTIFICATE)
    for shown in (repr(tls), repr(tls.read())):
        assert "BEGIN" not in shown
    assert (
        repr(tls)
        == f"TLS(private_key=<{len(KEY)} bytes>, certificate_chain=<{len(CERTIFICATE)} bytes>)"
    )
