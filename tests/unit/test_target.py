"""How a server's address may be written, and what is said of one that is not."""

from __future__ import annotations

import pytest

from triton_fast import InvalidOption
from triton_fast.options.target import checked_authority, checked_target


@pytest.mark.parametrize(
    "target",
    [
        "localhost:8001",
        "triton.internal:8001",
        "10.0.0.1:1",
        "[::1]:65535",
        "dns:///localhost:8001",
        "dns://8.8.8.8/localhost:8001",
        "dns:localhost:8001",
        "ipv4:10.0.0.1:8001",
        "ipv4:10.0.0.1:8001,10.0.0.2:8001",
        "ipv6:[::1]:8001,[fe80::1%eth0]:8001",
        "unix:/run/triton.sock",
        "unix:triton.sock",
        "unix-abstract:triton",
        "vsock:2:8001",
        "xds:///triton",
    ],
)
def test_targets(target):
    assert checked_target(target) == target


def test_sockets_are_written_as_grpcio_reads_them():
    """As a URI, in which some of the characters that a name may have mean something."""
    assert checked_target("unix:///run/triton.sock:8001") == "unix:/run/triton.sock%3A8001"
    assert checked_target("unix:/tmp/a b#c?d%e") == "unix:/tmp/a%20b%23c%3Fd%25e"
    assert checked_target("unix:/" + "x" * 106).endswith("x" * 106)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("", "localhost:8001"),
        (" localhost:8001", "localhost:8001"),
        ("localhost:8001\n", "localhost:8001"),
        (8001, "localhost:8001"),
        (None, "localhost:8001"),
        ("localhost", "'localhost:8001'"),
        ("[::1]", r"'\[::1\]:8001'"),
        ("::1:8001", r"'\[::1\]:8001'"),
        (":8001", "'localhost:8001'"),
        ("local host:8001", "with a space in it"),
        ("localhost:", "must be a port"),
        ("localhost:http", "must be a port"),
        ("localhost:0", "must be a port"),
        ("localhost:65536", "must be a port"),
        ("localhost:-1", "must be a port"),
        ("localhost:8001/v2", "without a path"),
        ("http://localhost:8001", "write 'localhost:8001' "),
        ("http://user:word@localhost:8001/v2", "write 'localhost:8001' "),
        ("https://triton:443", r"write 'triton:443' with tls=TLS\(\)"),
        ("grpc://triton:8001", "has no grpc://; write 'triton:8001'"),
        ("grpcs://triton:8001", r"with tls=TLS\(\)"),
        ("tcp://triton:8001", "write 'triton:8001'"),
        ("dns://localhost:8001", "three slashes"),
        ("dns:///localhost", "has no port"),
        ("dns:///", "has no port"),
        ("ipv4:localhost:8001", "not an ipv4 address"),
        ("ipv4:10.0.0.1", "has no port"),
        ("ipv4:10.0.0.1:8001,", "has no port"),
        ("ipv6:::1:8001", "in brackets"),
        ("ipv6:[localhost]:8001", "not an ipv6 address"),
        ("unix:", "names no socket"),
        ("unix://run/triton.sock", "unix:/path"),
        ("unix:/tmp/a,b", "comma"),
        ("unix:/" + "x" * 107, "at most 107 bytes"),
    ],
)
def test_targets_that_are_none(target, says):
    with pytest.raises(InvalidOption, match=says):
        checked_target(target)


@pytest.mark.parametrize("authority", ["triton", "triton.example:8001", "[::1]:8001", "a_b-c~1"])
def test_authorities(authority):
    assert checked_authority(authority) == authority
    assert checked_authority(None) is None


@pytest.mark.parametrize(
    ("authority", "says"),
    [
        ("", "of 1 to 255 characters, got 0"),
        ("a" * 256, "of 1 to 255 characters, got 256"),
        ("user:pw@host", "got '@' in one"),
        ("host/path", "got '/' in one"),
        ("two words", "got ' ' in one"),
        ("bücher.example", "got 'ü' in one"),
        ("host\n", r"got '\\n' in one"),
        (b"host", "must be a str such as 'triton.example', got bytes"),
        (8001, "must be a str such as 'triton.example', got int"),
    ],
)
def test_what_is_no_authority(authority, says):
    with pytest.raises(InvalidOption, match=says):
        checked_authority(authority)
