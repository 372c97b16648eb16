"""Meetings of a client with a server that misbehaves: what the tests on both sides begin with."""

from __future__ import annotations

import contextlib

import numpy as np
from support.model_calls import ONE
from support.rogue import Rogue

from triton_fast import Client
from triton_fast.protocol.messages import message_class

# How much later than its deadline a call may end on a machine that is busy with other things.
SLACK = 10.0
# A call that should not need its deadline.
LONG = 30.0


def output(count):
    return np.arange(count, dtype=np.float32)


def response(count=2):
    message = message_class("ModelInferResponse")(model_name="m")
    message.outputs.add(name="OUTPUT0", datatype="FP32", shape=[count])
    message.raw_output_contents.append(output(count).tobytes())
    return message.SerializeToString()


GOOD = response()


def assert_good(client):
    assert client.infer("m", ONE, timeout=LONG)["OUTPUT0"].tolist() == [0, 1]


@contextlib.contextmanager
def meeting(script, *, payload=GOOD, client=None, usable=True, **server):
    """A rogue server and a client of it, which has to be usable afterwards.

    By then, the server is as it should be to new connections; what it does on those that there are
    is up to its script.
    """
    with (
        Rogue(script, payload, **server) as rogue,
        Client(
            rogue.url, channel="native", timeout=LONG, shared_memory=False, **client or {}
        ) as caller,
    ):
        yield rogue, caller
        rogue.reform()
        if usable:
            assert_good(caller)
