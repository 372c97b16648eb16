"""Clients and models in a pickle: which settings travel, what is said of secrets, what cannot."""

from __future__ import annotations

import copy
import ctypes
import pickle
import warnings

import numpy as np
import pytest

from triton_fast import TLS, AsyncClient, Client, Keepalive, RequestedOutput

SECRET = "hunter2"
HEADERS = {"authorization": f"Bearer {SECRET}"}
KEY = f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----\n".encode()
CERTIFICATE = b"-----BEGIN CERTIFICATE-----\n"
FACES = pytest.mark.parametrize("face", [Client, AsyncClient])


def hook(call):
    return {"x-call": call}


def again(value):
    return pickle.loads(pickle.dumps(value))


def settings(client):
    """Return what a client's endpoint is made of, as something that can be compared."""
    url, *rest = client._endpoint.__reduce__()[1]
    made = [url]
    for part in rest:
        if hasattr(part, "keywords"):
            made.append((part.func, part.args, part.keywords))
        elif part is not None:
            made.append(tuple(getattr(part, name) for name in part.__slots__ if name != "_plain"))
    return made


@FACES
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"timeout": 5.0, "channel": "grpc", "header_hook": hook, "compression": "gzip"},
        {"keepalive": Keepalive(30), "authority": "triton.example", "shared_memory": False},
        {"tls": TLS(server_name="triton.example"), "channel_options": {"grpc.lb_policy_name": "x"}},
        {"channel": "native", "shared_memory": True, "shared_memory_limit": 1 << 20},
    ],
    ids=lambda arguments: next(iter(arguments), "none"),
)
@pytest.mark.parametrize("make", [again, copy.deepcopy], ids=["pickle", "deepcopy"])
def test_its_settings_travel(face, arguments, make):
    client = face("localhost:1", **arguments)
    other = make(client)
    assert type(other) is face
    assert other._endpoint is not client._endpoint
    assert settings(other) == settings(client)
    assert repr(other) == repr(client)
    for one in (client, other):
        if face is Client:
            one.close()


@FACES
def test_models_travel_with_their_client(face):
    client = face("localhost:1", shared_memory=False)
    outputs = (name for name in ["a", RequestedOutput("b", class_count=3)])
    model = client.model("m", "2", outputs=outputs, parameters={"p": 1}, queue_timeout=0.5)
    pair = again((client, model))
    assert pair[1]._endpoint is pair[0]._endpoint
    alone = again(model)
    for other in (pair[1], alone, copy.copy(model)):
        assert type(other) is type(model)
        assert repr(other) == repr(model)
        before, after = model._prepared, other._prepared
        for name in ("requested", "settings", "call", "output_names", "codec"):
            assert getattr(after, name) == getattr(before, name)
        inputs = [("INPUT0", "FP32", (1,), np.zeros(1, np.float32))]
        rendered = [encoded(one.header, inputs) for one in (before, after)]
        assert rendered[0] == rendered[1]


def encoded(header, inputs):
    request = header.request("id")
    for tensor in inputs:
        request.add_input(*tensor)
    message = b"".join(ctypes.string_at(*segment) for segment in request.segments())
    request.release()
    return message


@FACES
def test_a_copy_shares_the_connection(face):
    client = face("localhost:1", shared_memory=False)
    assert copy.copy(client)._endpoint is client._endpoint


@FACES
def test_what_it_carries_in_clear_is_said(face):
    client = face("localhost:1", headers=HEADERS, shared_memory=False)
    with pytest.warns(UserWarning, match=r"its headers \(authorization\)") as caught:
        pickled = pickle.dumps(client)
    assert SECRET.encode() in pickled
    assert caught[0].filename == __file__
    assert SECRET not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy.deepcopy(client)  # which leaves the process in no form
        carried = pickle.dumps(face("localhost:1", header_hook=hook, shared_memory=False))
        assert SECRET.encode() not in carried
    assert pickle.loads(pickled)._endpoint._settings._headers == client._endpoint._settings._headers


def test_a_private_key_is_said_too(tmp_path):
    tls = TLS(private_key=KEY, certificate_chain=CERTIFICATE)
    with pytest.warns(UserWarning, match="its private_key") as caught:
        assert again(tls) == tls
    assert SECRET not in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert copy.copy(tls) == copy.deepcopy(tls) == tls
        path = tmp_path / "key.pem"
        path.write_bytes(KEY)
        assert again(TLS(private_key=path, certificate_chain=CERTIFICATE)).private_key == path


@pytest.mark.parametrize("make", [pickle.dumps, copy.copy, copy.deepcopy])
def test_calls_do_not_travel(make):
    with Client("localhost:1") as client:
        calls = [client.open_stream(), client.sequence("m"), client.generate("m", "Hi")]
        for call in calls:
            with pytest.raises(TypeError, match=f"^{type(call).__name__} stands for a call of"):
                make(call)
            call.close()
    client = AsyncClient("localhost:1")
    calls = [client.open_stream(), client.stream("m", {}), client.sequence("m")]
    for call in [*calls, client.generate("m", "Hi")]:
        with pytest.raises(TypeError, match=f"^{type(call).__name__} stands for a call of this"):
            make(call)


class Tagged(Client):
    tag = None


@pytest.mark.parametrize("make", [again, copy.copy, copy.deepcopy])
def test_a_subclass_keeps_what_is_its_own(make):
    client = Tagged("localhost:1", shared_memory=False)
    client.tag = [9]
    other = make(client)
    assert (type(other), other.tag, other.url) == (Tagged, [9], client.url)
