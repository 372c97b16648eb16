"""Servers, channels and certificates for the channel tests; each is gone when its test is over."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
from dataclasses import dataclass

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from echo_server import EchoServer, Relay

from triton_fast.channels.grpcio.channel import GrpcChannel


@pytest.fixture
def echo_server():
    """Start a server of the test's own (3 ms), so that it counts nothing of another test's."""
    server = EchoServer()
    yield server
    server.stop()


@pytest.fixture
def relay(echo_server):
    relay = Relay(echo_server.port)
    yield relay
    relay.close()


@pytest.fixture
def nowhere():
    """Return a target where nobody listens: a port that is taken, or others might get it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def open_channel(echo_server):
    """Make channels, to the server unless told otherwise, and close them."""
    channels = []

    def make(target: str | None = None, **settings) -> GrpcChannel:
        channels.append(GrpcChannel(target or echo_server.target, **settings))
        return channels[-1]

    yield make
    for channel in channels:
        channel.close()


@pytest.fixture
def grpc_channel(open_channel):
    return open_channel()


@dataclass
class Identity:
    """A certificate and its key, PEM."""

    certificate: bytes
    key: bytes


@pytest.fixture(scope="session")
def authority():
    """Return the certificate of an authority, and a function that has it sign others'."""
    key, name = _key(), _name("triton_fast tests")
    root = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )

    def sign(common_name: str, *hosts: str) -> Identity:
        own = _key()
        names = [x509.DNSName(host) for host in hosts]
        certificate = (
            _builder(_name(common_name), name, own)
            .add_extension(
                x509.SubjectAlternativeName(
                    [*names, x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
                    if "localhost" in hosts
                    else names
                ),
                critical=False,
            )
            .sign(key, hashes.SHA256())
        )
        return Identity(_pem(certificate), _key_pem(own))

    return _pem(root), sign


@pytest.fixture(scope="module")
def tls_server(authority):
    _, sign = authority
    own = sign("server", "localhost", "triton.internal")
    server = EchoServer(
        credentials=grpc.ssl_server_credentials([(own.key, own.certificate)]),
    )
    yield server
    server.stop()


def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
