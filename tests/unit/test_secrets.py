"""What may be a key, a token or a password is in no error, whatever it was given as."""

from __future__ import annotations

import pickle
import traceback
from pathlib import Path

import pytest

from triton_fast import TLS, AsyncClient, Client, InvalidOption, TritonFastError
from triton_fast.channels.base import CallOptions
from triton_fast.options.environment import _NAMES, settings_from_environment

SECRET = "hunter2"
BEARER = f"Bearer {SECRET}"
CERTIFICATE = f"-----BEGIN CERTIFICATE-----\n{SECRET}\n-----END CERTIFICATE-----\n"
KEY = f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n"

HEADERS = [
    BEARER,
    BEARER.encode(),
    f"authorization: {BEARER}",
    ("authorization", BEARER),
    ["authorization", BEARER],
    [f"authorization: {BEARER}"],
    [("authorization", BEARER, "more")],
    [("authorization", "ok"), (BEARER,)],
    [{"name": BEARER, "value": "authorization"}],
    [{BEARER, "authorization"}],
    {BEARER: "authorization"},
    {BEARER.encode(): "authorization"},
    {"authorization": [BEARER]},
    {"authorization": BEARER.encode()},
    {"authorization": f"{BEARER}é"},
    {"authorization": f"{BEARER}\n"},
    {"token-bin": BEARER},
    {"authorization": {"Bearer": SECRET}},
]


def told(error: BaseException) -> str:
    """Return all that somebody sees of an error who prints, logs or pickles it."""
    # Of this file no line has a secret in it that is not a name's.
    shown = traceback.format_exception(error)
    return "".join([*shown, repr(error), repr(pickle.dumps(error)), repr(vars(error))])


def refused(make, *arguments, **options):
    with pytest.raises(InvalidOption) as caught:
        make(*arguments, **options)
    text = told(caught.value)
    assert SECRET not in text
    return str(caught.value)


@pytest.mark.parametrize("face", [Client, AsyncClient])
@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_headers(face, number):
    text = refused(face, "localhost:1", headers=HEADERS[number])
    assert "header" in text


@pytest.mark.parametrize("number", range(len(HEADERS)))
def test_what_a_hook_returns(number):
    with Client("localhost:1", header_hook=lambda call: HEADERS[number]) as client:
        refused(client.is_live)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("header_hook", {"authorization": BEARER}, "header_hook must be callable, got dict"),
        ("header_hook", BEARER, "header_hook must be callable, got str"),
        ("tls", SECRET, "tls must be a TLS or True, got str"),
        ("tls", KEY.encode(), "tls must be a TLS or True, got bytes"),
        ("tls", {"private_key": KEY}, "tls must be a TLS or True, got dict"),
        ("channel_options", BEARER, "channel_options must be a mapping"),
        ("channel_options", ["ab", BEARER], "channel_options must be a mapping"),
        ("channel_options", {"grpc.x": [BEARER]}, "channel option grpc.x"),
        ("channel_options", {"grpc.x": f"{BEARER}\ud800"}, "channel option grpc.x"),
    ],
)
@pytest.mark.parametrize("face", [Client, AsyncClient])
def test_arguments_of_a_client(face, name, value, says):
    assert says in refused(face, "localhost:1", **{name: value})


@pytest.mark.parametrize(
    "url",
    [
        f"{SECRET}@host:8001",
        f"host:8001&token={SECRET}",
        f"host:8001;{SECRET}",
        f"user:{SECRET}",
        BEARER,
        f"user:{SECRET}@host:8001",
        f"user:{SECRET}@host",
        f"dns:///user:{SECRET}@host:8001",
        f"dns://{SECRET}@8.8.8.8/host:8001",
        f"ipv4:{SECRET}@10.0.0.1:8001",
        f"xds:///user:{SECRET}@service",
        f"http://user:{SECRET}@host:8001",
        f"https://{SECRET}@host",
        f"https://user:{SECRET}@[::1]:8001/v2@3",
        f"https://host:8001/hooks/{SECRET}",
        f"https://host:8001?token={SECRET}",
        f"host:8001?token={SECRET}",
        f"host?token={SECRET}",
        f"dns:///host:8001#{SECRET}",
        f"user:{SECRET}@host:8001\n",
    ],
)
def test_targets(url):
    refused(Client, url)
    refused(AsyncClient, url)


def test_the_environment():
    for name in ("TLS", "TLS_PRIVATE_KEY"):
        for value in (SECRET, KEY.replace("PRIVATE", "PUBLIC")):
            variables = {"TRITON_FAST_URL": "host:1", f"TRITON_FAST_{name}": value}
            text = refused(settings_from_environment, "TRITON_FAST_", variables, {})
            assert text.startswith("TRITON_FAST_TLS")
    # Nothing that is as long as a key is shown, whatever variable it came into by mistake. But for
    # the address: a host's name may be as long.
    for name in set(_NAMES) - {"URL", "AUTHORITY"}:
        variables = {"TRITON_FAST_URL": "host:1", f"TRITON_FAST_{name}": SECRET * 20}
        if name != "TLS_SERVER_NAME":
            refused(settings_from_environment, "TRITON_FAST_", variables, {})
    refused(settings_from_environment, "TRITON_FAST_", [("TRITON_FAST_TLS", KEY)], {})
    refused(settings_from_environment, "TRITON_FAST_", {"TRITON_FAST_TLS": KEY.encode()}, {})


def test_tls_that_cannot_be_read(tmp_path):
    """What was given as a path may be the key itself, in some form that is no PEM."""
    chain = tmp_path / "chain.pem"
    chain.write_text(CERTIFICATE)
    for given in (SECRET, f"{SECRET}\0", SECRET * 1000, f"/{SECRET}/abc="):
        tls = TLS(private_key=given, certificate_chain=chain)
        assert SECRET not in repr(tls)
        refused(tls.read)
        refused(Client, "localhost:1", tls=tls)
        refused(TLS(root_certificates=given).read)
    refused(TLS, private_key=KEY, certificate_chain=CERTIFICATE)
    refused(TLS, private_key=[KEY], certificate_chain=CERTIFICATE.encode())
    # What is there is named.
    with pytest.raises(
        InvalidOption, match=r"no private key in PEM form in private_key in .*chain"
    ):
        TLS(private_key=str(chain), certificate_chain=chain).read()
    with pytest.raises(InvalidOption, match=r"cannot read root_certificates from .*none\.pem"):
        TLS(root_certificates=tmp_path / "none.pem").read()


def test_reprs():
    bundle = (CERTIFICATE + KEY).encode()
    tls = TLS(bundle, bundle, bundle, "triton.internal")
    for shown in (tls, tls.read(), CallOptions(headers=(("authorization", BEARER),))):
        assert SECRET not in repr(shown)
    size = len(bundle)
    assert repr(tls) == (
        f"TLS(root_certificates=<{size} bytes>, private_key=<{size} bytes>, "
        f"certificate_chain=<{size} bytes>, server_name='triton.internal')"
    )
    assert repr(TLS(root_certificates=Path("ca.pem"))) == "TLS(root_certificates='ca.pem')"
    with Client("localhost:1", headers={"authorization": BEARER}) as client:
        made = (client, client._endpoint, client._endpoint._settings, client.open_stream())
        for shown in (*made, client.model("m"), client.sequence("m"), client.generate("m", "Hi")):
            assert SECRET not in repr(shown)
        with pytest.warns(UserWarning, match="authorization") as caught:
            pickle.dumps(client)
        assert all(SECRET not in str(warning.message) for warning in caught)


@pytest.mark.parametrize("channel", ["native", "grpc"])
def test_errors_of_calls(channel):
    """One that reaches no server, with secrets in all places where they belong."""
    with Client(
        "localhost:1",
        channel=channel,
        headers={"a": BEARER},
        header_hook=lambda call: {"b": BEARER},
    ) as client:
        with pytest.raises(TritonFastError) as caught:
            client.server_metadata(headers={"c": BEARER}, timeout=5)
        assert SECRET not in told(caught.value)
