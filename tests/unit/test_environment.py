"""Settings from the environment: what each variable may be, and what is said if it is not."""

from __future__ import annotations

import inspect
import os
import re
import traceback
from pathlib import Path

import pytest

from triton_fast import TLS, AsyncClient, Client, InvalidOption, Keepalive
from triton_fast.options.environment import _NAMES, _NOT_SETTINGS, settings_from_environment

ROOT = Path(__file__).parents[2]
PEM = "-----BEGIN CERTIFICATE-----\nsecret\n-----END CERTIFICATE-----"
KEY = "-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----"


def settings(prefix="TRITON_FAST_", overrides=None, **variables):
    environ = {prefix + name: value for name, value in variables.items()}
    return settings_from_environment(prefix, environ, overrides or {})


def read(**variables):
    found = settings(URL="host:1", **variables)
    assert found.pop("url") == "host:1"
    return found


def test_nothing_but_the_server():
    assert settings(URL="unix:/run/triton.sock") == {"url": "unix:/run/triton.sock"}
    with pytest.raises(InvalidOption, match="no server: set TRITON_FAST_URL to its address"):
        settings()
    with pytest.raises(InvalidOption, match="no server: set MINE_URL"):
        settings("MINE_", TIMEOUT="1")


@pytest.mark.parametrize(
    ("name", "value", "keyword", "expected"),
    [
        ("TIMEOUT", "2.5", "timeout", 2.5),
        ("TIMEOUT", "0", "timeout", 0.0),
        ("TIMEOUT", "inf", "timeout", float("inf")),
        ("CHANNEL", "grpc", "channel", "grpc"),
        ("CHANNEL", "NATIVE", "channel", "native"),
        ("COMPRESSION", "gzip", "compression", "gzip"),
        ("BUSY_POLL", "50e-6", "busy_poll", 50e-6),
        ("SHARED_MEMORY", "auto", "shared_memory", "auto"),
        ("SHARED_MEMORY", "true", "shared_memory", True),
        ("SHARED_MEMORY", "1", "shared_memory", True),
        ("SHARED_MEMORY", "False", "shared_memory", False),
        ("SHARED_MEMORY", "off", "shared_memory", False),
        ("SHARED_MEMORY_LIMIT", "4096", "shared_memory_limit", 4096),
        ("SHARED_MEMORY_LIMIT", "512M", "shared_memory_limit", 512 << 20),
        ("SHARED_MEMORY_LIMIT", "2 GiB", "shared_memory_limit", 2 << 30),
        ("SHARED_MEMORY_LIMIT", "64KB", "shared_memory_limit", 64 << 10),
        ("SHARED_MEMORY_LIMIT", "0", "shared_memory_limit", 0),
        ("HEADERS", '{"A": "b=c, d"}', "headers", (("a", "b=c, d"),)),
        ("HEADERS", '{"a": "1", "a": "2"}', "headers", (("a", "1"), ("a", "2"))),
        ("HEADERS", '{"x-bin": "AP8="}', "headers", (("x-bin", b"\0\xff"),)),
        ("HEADERS", "{}", "headers", ()),
        ("KEEPALIVE_TIME", "30", "keepalive", Keepalive(30.0)),
        ("TLS", "1", "tls", True),
        ("TLS", "0", "tls", False),
        ("TLS_SERVER_NAME", "triton.internal", "tls", TLS(server_name="triton.internal")),
    ],
)
def test_each_variable(name, value, keyword, expected):
    found = read(**{name: value})
    assert found == {keyword: expected}
    assert type(found[keyword]) is type(expected)
    assert read(**{name: f"  {value}\n"}) == found


def test_all_at_once(tmp_path):
    chain = tmp_path / "chain.pem"
    chain.write_text(PEM)
    found = read(
        TLS="yes",
        TLS_ROOT_CERTIFICATES=PEM,
        TLS_PRIVATE_KEY=KEY,
        TLS_CERTIFICATE_CHAIN=str(chain),
        KEEPALIVE_TIME="30",
        KEEPALIVE_TIMEOUT="5",
        TIMEOUT="1",
    )
    assert found == {
        "tls": TLS(PEM.encode(), KEY.encode(), str(chain)),
        "keepalive": Keepalive(30.0, 5.0),
        "timeout": 1.0,
    }


def test_tls_switched_off():
    assert read(TLS="0", TLS_SERVER_NAME="a") == {"tls": False}
    # Off, but not unread: whoever switches it on must not be surprised.
    with pytest.raises(InvalidOption, match="TRITON_FAST_TLS_PRIVATE_KEY"):
        read(TLS="0", TLS_PRIVATE_KEY="nowhere")


def test_empty_is_not_set():
    empty = dict.fromkeys(_NAMES[1:], "")
    assert read(**empty) == {}
    with pytest.raises(InvalidOption, match="no server"):
        settings(URL="  ")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("URL", "http://host:8001", "target 'http://host:8001': a gRPC target has no http://"),
        ("URL", "host", "has no port"),
        ("TIMEOUT", "soon", "a number of seconds, got 'soon'"),
        ("TIMEOUT", "-1", "zero or more seconds"),
        ("TIMEOUT", "nan", "zero or more seconds"),
        ("CHANNEL", "http", "one of 'auto', 'native', 'grpc', got 'http'"),
        ("COMPRESSION", "zstd", "one of 'gzip', 'deflate', got 'zstd'"),
        ("BUSY_POLL", "yes", "a number of seconds, got 'yes'"),
        ("SHARED_MEMORY", "maybe", "must be auto, 1 or 0, got 'maybe'"),
        ("SHARED_MEMORY_LIMIT", "1.5G", "a number of bytes.*got '1.5G'"),
        ("SHARED_MEMORY_LIMIT", "-1", "a number of bytes"),
        ("SHARED_MEMORY_LIMIT", "1X", "a number of bytes"),
        ("TLS", "maybe", "1 or 0, true or false$"),
        ("KEEPALIVE_TIME", "often", "a number of seconds"),
        ("HEADERS", '{"a b": "x"}', "name of header 1 .* ' '"),
        ("HEADERS", '{"grpc-x": "x"}', "gRPC's own"),
    ],
)
def test_values_that_make_no_sense(name, value, message):
    with pytest.raises(InvalidOption, match=f"TRITON_FAST_{name}: .*{message}"):
        settings(**{"URL": "host:1", name: value})


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"KEEPALIVE_TIME": "0"}, "TRITON_FAST_KEEPALIVE_…: keepalive: time"),
        ({"KEEPALIVE_TIMEOUT": "5"}, "KEEPALIVE_TIMEOUT is set without TRITON_FAST_KEEPALIVE_TIME"),
        ({"TLS_PRIVATE_KEY": KEY}, "TRITON_FAST_TLS_…: TLS: private_key was given without cert"),
    ],
)
def test_values_that_do_not_go_together(variables, message):
    with pytest.raises(InvalidOption, match=message):
        read(**variables)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HEADERS", "authorization=Bearer hunter2"),
        ("HEADERS", '{"authorization": "Bearer hunter2"'),
        ("HEADERS", '["hunter2"]'),
        ("HEADERS", '"hunter2"'),
        ("HEADERS", '{"authorization": {"Bearer": "hunter2"}}'),
        ("HEADERS", '{"authorization": ["hunter2"]}'),
        ("HEADERS", '{"authorization": "hunter2é"}'),
        ("HEADERS", '{"x-bin": "hunter2"}'),
        ("HEADERS", '{"x-bin": "hunter2é"}'),
        ("TLS_PRIVATE_KEY", "hunter2"),
        ("TLS_PRIVATE_KEY", "hunter2/" * 1000),
        ("TLS_PRIVATE_KEY", "-----BEGIN THING-----hunter2"),
        ("TLS_PRIVATE_KEY", "-----BEGIN ENCRYPTED PRIVATE KEY-----hunter2"),
        ("TLS_ROOT_CERTIFICATES", "hunter2"),
        ("TLS_CERTIFICATE_CHAIN", "/etc"),
    ],
)
def test_secrets_are_not_told(name, value):
    variables = {"TLS_CERTIFICATE_CHAIN": PEM, name: value} if "KEY" in name else {name: value}
    with pytest.raises(InvalidOption, match=r"^TRITON_FAST_(HEADERS|TLS_\w*…?): ") as caught:
        read(**variables)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


def test_names_that_are_none():
    with pytest.raises(InvalidOption) as caught:
        settings(URL="host:1", TIMEOUTS="1", CHANEL="hunter2")
    message = str(caught.value)
    assert message.startswith("TRITON_FAST_CHANEL, TRITON_FAST_TIMEOUTS: no such setting; there ")
    assert "hunter2" not in message
    for name in _NAMES:
        assert f"TRITON_FAST_{name}" in message
    # Another prefix has its own names; what is without it is nobody's business here.
    environ = {"MINE_URL": "host:1", "TRITON_FAST_URLS": "x", "URL": "y", "MINE": "z"}
    assert settings_from_environment("MINE_", environ, {}) == {"url": "host:1"}
    with pytest.raises(InvalidOption, match="MINE_HTTP2: no such setting; there are MINE_URL"):
        settings("MINE_", URL="host:1", HTTP2="x")
    for prefix in ("", None):
        with pytest.raises(InvalidOption, match="prefix"):
            settings_from_environment(prefix, {}, {})


def test_variables_of_the_repository():
    """Whatever the build and the tests call a variable, it is no mistake of a client's."""
    sources = [ROOT / "CMakeLists.txt", ROOT / "Makefile", *(ROOT / ".ci").iterdir()]
    sources += [*ROOT.glob("csrc/**/CMakeLists.txt"), *ROOT.glob("csrc/**/*.sh")]
    sources += ROOT.glob("cmake/*")
    for folder in ("benchmarks", "examples", "tests", "triton_fast"):
        sources += ROOT.glob(f"{folder}/**/*.py")
    listed = set()
    for source in set(sources) - {Path(__file__), ROOT / "triton_fast" / "settings.py"}:
        text = source.read_text(encoding="utf-8")
        listed.update(re.findall(r"\bTRITON_FAST_[A-Z0-9_]*[A-Z0-9]\b", text))
    assert "TRITON_FAST_REQUIRE_SERVER" in listed
    mentioned = {name for name in listed if name.removeprefix("TRITON_FAST_") not in _NAMES}
    assert mentioned <= _NOT_SETTINGS
    assert read(**{name.removeprefix("TRITON_FAST_"): "x" for name in _NOT_SETTINGS}) == {}


def test_variables_of_a_service_in_kubernetes():
    """One that is called as the prefix is: they say nothing of settings."""
    address = "tcp://10.0.0.11:8001"
    assert (
        read(
            SERVICE_HOST="10.0.0.11",
            SERVICE_PORT="8001",
            SERVICE_PORT_GRPC="8001",
            PORT=address,
            PORT_8001_TCP=address,
            PORT_8001_TCP_PROTO="tcp",
            PORT_8001_TCP_PORT="8001",
            PORT_8001_TCP_ADDR="10.0.0.11",
        )
        == {}
    )
    for name in ("PORTS", "SERVICE", "PORT_8001", "SERVICE_HOSTS"):
        with pytest.raises(InvalidOption, match=name):
            read(**{name: "x"})


def test_arguments_win():
    variables = {"URL": "host:1", "TIMEOUT": "nonsense", "TLS": "nonsense", "KEEPALIVE_TIME": "?"}
    overrides = {"url": "other:2", "timeout": None, "tls": None, "keepalive": None, "busy_poll": 0}
    assert settings(overrides=overrides, **variables) == overrides
    assert settings(overrides={"url": "other:2"}) == {"url": "other:2"}
    assert settings(overrides={"timeout": 1}, URL="host:1", CHANNEL="grpc") == {
        "url": "host:1",
        "timeout": 1,
        "channel": "grpc",
    }
    with pytest.raises(InvalidOption, match="no such setting"):
        settings(overrides=overrides, TIMEOUTS="1")


@pytest.fixture
def no_settings(monkeypatch):
    """An environment without any, whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith("TRITON_FAST_")]:
        if name not in _NOT_SETTINGS:
            monkeypatch.delenv(name)


def test_the_environment_itself(no_settings, monkeypatch):
    monkeypatch.setenv("TRITON_FAST_URL", "host:1")
    assert settings_from_environment("TRITON_FAST_", None, {}) == {"url": "host:1"}


def test_a_client_takes_all_of_them():
    taken = set(inspect.signature(Client).parameters)
    found = read(
        TIMEOUT="1",
        CHANNEL="auto",
        HEADERS="{}",
        COMPRESSION="gzip",
        BUSY_POLL="0",
        SHARED_MEMORY="auto",
        SHARED_MEMORY_LIMIT="1G",
        KEEPALIVE_TIME="30",
        TLS="0",
    )
    assert len(found) == 9
    assert set(found) <= taken


def test_a_client_from_the_environment(no_settings, monkeypatch):
    monkeypatch.setenv("TRITON_FAST_URL", "host:1")
    with Client.from_env() as client:
        assert client.url == "host:1"
    with Client.from_env(url="host:2", timeout=1) as client:
        assert client.url == "host:2"
    with Client.from_env("MINE_", {"MINE_URL": "host:3"}) as client:
        assert client.url == "host:3"
    with pytest.raises(InvalidOption, match="MINE_URL"):
        Client.from_env(prefix="MINE_", environ={})


def test_a_client_for_coroutines_from_the_same_environment():
    environ = {"TRITON_FAST_URL": "host:1", "TRITON_FAST_BUSY_POLL": "50e-6"}
    assert Client.from_env(environ=environ).url == "host:1"
    assert AsyncClient.from_env(environ=environ).url == "host:1"
    with pytest.raises(TypeError, match="busy_poll"):
        AsyncClient.from_env(environ=environ, busy_poll=0)
