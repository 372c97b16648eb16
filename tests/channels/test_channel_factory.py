"""Which channel a client gets, and what each refuses."""

from __future__ import annotations

import sys

import pytest

from triton_fast import TLS, Client, InvalidOption, Keepalive, MissingDependency
from triton_fast.channels.factory import channel_factory
from triton_fast.channels.native.channel import native_address

ONE_ADDRESS = [
    "localhost:8001",
    "triton.example:8001",
    "10.0.0.7:8001",
    "[::1]:8001",
    "ipv4:10.0.0.7:8001",
    "ipv6:[::1]:8001",
    "unix:/run/triton.sock",
    "unix:///run/triton.sock",
]
SEVERAL = [
    "dns:///triton.example:8001",
    "dns:triton.example:8001",
    "ipv4:10.0.0.7:8001,10.0.0.8:8001",
]


def chosen(target, choice="auto", **settings):
    settings = {
        "tls": None,
        "keepalive": None,
        "busy_poll": 0.0,
        "options": None,
        **settings,
    }
    channel = channel_factory(target, choice, **settings)()
    channel.close()
    return type(channel).__name__


@pytest.fixture
def no_native_channel(monkeypatch):
    """A build without nghttp2."""
    monkeypatch.setitem(sys.modules, "triton_fast._core._http2", None)
    import triton_fast._core as core

    monkeypatch.delattr(core, "_http2", raising=False)


@pytest.mark.native
@pytest.mark.parametrize("target", ONE_ADDRESS)
def test_one_address_in_plain_text_is_native(target):
    assert chosen(target) == chosen(target, "native") == "NativeChannel"
    assert chosen(target, "grpc") == "GrpcChannel"


@pytest.mark.parametrize("target", SEVERAL)
def test_several_addresses_are_grpcio(target):
    assert chosen(target) == chosen(target, "grpc") == "GrpcChannel"
    with pytest.raises(InvalidOption, match=r"channel='native': target .* is not one address"):
        chosen(target, "native")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"tls": TLS()}, "it does not speak TLS"),
        ({"options": {"grpc.max_reconnect_backoff_ms": 500}}, "channel_options are grpcio's"),
    ],
)
def test_what_only_grpcio_has(settings, why):
    assert chosen("localhost:8001", **settings) == "GrpcChannel"
    with pytest.raises(InvalidOption, match=why):
        chosen("localhost:8001", "native", **settings)


@pytest.mark.native
def test_keepalive_and_busy_polling_are_native_too():
    assert chosen("localhost:8001", keepalive=Keepalive(10)) == "NativeChannel"
    assert chosen("localhost:8001", busy_poll=50e-6) == "NativeChannel"


def test_busy_polling_is_not_grpcios():
    with pytest.raises(InvalidOption, match="busy_poll is the native channel's"):
        chosen("localhost:8001", "grpc", busy_poll=50e-6)
    with pytest.raises(InvalidOption, match=r"busy_poll .* it does not speak TLS"):
        Client("localhost:8001", tls=True, busy_poll=50e-6)
    for nonsense in (-1, "soon", float("nan"), True, 50):
        with pytest.raises(InvalidOption, match="busy_poll"):
            Client("localhost:8001", busy_poll=nonsense)


@pytest.mark.parametrize("choice", ["http", "", None, 1])
def test_there_is_no_such_channel(choice):
    with pytest.raises(InvalidOption, match="channel must be 'auto', 'native' or 'grpc'"):
        Client("localhost:8001", channel=choice)


def test_a_build_without_nghttp2_uses_grpcio(no_native_channel):
    assert chosen("localhost:8001") == "GrpcChannel"


def test_a_build_without_nghttp2_says_how_to_get_the_native_channel(no_native_channel):
    with pytest.raises(MissingDependency, match="libnghttp2-dev"):
        Client("localhost:8001", channel="native")


def test_addresses():
    assert native_address("[::1]:8001") == ("::1", "8001", "", "[::1]:8001")
    assert native_address("ipv4:10.0.0.7:81") == ("10.0.0.7", "81", "", "10.0.0.7:81")
    assert native_address("unix:///run/t.sock") == ("", "", "/run/t.sock", "localhost")
    assert native_address("unix:t.sock") == ("", "", "t.sock", "localhost")


@pytest.mark.native
@pytest.mark.server
def test_busy_polling_gives_the_same_answers(triton_server):
    import numpy as np

    array = np.arange(16, dtype=np.float32)
    with Client(triton_server.grpc_url, channel="native", busy_poll=200e-6) as client:
        for _ in range(50):
            array += 1
            result = client.infer("identity_cpp", {"INPUT0": array})
            np.testing.assert_array_equal(result["OUTPUT0"], array)
