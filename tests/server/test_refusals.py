"""Calls that a server refuses, and what the errors say that its own texts do not."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from support.blocking_face import BlockingFace
from support.model_calls import square

from triton_fast import Client, InvalidArgument, InvalidTensor, NotFound, Unimplemented
from triton_fast.client import submission

pytestmark = pytest.mark.server

ONE = np.zeros(1, np.float32)


@pytest.fixture(params=[Client, BlockingFace], ids=["blocking", "asyncio"])
def refused_client(server, channel, request):
    with request.param(server.grpc_url, channel=channel, timeout=30) as client:
        yield client


@pytest.mark.parametrize(
    ("inputs", "outputs", "says"),
    [
        ({"INPUTO": ONE}, None, "no input 'INPUTO'; it takes 'INPUT0'"),
        ({}, None, "also takes 'INPUT0', and the call has no inputs"),
        ({"INPUT0": ONE}, ["NOPE"], "no output 'NOPE'; it gives 'OUTPUT0'"),
        (
            {"INPUT0": ONE.astype(np.float64)},
            None,
            r"is FP32, and the tensor is FP64; array.astype\(numpy.float32\) makes it so",
        ),
        ({"INPUT0": ONE.reshape(1, 1)}, None, r"has shape \[-1\] .* the tensor has \[1, 1\]"),
    ],
    ids=["input", "none", "output", "datatype", "shape"],
)
def test_tensors_are_held_against_the_signature(refused_client, inputs, outputs, says):
    """Before they are sent if it is known, and when they were refused if it was not."""
    for _ in range(2):
        with pytest.raises(InvalidTensor, match=says):
            refused_client.infer("identity_cpp", inputs, outputs=outputs)
    assert refused_client.infer("identity_cpp", {"INPUT0": ONE})["OUTPUT0"] == ONE


def test_names_of_models(refused_client):
    for call in (refused_client.infer, lambda model, inputs: refused_client.model(model)(inputs)):
        with pytest.raises(NotFound, match=r"\(the server has 'identity_cpp'.* and \d+ more\)"):
            call("identity_cp", {"INPUT0": ONE})
    with pytest.raises(NotFound, match=r"\(it has version 1\)"):
        refused_client.infer("identity_cpp", {"INPUT0": ONE}, model_version="9")
    with (
        refused_client.sequence("identity_cp", stream=False) as sequence,
        pytest.raises(NotFound, match="the server has 'identity_cpp'"),
    ):
        sequence.infer({"INPUT0": ONE})


def test_models_that_are_called_otherwise(refused_client):
    with pytest.raises(Unimplemented, match="call it by stream"):
        refused_client.infer("square_int32", square(1))
    inputs = {"INPUT": np.zeros(1, np.int32)}
    with pytest.raises(InvalidArgument, match="is called by sequence"):
        refused_client.infer("accumulate_direct", inputs)


def test_it_is_said_in_futures_and_streams_too(server, channel):
    with Client(server.grpc_url, channel=channel, timeout=30) as client:
        with pytest.raises(Unimplemented, match="call it by stream"):
            client.submit("square_int32", square(1)).result()
        with pytest.raises(InvalidArgument, match="is called by sequence"):
            list(client.stream("accumulate_direct", {"INPUT": np.zeros(1, np.int32)}))


def streamed(model, inputs, **more):
    """Return a call that reads a stream's only answer."""
    return lambda client: list(client.stream(model, inputs, **more))


def received(model, inputs):
    def call(client):
        with client.open_stream() as stream:
            stream.send(model, inputs)
            try:
                stream.receive()
            finally:
                stream.send("identity_cpp", {"INPUT0": ONE})
                assert stream.receive()["OUTPUT0"] == ONE

    return call


@pytest.mark.parametrize("ask", [streamed, received])
def test_streams_say_as_much(server, channel, ask):
    with Client(server.grpc_url, channel=channel, timeout=30) as client:
        with pytest.raises(NotFound, match=r"\(the server has 'identity_cpp'.* and \d+ more\)"):
            ask("identity_cp", {"INPUT0": ONE})(client)
        for _ in range(2):  # before a request is sent, once the signature is known
            with pytest.raises(InvalidTensor, match=r"array.astype\(numpy.float32\) makes it so"):
                ask("identity_cpp", {"INPUT0": ONE.astype(np.float64)})(client)


def test_streams_of_both_faces(refused_client):
    with pytest.raises(NotFound, match="the server has 'identity_cpp'"):
        streamed("identity_cp", {"INPUT0": ONE})(refused_client)
    with pytest.raises(InvalidTensor, match="no output 'NOPE'; it gives 'OUTPUT0'"):
        streamed("identity_cpp", {"INPUT0": ONE}, outputs=["NOPE"])(refused_client)
    with pytest.raises(InvalidTensor, match="no input 'INPUTO'; it takes 'INPUT0'"):
        streamed("identity_cpp", {"INPUTO": ONE})(refused_client)
    (result,) = streamed("identity_cpp", {"INPUT0": ONE})(refused_client)
    assert result["OUTPUT0"] == ONE


def test_a_future_for_which_there_is_no_thread(server, channel, monkeypatch):
    """Its error is told as it is, and not never."""
    monkeypatch.setattr(submission, "_start", lambda *_: False)
    with Client(server.grpc_url, channel=channel, timeout=30) as client:
        for _ in range(20):  # more than are explained at a time
            with pytest.raises(InvalidArgument, match="unexpected inference input 'INPUTO'"):
                client.submit("identity_cpp", {"INPUTO": ONE}).result(30)


def test_what_was_refused_is_let_go(server, channel):
    """At once, and not when garbage is collected: errors lead to all that their frames have."""
    gc.collect()
    gc.disable()
    try:
        client = Client(server.grpc_url, channel=channel, timeout=30)
        for model, name in (("identity_cpp", "INPUTO"), ("identity_cp", "INPUT0")):
            sent = np.zeros(1000, np.float32)
            gone = weakref.ref(sent)
            with pytest.raises((InvalidTensor, NotFound)):
                client.infer(model, {name: sent})
            del sent
            assert gone() is None
        client.close()
    finally:
        gc.enable()
