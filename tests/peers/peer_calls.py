"""Calls of plain bytes over either channel, for servers that know no tensors."""

from __future__ import annotations

import json
import time

import pytest
from peer_server import SERVICE
from support.channel_ends import Ending

from triton_fast.channels.base import CallOptions
from triton_fast.channels.factory import channel_factory
from triton_fast.errors import DeadlineExceeded
from triton_fast.options.headers import checked_headers
from triton_fast.protocol.grpc.queries import MessageIn, MessageOut

# How long a machine that is busy with other things may take over what takes no time.
SLACK = 10.0


class Bytes:
    """Stands for a protobuf message, in MessageOut."""

    def __init__(self, message):
        self.SerializeToString = lambda: message


class Caller:
    """A channel, and calls of plain bytes on it."""

    def __init__(self, target, channel, keepalive=None):
        self.channel = channel_factory(
            target, channel, tls=None, keepalive=keepalive, busy_poll=0.0, options=None
        )()

    def __call__(self, method, message=b"", *, timeout=30.0, headers=None, compression=None):
        answer = MessageIn("")
        options = self.options(timeout, headers, compression)
        self.channel.call(SERVICE + method, MessageOut(Bytes(message)), answer, options)
        return bytes(answer._encoded)

    def start(self, method, message=b"", *, timeout=30.0):
        answer, ending = MessageIn(""), Ending()
        options = self.options(timeout)
        call = self.channel.start(
            SERVICE + method, MessageOut(Bytes(message)), answer, options, ending
        )
        return call, ending

    @staticmethod
    def options(timeout, headers=None, compression=None):
        deadline = None if timeout is None else time.monotonic_ns() + round(timeout * 1e9)
        return CallOptions(deadline, checked_headers(headers), compression, "a call")


def give_up_by_deadline(call):
    """Let a deadline pass in a call that the server is at, which has to hear of it."""
    call("Echo", b"so that there is a connection")
    for timeout in (0.2, 2.0, 20.0):  # on a machine that is busy the first may be too short
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            call("Sleep", b"60", timeout=timeout)
        assert time.monotonic() - started < timeout + SLACK
        if call("Begun", b"5") == b"yes":
            assert call("GivenUp", b"30") == b"yes"
            return
    pytest.fail("no call was at the server before its deadline")


def told(call, **options):
    """Return what peer_server.py was told with a call."""
    return json.loads(call("Told", **options))
