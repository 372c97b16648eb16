"""The native channel against a server that misbehaves: a typed error, in time, and no harm done."""

from __future__ import annotations

import contextlib
import gzip
import queue
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent import futures

import numpy as np
import pytest
from rogue_meetings import GOOD, LONG, SLACK, assert_good, meeting, output, response
from support import rogue as h2
from support.model_calls import ONE
from support.process import resident
from support.rogue import END_HEADERS, END_STREAM, Rogue

from triton_fast import (
    Cancelled,
    Client,
    ClosedError,
    DeadlineExceeded,
    Internal,
    Keepalive,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ServerError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
    WireError,
)
from triton_fast.protocol.messages import message_class

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("loaded", "nothing_is_left")]


def fails(client, error, match=None, **options):
    """A call ends with just this error, well before its deadline; return the error."""
    started = time.monotonic()
    with pytest.raises(error, match=match) as caught:
        client.infer("m", ONE, **options)
    assert time.monotonic() - started < LONG / 2
    assert type(caught.value) is error
    if issubclass(error, ServerError):
        assert caught.value.call == "ModelInfer('m')"
        assert caught.value.target == client.url
    return caught.value


def expires(client, timeout, match="the deadline passed"):
    """A call ends with its deadline: not before it, and not long after."""
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=match):
        client.infer("m", ONE, timeout=timeout)
    assert timeout <= time.monotonic() - started < timeout + SLACK


# In pieces ----------------------------------------------------------------------------------------


def whole_answer(stream=1, payload=GOOD):
    """All that a server sends for a first call."""
    return h2.settings() + h2.frame(h2.SETTINGS, h2.ACK, 0) + h2.answer(stream, payload)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_cut_at_every_byte(reset):
    sent = whole_answer()

    def script(peer):
        if peer.number >= len(sent):
            peer.start()
            peer.serve()
        # The request first, or the kernel answers it with a reset of its own.
        peer.polite = False
        peer.receive(len(h2.PREFACE))
        peer.read_until(h2.DATA)
        peer.send(sent[: peer.number])
        peer.close(reset=reset)

    with meeting(script, raw=True, always=True) as (rogue, client):
        for size in range(len(sent)):
            assert rogue.connections == size
            fails(
                client, Unavailable, "the server closed the connection|Connection reset|Broken pipe"
            )


def test_one_byte_at_a_time():
    payload = response(1000)

    def script(peer):
        stream = peer.request().stream
        for byte in h2.answer(stream, payload):
            peer.send(bytes([byte]))

    with meeting(script, payload=GOOD) as (_, client):
        assert np.array_equal(client.infer("m", ONE)["OUTPUT0"], output(1000))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 10, 4096])
def test_pieces_of_any_size(size):
    fields = (("grpc-message", "x" * 40_000), ("grpc-status", "0"))
    payload = response(30_000)
    sent = []

    def script(peer):
        stream = peer.request().stream
        whole = (
            h2.headers(stream, h2.OK_HEADERS)
            + h2.data(stream, h2.message(payload), size=1000)
            + h2.headers(stream, fields, END_STREAM, size=1000)
        )
        sent.append(len(whole))
        # In one send, and taken apart on the way: the client's buffer is larger than its socket's.
        at = 0
        while at < len(whole):
            step = size if at % 16384 < 400 else 16384 - at % 16384
            peer.send(whole[at : at + step])
            at += step

    with meeting(script) as (_, client):
        assert np.array_equal(client.infer("m", ONE)["OUTPUT0"], output(30_000))


def test_bytes_that_trickle():
    """Something comes again and again, and the deadline holds."""

    def script(peer):
        for byte in h2.answer(peer.request().stream, GOOD):
            peer.send(bytes([byte]))
            peer.wait(0.1)

    with meeting(script) as (rogue, client):
        expires(client, 0.7)
        rogue.hang_up()


# Frames that should not be there ------------------------------------------------------------------

BROKEN = "the server does not keep to HTTP/2"
WRONG_FRAMES = {
    "trailers first": (
        lambda s: h2.headers(s, h2.OK_TRAILERS, END_STREAM),
        Internal,
        BROKEN,
    ),
    "data first": (lambda s: h2.data(s, h2.message(GOOD)), Unavailable, BROKEN),
    "data at the end first": (
        lambda s: h2.data(s, h2.message(GOOD), END_STREAM),
        Unavailable,
        BROKEN,
    ),
    "headers twice": (
        lambda s: h2.headers(s, h2.OK_HEADERS) * 2,
        Internal,
        BROKEN,
    ),
    "trailers that do not end": (
        lambda s: h2.headers(s, h2.OK_HEADERS) + h2.headers(s, h2.OK_TRAILERS),
        Internal,
        BROKEN,
    ),
    "pseudo header in trailers": (
        lambda s: h2.headers(s, h2.OK_HEADERS) + h2.headers(s, h2.OK_HEADERS, END_STREAM),
        Internal,
        BROKEN,
    ),
    "status in letters": (
        lambda s: h2.headers(s, ((":status", "abc"),), END_STREAM),
        Internal,
        BROKEN,
    ),
    "name in capitals": (
        lambda s: h2.headers(s, (*h2.OK_HEADERS, ("X-Capital", "1"))),
        Internal,
        f"{BROKEN}.*X-Capital",
    ),
    "connection header": (
        lambda s: h2.headers(s, (*h2.OK_HEADERS, ("connection", "close"))),
        Internal,
        BROKEN,
    ),
    "another content-length": (
        lambda s: (
            h2.headers(s, (*h2.OK_HEADERS, ("content-length", "7")))
            + h2.data(s, h2.message(GOOD))
            + h2.headers(s, h2.OK_TRAILERS, END_STREAM)
        ),
        Internal,
        BROKEN,
    ),
    "data on an idle stream": (lambda s: h2.data(s + 98, b"x"), Unavailable, BROKEN),
    "headers on an idle stream": (
        lambda s: h2.headers(s + 98, h2.OK_HEADERS),
        Unavailable,
        BROKEN,
    ),
    "headers on a stream of the server's": (
        lambda s: h2.headers(2, h2.OK_HEADERS),
        Unavailable,
        BROKEN,
    ),
    "headers on no stream": (lambda s: h2.headers(0, h2.OK_HEADERS), Unavailable, BROKEN),
    "data on no stream": (lambda s: h2.data(0, b"x"), Unavailable, BROKEN),
    "reset of an idle stream": (lambda s: h2.reset(s + 98, 8), Unavailable, BROKEN),
    "window of an idle stream": (lambda s: h2.window_update(s + 98, 1), Unavailable, BROKEN),
    "push promise": (
        lambda s: h2.frame(
            h2.PUSH_PROMISE,
            END_HEADERS,
            s,
            struct.pack(">I", 2) + h2.block(((":method", "GET"), (":path", "/"))),
        ),
        Unavailable,
        f"{BROKEN}.*push",
    ),
    "continuation of nothing": (
        lambda s: h2.frame(h2.CONTINUATION, END_HEADERS, s, h2.block(h2.OK_HEADERS)),
        Unavailable,
        BROKEN,
    ),
    "continuation of another stream": (
        lambda s: h2.frame(h2.HEADERS, 0, s, b"") + h2.frame(h2.CONTINUATION, END_HEADERS, s + 2),
        Unavailable,
        BROKEN,
    ),
    "a ping in the midst of headers": (
        lambda s: h2.frame(h2.HEADERS, 0, s, h2.block(h2.OK_HEADERS)) + h2.ping(),
        Unavailable,
        BROKEN,
    ),
    "headers shorter than their padding": (
        lambda s: h2.frame(h2.HEADERS, END_HEADERS | h2.PADDED, s, b"\xff"),
        Unavailable,
        BROKEN,
    ),
    "split headers shorter than their padding": (
        lambda s: h2.frame(h2.HEADERS, h2.PADDED, s, b"\xff"),
        Unavailable,
        BROKEN,
    ),
    "data shorter than its padding": (
        lambda s: (
            h2.headers(s, h2.OK_HEADERS) + h2.frame(h2.DATA, h2.PADDED, s, b"\xff" + b"x" * 9)
        ),
        Unavailable,
        BROKEN,
    ),
    "an index that is not in the table": (
        lambda s: h2.frame(h2.HEADERS, END_HEADERS, s, b"\xff\xff\x7f"),
        Unavailable,
        BROKEN,
    ),
    "a header block that is cut off": (
        lambda s: h2.frame(h2.HEADERS, END_HEADERS, s, b"\x00\x07:status\x7f200"),
        Unavailable,
        BROKEN,
    ),
    "a table larger than ours": (
        lambda s: h2.frame(h2.HEADERS, END_HEADERS, s, b"\x3f\xff\xff\x7f"),
        Unavailable,
        BROKEN,
    ),
    "window update of nothing": (lambda s: h2.window_update(0, 0), Unavailable, BROKEN),
    "window beyond its limit": (lambda s: h2.window_update(0, 0x7FFFFFFF), Unavailable, BROKEN),
    "settings cut off": (lambda s: h2.frame(h2.SETTINGS, 0, 0, b"12345"), Unavailable, BROKEN),
    "settings on a stream": (lambda s: h2.frame(h2.SETTINGS, 0, s), Unavailable, BROKEN),
    "settings acknowledged at length": (
        lambda s: h2.frame(h2.SETTINGS, h2.ACK, 0, b"123456"),
        Unavailable,
        BROKEN,
    ),
    "too large a window": (
        lambda s: h2.settings([(h2.INITIAL_WINDOW_SIZE, 1 << 31)]),
        Unavailable,
        BROKEN,
    ),
    "too small a frame": (lambda s: h2.settings([(h2.MAX_FRAME_SIZE, 5)]), Unavailable, BROKEN),
    "too large a frame": (
        lambda s: h2.settings([(h2.MAX_FRAME_SIZE, 1 << 24)]),
        Unavailable,
        BROKEN,
    ),
    "a push that is switched on": (
        lambda s: h2.settings([(h2.ENABLE_PUSH, 1)]),
        Unavailable,
        BROKEN,
    ),
    "a ping of seven bytes": (lambda s: h2.ping(b"1234567"), Unavailable, BROKEN),
    "goaway on a stream": (
        lambda s: h2.frame(h2.GOAWAY, 0, s, bytes(8)),
        Unavailable,
        BROKEN,
    ),
    "a reset of two bytes": (lambda s: h2.frame(h2.RST_STREAM, 0, s, b"xx"), Unavailable, BROKEN),
}


@pytest.mark.parametrize("case", WRONG_FRAMES)
def test_frames_that_should_not_be_there(case):
    sent, error, match = WRONG_FRAMES[case]

    def script(peer):
        peer.send(sent(peer.request().stream))

    with meeting(script) as (_, client):
        fails(client, error, match)


def test_a_server_is_told_what_was_wrong():
    told = queue.SimpleQueue()

    def script(peer):
        peer.send(h2.data(peer.request().stream + 98, b"x"))
        told.put(peer.read_until(h2.GOAWAY))

    with meeting(script) as (_, client):
        fails(client, Unavailable, BROKEN)
        payload = told.get(timeout=LONG).payload
    assert struct.unpack(">II", payload[:8]) == (0, 1)  # PROTOCOL_ERROR


def test_frames_that_are_odd_and_allowed():
    def script(peer):
        stream = peer.request().stream
        fields = h2.block(h2.OK_HEADERS)
        padded = b"\x05" + b"\x00\x00\x00\x00\x10" + fields + b"\0" * 5
        peer.send(
            h2.frame(0xBE, 0xFF, stream, b"of a type that nobody knows")
            + h2.settings([(0x99, 7)])
            + h2.frame(h2.HEADERS, END_HEADERS | h2.PADDED | h2.WITH_PRIORITY, stream, padded)
            + h2.frame(h2.PRIORITY, 0, stream, b"\0\0\0\0\1")
            + h2.data(stream, b"")
            + h2.frame(h2.DATA, h2.PADDED, stream, b"\x03" + h2.message(GOOD) + b"\0\0\0")
            + h2.window_update(0, 1)
            + h2.headers(stream, (("x-empty", ""), *h2.OK_TRAILERS), END_STREAM)
        )

    with meeting(script) as (_, client):
        assert_good(client)


def test_an_answer_goes_before_what_is_wrong_after_it():
    def script(peer):
        peer.send(h2.answer(peer.request().stream, GOOD) + h2.data(0, b"x"))
        peer.wait()

    with meeting(script) as (_, client):
        assert_good(client)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_informational_headers_first(count):
    def script(peer):
        stream = peer.request().stream
        early = h2.headers(stream, ((":status", "103"), ("grpc-status", "13"), ("link", "<x>")))
        peer.send(early * count + h2.answer(stream, GOOD))

    with meeting(script) as (_, client):
        assert_good(client)


# Headers ------------------------------------------------------------------------------------------

HUFFMAN = {"0": (0b00000, 5), "a": (0b00011, 5), "e": (0b00101, 5), "x": (0b1111001, 7)}


def huffman(text):
    bits = "".join(format(HUFFMAN[c][0], f"0{HUFFMAN[c][1]}b") for c in text)
    bits += "1" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


@pytest.mark.parametrize("representation", [0x00, 0x10, 0x40])
@pytest.mark.parametrize("size", [20_000, 60_000])
def test_a_long_message(size, representation):
    text = ("Traceback %E2%9C%93 " * (size // 20 + 1))[:size]

    def script(peer):
        stream = peer.request().stream
        fields = h2.block((("x-first", "1"),), 0x40)
        fields += h2.block((("grpc-message", text),), representation)
        fields += h2.block((("grpc-status", "8"), ("x-last", "y" * 100)), 0x40)
        pieces = [fields[at : at + 16384] for at in range(0, len(fields), 16384)]
        peer.send(
            h2.headers(stream, h2.OK_HEADERS)
            + h2.frame(h2.HEADERS, END_STREAM, stream, pieces[0])
            + b"".join(h2.frame(h2.CONTINUATION, 0, stream, piece) for piece in pieces[1:])
            + h2.frame(h2.CONTINUATION, END_HEADERS, stream)
        )
        # The table has to be right afterwards: its entries are used by their numbers.
        stream = peer.request().stream
        indexed = b"\xbe\xbf" + (b"" if representation == 0x40 else b"\xc0")
        peer.send(
            h2.headers(stream, h2.OK_HEADERS)
            + h2.frame(h2.HEADERS, END_HEADERS | END_STREAM, stream, indexed)
        )

    with meeting(script) as (rogue, client):
        error = fails(client, ResourceExhausted, "Traceback ✓")
        assert error.message == text.replace("%E2%9C%93", "✓")
        # x-last and grpc-status; the long value threw out whatever was before it.
        fails(client, ResourceExhausted)
        assert rogue.connections == 1


def test_a_long_message_in_huffman_code():
    text = "a0xe" * 20_000  # more than 64 KiB once it is decoded

    def script(peer):
        stream = peer.request().stream
        coded = huffman(text)
        fields = b"\x00\x0cgrpc-message" + h2.integer(len(coded), 7, 0x80) + coded
        fields += h2.block((("grpc-status", "5"),))
        peer.send(h2.headers(stream, h2.OK_HEADERS))
        peer.send(h2.frame(h2.HEADERS, END_HEADERS | END_STREAM, stream, fields))

    with meeting(script) as (rogue, client):
        assert fails(client, NotFound).message == text
        assert_good(client)
        assert rogue.connections == 1


def test_many_headers():
    fields = tuple((f"x-{number}", "y" * 50) for number in range(700))

    def script(peer):
        stream = peer.request().stream
        peer.send(
            h2.headers(stream, (*h2.OK_HEADERS, *fields))
            + h2.data(stream, h2.message(GOOD))
            + h2.headers(stream, (*fields, *h2.OK_TRAILERS), END_STREAM)
        )

    with meeting(script) as (rogue, client):
        assert_good(client)
        assert_good(client)
        assert rogue.connections == 1


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ((("grpc-message", "x" * 65_537),), "a header of more than 64 KiB"),
        (tuple(("x-many", "y" * 1000) for _ in range(200)), "more than 128 KiB of headers"),
    ],
    ids=["one", "many"],
)
@pytest.mark.parametrize("frame", [16_384, 1 << 20])
def test_more_headers_than_anybody_needs(fields, match, frame):
    def script(peer):
        stream = peer.request().stream
        peer.send(h2.headers(stream, h2.OK_HEADERS))
        trailers = (("grpc-status", "5"), *fields)
        peer.send(h2.headers(stream, trailers, END_STREAM, size=frame))

    with meeting(script) as (_, client):
        fails(client, ResourceExhausted, match)


def test_few_bytes_that_stand_for_many_headers():
    def script(peer):
        stream = peer.request().stream
        fields = h2.block((("x-large", "y" * 4000),), 0x40)
        peer.send(h2.headers(stream, h2.OK_HEADERS))
        peer.send(h2.frame(h2.HEADERS, END_HEADERS, stream, fields + b"\xbe" * 16000))

    with meeting(script) as (rogue, client):
        fails(client, ResourceExhausted, "more than 128 KiB of headers")
        assert_good(client)  # on the same connection: nothing is wrong with that
        assert rogue.connections == 1


# Lengths and messages -----------------------------------------------------------------------------


def reply(*pieces, fields=h2.OK_HEADERS, trailers=h2.OK_TRAILERS):
    def sent(stream):
        ending = h2.headers(stream, trailers, END_STREAM) if trailers is not None else b""
        return h2.headers(stream, fields) + h2.data(stream, b"".join(pieces)) + ending

    return sent


WRONG_MESSAGES = {
    "announces more than comes": (
        reply(h2.message(GOOD, length=len(GOOD) + 1)),
        Internal,
        "ends in the middle of its message",
    ),
    "announces 2 GiB": (
        reply(h2.message(GOOD, length=2**31 - 1)),
        Internal,
        "ends in the middle of its message",
    ),
    "announces 4 GiB": (reply(h2.message(GOOD, length=2**32 - 1)), WireError, "4294967295 bytes"),
    "announces less than comes": (
        reply(h2.message(GOOD, length=len(GOOD) - 1)),
        WireError,
        "ModelInferResponse",
    ),
    "goes on after its end": (reply(h2.message(GOOD), b"\0\0"), Internal, "middle of its message"),
    "a prefix cut off": (reply(b"\0\0\0"), Internal, "ends in the middle of its message"),
    "two messages": (reply(h2.message(GOOD) * 2), Internal, "more than one message"),
    "no message": (
        lambda s: h2.trailers_only(s, h2.OK_TRAILERS),
        Internal,
        "the answer has no message",
    ),
    "flags that there are not": (reply(h2.message(GOOD, flags=2)), Internal, "flags"),
    "compressed though unasked": (
        reply(
            h2.message(gzip.compress(GOOD), flags=1),
            fields=(*h2.OK_HEADERS, ("grpc-encoding", "gzip")),
        ),
        Internal,
        "compressed message though it was not asked to",
    ),
    "compressed and not said how": (
        reply(h2.message(gzip.compress(GOOD), flags=1)),
        Internal,
        "compressed message and did not say how",
    ),
    "no trailers": (
        lambda s: h2.headers(s, h2.OK_HEADERS) + h2.data(s, h2.message(GOOD), END_STREAM),
        Internal,
        "the answer ends without trailers",
    ),
    "status before the message and no trailers": (
        lambda s: (
            h2.headers(s, (*h2.OK_HEADERS, *h2.OK_TRAILERS))
            + h2.data(s, h2.message(GOOD), END_STREAM)
        ),
        Internal,
        "the answer ends without trailers",
    ),
    "trailers without a status": (
        reply(h2.message(GOOD), trailers=(("x-other", "1"),)),
        Internal,
        "the answer ends without trailers",
    ),
    "a status in letters": (
        reply(h2.message(GOOD), trailers=(("grpc-status", "fine"),)),
        Unknown,
        "grpc-status is no number: fine",
    ),
    "a status below zero": (
        reply(h2.message(GOOD), trailers=(("grpc-status", "-1"),)),
        Unknown,
        "grpc-status is no number: -1",
    ),
    "a status that nobody knows": (
        reply(h2.message(GOOD), trailers=(("grpc-status", "99"), ("grpc-message", "odd"))),
        Unknown,
        "odd",
    ),
    "an error after the message": (
        reply(h2.message(GOOD), trailers=(("grpc-status", "7"), ("grpc-message", "no"))),
        PermissionDenied,
        "PERMISSION_DENIED: no",
    ),
    "an error in the midst of the message": (
        reply(h2.message(GOOD)[:-3], trailers=(("grpc-status", "5"), ("grpc-message", "no"))),
        NotFound,
        "NOT_FOUND: no",
    ),
    "an error before the message": (
        reply(h2.message(GOOD), fields=(*h2.OK_HEADERS, ("grpc-status", "5")), trailers=()),
        NotFound,
        "NOT_FOUND",
    ),
    "another content type": (
        reply(
            b"<html>hello</html>",
            fields=((":status", "200"), ("content-type", "text/html")),
            trailers=(("x-other", "1"),),
        ),
        Unknown,
        "the answer is not gRPC: <html>hello</html>",
    ),
    "gRPC for browsers": (
        reply(
            h2.message(GOOD),
            fields=((":status", "200"), ("content-type", "application/grpc-web+proto")),
        ),
        Unknown,
        "the answer is not gRPC",
    ),
    "no content type": (reply(h2.message(GOOD), fields=((":status", "200"),)), Unknown, "not gRPC"),
}


@pytest.mark.parametrize("case", WRONG_MESSAGES)
def test_messages_that_are_wrong(case):
    sent, error, match = WRONG_MESSAGES[case]

    def script(peer):
        peer.send(sent(peer.request().stream))

    with meeting(script) as (rogue, client):
        before = resident()
        fails(client, error, match)
        assert resident() - before < 64 << 20
        assert_good(client)
        assert rogue.connections == 1  # nothing is wrong with the connection


def test_wrong_lengths_of_other_messages():
    """Management calls gather their answers, which is other code."""

    def script(peer):
        peer.send(reply(h2.message(b"x", length=2**32 - 1))(peer.request().stream))
        peer.send(reply(h2.message(b"x", length=2**31 - 1))(peer.request().stream))
        peer.send(reply(h2.message(b"\xff"))(peer.request().stream))

    with meeting(script) as (_, client):
        before = resident()
        for error, match in (
            (WireError, "4294967295 bytes long; protobuf allows 2147483647"),
            (Internal, "middle of its message"),
            (WireError, "ServerMetadataResponse"),
        ):
            with pytest.raises(error, match=match):
                client.server_metadata()
        assert resident() - before < 64 << 20


@pytest.mark.parametrize("content_type", ["application/grpc+proto", "application/grpc; charset=x"])
def test_content_types_that_are_grpc(content_type):
    fields = ((":status", "200"), ("content-type", content_type))

    def script(peer):
        peer.send(reply(h2.message(GOOD), fields=fields)(peer.request().stream))

    with meeting(script) as (_, client):
        assert_good(client)


def test_frames_longer_than_allowed():
    """Before it has acknowledged our settings, a server may send 16 KiB and no more."""

    def script(peer):
        peer.polite = False
        peer.start()
        stream = peer.read_until(h2.DATA).stream
        peer.send(h2.headers(stream, h2.OK_HEADERS))
        peer.send(h2.frame(h2.DATA, 0, stream, b"", length=(1 << 24) - 1))
        peer.wait()

    with meeting(script, raw=True) as (_, client):
        before = resident()
        fails(client, Unavailable, f"{BROKEN}.*")
        assert resident() - before < 64 << 20


def test_a_frame_that_does_not_come():
    """Sixteen megabytes announced, ten bytes sent."""

    def script(peer):
        stream = peer.request().stream
        peer.send(h2.headers(stream, h2.OK_HEADERS))
        peer.send(h2.frame(h2.DATA, 0, stream, h2.message(GOOD)[:10], length=(1 << 24) - 1))
        peer.wait()

    with meeting(script) as (rogue, client):
        expires(client, 0.3, "while the answer was arriving")
        rogue.hang_up()


# Statuses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "error", "name"),
    [
        (0x0, Internal, "NO_ERROR|without"),
        (0x1, Internal, "PROTOCOL_ERROR"),
        (0x2, Internal, "INTERNAL_ERROR"),
        (0x3, Internal, "FLOW_CONTROL_ERROR"),
        (0x4, Internal, "SETTINGS_TIMEOUT"),
        (0x5, Internal, "STREAM_CLOSED"),
        (0x6, Internal, "FRAME_SIZE_ERROR"),
        (0x7, Unavailable, "REFUSED_STREAM"),
        (0x8, Cancelled, "CANCEL"),
        (0x9, Internal, "COMPRESSION_ERROR"),
        (0xA, Internal, "CONNECT_ERROR"),
        (0xB, ResourceExhausted, "ENHANCE_YOUR_CALM"),
        (0xC, PermissionDenied, "INADEQUATE_SECURITY"),
        (0xD, Internal, "HTTP_1_1_REQUIRED"),
        (0x77, Internal, "the server reset the stream"),
    ],
)
@pytest.mark.parametrize("when", ["first", "after headers", "after the message"])
def test_a_stream_that_is_reset(code, error, name, when):
    def script(peer):
        stream = peer.request().stream
        sent = b""
        if when != "first":
            sent += h2.headers(stream, h2.OK_HEADERS)
        if when == "after the message":
            sent += h2.data(stream, h2.message(GOOD))
        peer.send(sent + h2.reset(stream, code))

    with meeting(script) as (rogue, client):
        if code == 0x7 and when == "first":
            # It was not looked at, and is sent again, on another connection.
            assert_good(client)
            assert rogue.connections == 2
            return
        fails(client, error, name)
        assert_good(client)
        assert rogue.connections == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (204, Unknown),
        (302, Unknown),
        (400, Internal),
        (401, Unauthenticated),
        (403, PermissionDenied),
        (404, Unimplemented),
        (418, Unknown),
        (429, Unavailable),
        (500, Unknown),
        (502, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
    ],
)
def test_a_proxy_that_answers_by_itself(status, error):
    page = b"<html><head><title>Oh \xff no</title></head>" + b"<!-- padding -->" * 10_000

    def script(peer):
        stream = peer.request().stream
        fields = ((":status", str(status)), ("content-type", "text/html"))
        if status == 204:
            peer.send(h2.headers(stream, fields, END_STREAM))
        else:
            peer.send(h2.headers(stream, fields) + h2.data(stream, page, END_STREAM))

    with meeting(script) as (rogue, client):
        message = fails(client, error, f"HTTP status {status}").message
        assert status == 204 or "<title>Oh . no</title>" in message
        assert len(message) < 300
        assert_good(client)
        assert rogue.connections == 1


def test_a_proxy_that_knows_grpc():
    fields = ((":status", "503"), ("content-type", "text/html"), ("grpc-status", "7"))

    def script(peer):
        peer.send(h2.headers(peer.request().stream, fields, END_STREAM))

    with meeting(script) as (_, client):
        fails(client, PermissionDenied)


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("plain", "plain"),
        ("%E2%9C%93 caf%C3%A9%0Asecond line", "✓ café\nsecond line"),
        ("100%", "100%"),
        ("%", "%"),
        ("%4", "%4"),
        ("%zz%41", "%zzA"),
        ("%ff%fe", "\ufffd\ufffd"),
        ("caf\u00e9 as it is", "café as it is"),
        (" blanks around it ", " blanks around it "),
        ("", ""),
    ],
)
def test_messages_of_errors(sent, read):
    def script(peer):
        fields = (("grpc-status", "5"), ("grpc-message", sent))
        peer.send(h2.trailers_only(peer.request().stream, fields))

    with meeting(script) as (_, client):
        assert fails(client, NotFound).message == read


# Compression --------------------------------------------------------------------------------------


def deflate(message):
    return zlib.compress(message)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", deflate)])
def test_compressed_as_asked(encoding, compress):
    payload = response(100_000)
    requests = []

    def script(peer):
        request = peer.request()
        requests.append(request.message)
        sent = h2.message(compress(payload), flags=1)
        fields = (*h2.OK_HEADERS, ("grpc-encoding", encoding))
        peer.send(reply(sent, fields=fields)(request.stream))

    with meeting(script, client={"compression": encoding}) as (rogue, client):
        result = client.infer("m", {"INPUT0": np.zeros(10_000, np.float32)})
        assert np.array_equal(result["OUTPUT0"], output(100_000))
        assert_good(client)  # and not compressed, though it might be
        assert rogue.connections == 1
    assert requests[0][0] == 1
    assert len(requests[0]) < 1000
    bits = {"gzip": 31, "deflate": 15}[encoding]
    message = message_class("ModelInferRequest").FromString(zlib.decompress(requests[0][5:], bits))
    assert message.raw_input_contents[0] == bytes(40_000)


COMPRESSED_AND_BROKEN = {
    "not gzip": (b"no gzip at all", "gzip", "cannot be decompressed"),
    "nothing": (b"", "gzip", "cut off"),
    "gzip cut off": (gzip.compress(GOOD)[:-1], "gzip", "cut off"),
    "another length": (gzip.compress(GOOD)[:-4] + b"oops", "gzip", "cannot be decompressed"),
    "more after its end": (gzip.compress(GOOD) + b"more", "gzip", "goes on after its end"),
    "deflate cut off": (deflate(GOOD)[:-1], "deflate", "cut off"),
    "deflate as gzip": (deflate(GOOD), "gzip", "cannot be decompressed"),
    "unasked": (GOOD, "snappy", "'snappy', which was not asked for"),
}


# By name: what gzip makes has the time in it, and pytest-xdist wants the same names in each worker.
@pytest.mark.parametrize("case", COMPRESSED_AND_BROKEN)
def test_compressed_and_broken(case):
    broken, encoding, match = COMPRESSED_AND_BROKEN[case]

    def script(peer):
        sent = h2.message(broken, flags=1)
        fields = (*h2.OK_HEADERS, ("grpc-encoding", encoding))
        peer.send(reply(sent, fields=fields)(peer.request().stream))

    with meeting(script, client={"compression": "gzip"}) as (_, client):
        fails(client, Internal, match)


def test_a_connection_on_which_too_much_came_is_not_used_again():
    """More may be on its way, and nothing tells where it ends."""

    def script(peer):
        stream = peer.request().stream
        once = FLOODS["informational headers"](stream)
        peer.send(once * (400_000 // len(once)))
        peer.wait(LONG)

    with meeting(script, usable=False) as (rogue, client):
        fails(client, ResourceExhausted, "more than 128 KiB of headers")
        rogue.reform()
        assert_good(client)
        assert rogue.connections == 2


# Floods -------------------------------------------------------------------------------------------

FLOODS = {
    "empty continuations": lambda s: h2.frame(h2.CONTINUATION, 0, s),
    "continuations": lambda s: h2.frame(h2.CONTINUATION, 0, s, h2.block([("x-more", "y" * 200)])),
    "settings": lambda s: h2.settings(),
    "pings": lambda s: h2.ping(),
    "pings acknowledged": lambda s: h2.ping(flags=h2.ACK),
    "empty data": lambda s: h2.data(s, b""),
    "padding": lambda s: h2.frame(h2.DATA, h2.PADDED, s, b"\xff" + b"\0" * 255),
    "windows": lambda s: h2.window_update(s, 1),
    "priorities": lambda s: h2.frame(h2.PRIORITY, 0, s, b"\0\0\0\0\1"),
    "unknown frames": lambda s: h2.frame(0xBE, 0, s, b"x" * 50),
    "informational headers": lambda s: h2.headers(s, ((":status", "103"), ("x", "y"))),
    "a page without end": lambda s: h2.data(s, b"<br>" * 4000),
}


# Who asks instead of sleeping has a loop of its own, to which it is all one what comes.
@pytest.mark.parametrize(
    ("case", "busy_poll"),
    [*((case, 0) for case in FLOODS), ("pings", 50e-6), ("a page without end", 50e-6)],
)
def test_floods(case, busy_poll):
    """They end, by the deadline at the latest, and take no memory."""

    def script(peer):
        stream = peer.request().stream
        drain = threading.Thread(target=discard, args=(peer.socket,))
        drain.start()
        if case.endswith("continuations"):
            peer.send(h2.frame(h2.HEADERS, 0, stream, h2.block(h2.OK_HEADERS)))
        elif case == "a page without end":
            peer.send(h2.headers(stream, ((":status", "200"), ("content-type", "text/html"))))
        elif case in {"empty data", "padding"}:
            peer.send(h2.headers(stream, h2.OK_HEADERS))
        once = FLOODS[case](stream)
        many = once * (200_000 // len(once))
        try:
            while True:
                peer.send(many)
        finally:
            with contextlib.suppress(OSError):
                peer.socket.shutdown(socket.SHUT_RDWR)
            drain.join()

    with meeting(script, client={"busy_poll": busy_poll}) as (_, client):
        before = resident()
        started = time.monotonic()
        with pytest.raises(ServerError) as caught:
            # Enough for the flood to have come: a connection with a trickle would be used again.
            client.infer("m", ONE, timeout=1.5)
        assert time.monotonic() - started < 1.5 + SLACK
        assert isinstance(
            caught.value, DeadlineExceeded | Unavailable | ResourceExhausted | Internal
        )
        assert resident() - before < 64 << 20


def discard(connection):
    with contextlib.suppress(OSError):
        while connection.recv(1 << 16):
            pass


@pytest.mark.parametrize("sent", [h2.ping(), h2.settings()], ids=["pings", "settings"])
def test_a_slow_flood(sent):
    """Not so fast that it is one: everything is answered, to the call's end or its deadline."""

    def answers_hundred(peer):
        peer.send(sent * 100)
        for _ in range(100):
            while (read := peer.read_frame())[:2] != (sent[3], h2.ACK):
                if read.type == h2.RST_STREAM:
                    return False
        return True

    def script(peer):
        stream = peer.request().stream
        assert all(answers_hundred(peer) for _ in range(20))
        peer.send(h2.answer(stream, GOOD))
        peer.request()
        while answers_hundred(peer):
            pass

    with meeting(script) as (_, client):
        before = resident()
        assert_good(client)
        expires(client, 0.3)
        assert resident() - before < 64 << 20


def test_a_flood_between_calls():
    flooded = threading.Event()

    def script(peer):
        peer.send(h2.answer(peer.request().stream, GOOD))
        drain = threading.Thread(target=discard, args=(peer.socket,))
        drain.start()
        try:
            while True:
                peer.send(h2.frame(0xBE, 0, 0, b"x" * 1000) * 100)
                flooded.set()
        finally:
            with contextlib.suppress(OSError):
                peer.socket.shutdown(socket.SHUT_RDWR)
            drain.join()

    with meeting(script) as (rogue, client):
        assert_good(client)
        assert flooded.wait(LONG)
        started = time.monotonic()
        with contextlib.suppress(DeadlineExceeded):  # unless another connection is taken
            client.infer("m", ONE, timeout=0.5)
        assert time.monotonic() - started < 0.5 + SLACK
        rogue.hang_up()


# Windows ------------------------------------------------------------------------------------------


def sent_tensor(request):
    """What a request has as its first tensor, its length having been found right."""
    flags, length = struct.unpack(">BI", request.message[:5])
    assert (flags, length) == (0, len(request.message) - 5)
    message = message_class("ModelInferRequest").FromString(request.message[5:])
    return np.frombuffer(message.raw_input_contents[0], np.float32)


def test_a_window_of_one_byte():
    got = []

    def script(peer):
        peer.send(h2.answer(peer.request().stream, GOOD))
        stream = peer.begin_request()
        peer.send(h2.window_update(stream, 1))
        got.append(peer.request(stream, window=1))
        peer.send(h2.settings([(h2.INITIAL_WINDOW_SIZE, 65_535)]) + h2.answer(stream, GOOD))

    values = output(700)
    with meeting(script, settings=[(h2.INITIAL_WINDOW_SIZE, 0)]) as (rogue, client):
        # The first call is sent before the settings can have been read.
        assert_good(client)
        assert client.infer("m", {"INPUT0": values})["OUTPUT0"].tolist() == [0, 1]
        assert_good(client)
        assert rogue.connections == 1
    assert np.array_equal(sent_tensor(got[0]), values)
    assert got[0].frames >= values.nbytes


def test_windows_of_all_sizes():
    """And frames: the settings change while five megabytes are on their way."""
    got = []

    def script(peer):
        choose = random.Random(7)
        stream = peer.begin_request()
        peer.send(h2.settings([(h2.INITIAL_WINDOW_SIZE, 5)]))  # 65530 below zero
        received = bytearray()
        credit = 0
        while True:
            read = peer.read_frame()
            if read.type != h2.DATA:
                continue
            received += read.payload
            if read.flags & END_STREAM:
                break
            credit += len(read.payload)
            assert len(read.payload) <= 1 << 20
            if choose.random() < 0.05:
                frames = choose.choice([16384, 16385, 100_000, 1 << 20])
                window = choose.choice([0, 1, 1000, 65_535, 1 << 20])
                peer.send(
                    h2.settings([(h2.MAX_FRAME_SIZE, frames), (h2.INITIAL_WINDOW_SIZE, window)])
                )
            more = choose.choice([1, 100, 16384, 200_000, 1_000_000])
            peer.send(h2.window_update(0, more) + h2.window_update(stream, more + 65_536))
        got.append(h2.Request(stream, bytes(received), 0))
        peer.send(h2.answer(stream, GOOD))

    values = output(5_000_000 // 4)
    with meeting(script) as (_, client):
        assert client.infer("m", {"INPUT0": values}, timeout=LONG)["OUTPUT0"].tolist() == [0, 1]
    assert np.array_equal(sent_tensor(got[0]), values)


def test_a_window_that_stays_shut():
    def script(peer):
        peer.send(h2.answer(peer.request().stream, GOOD))
        stream = peer.begin_request()
        assert peer.read_until(h2.RST_STREAM).stream == stream
        peer.send(h2.settings([(h2.INITIAL_WINDOW_SIZE, 65_535)]))

    with meeting(script, settings=[(h2.INITIAL_WINDOW_SIZE, 0)]) as (rogue, client):
        assert_good(client)
        expires(client, 0.3, "while the request was being sent")
        assert_good(client)
        assert rogue.connections == 2  # on the first one nothing came any more


def test_a_server_that_stops_reading():
    """Its window is open, its socket is full; the memory is the caller's again afterwards."""
    seen = []
    release = threading.Event()

    def script(peer):
        peer.send(
            h2.settings([(h2.INITIAL_WINDOW_SIZE, 2**31 - 1), (h2.MAX_FRAME_SIZE, 2**24 - 1)])
        )
        peer.send(h2.window_update(0, 2**31 - 1 - 65_535))
        peer.begin_request()
        release.wait(LONG)
        with contextlib.suppress(h2.Gone):
            while True:
                seen.append(peer.receive(1))
                seen.append(peer._rest)
                peer._rest = b""
        raise h2.Gone

    values = np.full(50 << 20, 0x11, np.uint8)
    with meeting(script) as (_, client):
        with pytest.raises(DeadlineExceeded, match="while the request was being sent"):
            client.infer("m", {"INPUT0": values}, timeout=0.5)
        values[:] = 0xEE
        release.set()
        assert_good(client)
    whole = b"".join(seen)
    assert len(whole) > 100_000
    assert b"\xee\xee" not in whole


def test_no_streams_allowed():
    allowed = threading.Event()

    def script(peer):
        peer.send(h2.answer(peer.request().stream, GOOD))
        assert peer.read_until(h2.SETTINGS).flags == h2.ACK
        assert allowed.wait(LONG)
        peer.send(h2.settings([(h2.MAX_CONCURRENT_STREAMS, 100)]))

    with meeting(script, settings=[(h2.MAX_CONCURRENT_STREAMS, 0)]) as (_, client):
        assert_good(client)
        expires(client, 0.3)
        allowed.set()


# Going away ---------------------------------------------------------------------------------------


def test_going_away_before_the_call():
    with meeting(lambda peer: peer.send(h2.goaway(0)) or peer.wait()) as (rogue, client):
        assert_good(client)
        assert rogue.connections == 2


@pytest.mark.parametrize("how", ["closed", "left open"])
def test_going_away_in_mid_call(how):
    def script(peer):
        stream = peer.begin_request()
        peer.send(h2.goaway(stream - 1))
        if how == "closed":
            peer.finish()
        peer.wait()

    with meeting(script) as (rogue, client):
        assert_good(client)
        assert rogue.connections == 2
        assert_good(client)
        assert rogue.connections == 2


def test_going_away_after_this_call():
    def script(peer):
        stream = peer.request().stream
        peer.send(h2.goaway(2**31 - 1))
        peer.be_heard()
        peer.send(h2.goaway(stream))
        peer.be_heard()
        peer.send(h2.answer(stream, GOOD))
        peer.wait()

    with meeting(script) as (rogue, client):
        assert_good(client)
        assert rogue.connections == 1
        assert_good(client)
        assert rogue.connections == 2


def test_going_away_and_not_answering():
    def script(peer):
        peer.send(h2.goaway(peer.request().stream, 0, b"max_age"))
        peer.finish()

    with meeting(script) as (rogue, client):
        fails(client, Unavailable, "(closed the connection|Connection reset).*max_age")
        assert rogue.connections == 1


def test_going_away_from_a_call_that_was_answered():
    """The answer has begun, so the server has seen the request: it is not sent again."""

    def script(peer):
        stream = peer.request().stream
        peer.send(h2.headers(stream, h2.OK_HEADERS) + h2.data(stream, h2.message(GOOD)[:9]))
        peer.send(h2.goaway(stream - 1))
        peer.wait()

    with meeting(script) as (rogue, client):
        fails(client, Unavailable, "going away")
        assert rogue.connections == 1


@pytest.mark.parametrize("what", ["closed", "reset", "goaway"])
def test_gone_between_calls(what):
    arrived = threading.Event()

    def script(peer):
        peer.send(h2.answer(peer.request().stream, GOOD))
        if what == "goaway":
            peer.send(h2.goaway(2**31 - 1))
            peer.arrive()
            arrived.set()
            peer.wait()
        if what == "reset":
            peer.close(reset=True)
        peer.finish()

    with meeting(script) as (rogue, client):
        assert_good(client)
        if what == "goaway":
            assert arrived.wait(LONG)
        else:
            rogue.wait_until_closed(0)
        assert_good(client)
        assert rogue.connections == 2


def test_closed_in_mid_request():
    def script(peer):
        peer.begin_request()
        peer.close()

    with meeting(script) as (rogue, client):
        with pytest.raises(Unavailable, match="closed the connection|Connection reset|Broken pipe"):
            client.infer("m", {"INPUT0": np.zeros(50 << 20, np.uint8)})
        assert rogue.connections == 1  # it may have been seen


@pytest.mark.parametrize("then", ["stays", "closes"])
def test_an_answer_before_the_request_is_sent(then):
    """As from a server that refuses what is too large: it reads no more of it."""

    def script(peer):
        stream = peer.begin_request()
        fields = (("grpc-status", "8"), ("grpc-message", "too large"))
        peer.send(h2.trailers_only(stream, fields))
        if then == "stays":
            peer.send(h2.reset(stream, 0) + h2.window_update(0, 65_535))
        else:
            peer.finish()

    with meeting(script) as (rogue, client):
        started = time.monotonic()
        with pytest.raises(ResourceExhausted, match="too large"):
            client.infer("m", {"INPUT0": np.zeros(50 << 20, np.uint8)})
        assert time.monotonic() - started < LONG / 2
        if then == "closes":  # the next call must not come between the answer and the end
            rogue.wait_until_closed(0)


def test_an_early_answer_that_leaves_the_connection_alone():
    def script(peer):
        stream = peer.begin_request()
        peer.send(h2.trailers_only(stream, (("grpc-status", "8"),)) + h2.window_update(0, 65_535))
        assert peer.read_until(h2.RST_STREAM).stream == stream

    with meeting(script) as (rogue, client):
        with pytest.raises(ResourceExhausted):
            client.infer("m", {"INPUT0": np.zeros(1 << 20, np.uint8)})
        assert_good(client)
        assert rogue.connections == 1


# Something else altogether ------------------------------------------------------------------------

PAGE = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno\n"
STRANGERS = {
    "HTTP/1.1": (PAGE, "the server answers in HTTP/1, so this is no gRPC port"),
    "HTTP/1.0": (PAGE.replace(b"/1.1", b"/1.0"), "the server answers in HTTP/1"),
    "the beginning of HTTP/1.1": (b"HTTP/1.", "the server answers in HTTP/1"),
    "TLS": (bytes.fromhex("15030100020246"), "the server wants TLS on this port"),
    "TLS 1.3": (bytes.fromhex("15030300020232"), "the server wants TLS on this port"),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", f"{BROKEN}|closed"),
    "Redis": (b"-ERR unknown command 'PRI'\r\n", f"{BROKEN}|closed"),
    "zeros": (bytes(1000), BROKEN),
    "noise": (random.Random(1).randbytes(100_000), f"{BROKEN}|closed"),
    "a frame that is no settings": (h2.ping() * 3, BROKEN),
    "settings acknowledged first": (h2.frame(h2.SETTINGS, h2.ACK, 0), f"{BROKEN}|closed"),
    "nothing": (b"", "said nothing before .*is its gRPC port, 8001 .*expects TLS"),
}


@pytest.mark.parametrize("then", ["closes", "stays"])
@pytest.mark.parametrize("case", STRANGERS)
def test_something_else_than_http2(case, then):
    sent, match = STRANGERS[case]

    def script(peer):
        peer.polite = False
        peer.receive(len(h2.PREFACE))
        peer.read_until(h2.DATA)
        peer.send(sent)
        if then == "stays":
            peer.wait(0.2)
        peer.finish()

    with meeting(script, raw=True) as (_, client):
        fails(client, Unavailable, match)


def test_a_large_request_to_something_else():
    """It answers and does not read on: the answer counts, not that sending got stuck."""

    def script(peer):
        peer.receive(len(h2.PREFACE))
        peer.send(PAGE)
        peer.wait()

    with meeting(script, raw=True) as (rogue, client):
        started = time.monotonic()
        with pytest.raises(Unavailable, match="HTTP/1"):
            client.infer("m", {"INPUT0": np.zeros(50 << 20, np.uint8)})
        assert time.monotonic() - started < LONG / 2
        rogue.hang_up()


# Nobody answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [0.001, 0.3])
def test_a_server_that_accepts_and_is_silent(timeout):
    # A millisecond may be over before there is a connection, and this before the script has it.
    phase = "" if timeout < 0.1 else " (before the server answered|while)"
    with meeting(lambda peer: peer.wait(), raw=True) as (rogue, client):
        expires(client, timeout, "the deadline passed" + phase)
        rogue.hang_up()


def test_a_deadline_is_not_rounded():
    """To when signals are looked at, say, every 0.2 s; never is it early."""
    lateness = []
    with meeting(lambda peer: peer.wait(), raw=True, always=True, usable=False) as (_, client):
        expires(client, 0.1)  # connecting takes its time too
        for timeout in (0.0103, 0.0207, 0.0304, 0.0501, 0.0705):
            started = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                client.infer("m", ONE, timeout=timeout)
            lateness.append(time.monotonic() - started - timeout)
    assert min(lateness) >= 0
    assert min(lateness) < 0.1
    assert max(lateness) < SLACK


def test_the_server_hears_of_the_deadline():
    resets = []

    def script(peer):
        resets.append((peer.request().stream, peer.read_until(h2.RST_STREAM)))

    with meeting(script) as (rogue, client):
        expires(client, 0.3)
        assert_good(client)
        assert rogue.connections == 1
    stream, frame = resets[0]
    assert (frame.stream, frame.payload) == (stream, struct.pack(">I", 8))


def test_a_cancelled_future():
    heard = queue.SimpleQueue()

    def script(peer):
        heard.put(peer.request())
        heard.put(peer.read_until(h2.RST_STREAM))

    with meeting(script) as (_, client):
        future = client.submit("m", ONE)
        heard.get(timeout=LONG)
        assert future.cancel()
        with pytest.raises(futures.CancelledError):
            future.result(LONG)
        heard.get(timeout=LONG / 2)  # and not only when the call's deadline has passed


def test_a_client_that_is_closed_in_mid_call():
    asked = threading.Semaphore(0)

    def script(peer):
        peer.request()
        asked.release()
        peer.wait()

    with meeting(script, usable=False, always=True) as (_, client):
        pending = [client.submit("m", ONE) for _ in range(8)]
        assert all(asked.acquire(timeout=LONG) for _ in pending)
        started = time.monotonic()
        client.close()
        for future in pending:
            with pytest.raises(ClosedError):
                future.result(LONG)
        assert time.monotonic() - started < SLACK


def test_cancelling_as_calls_end():
    """Whichever comes first wins, and nothing else happens."""

    def script(peer):
        while True:
            stream = peer.request().stream
            time.sleep(random.random() * 0.003)
            peer.send(h2.answer(stream, GOOD))

    ended = cancelled = 0
    end = time.monotonic() + LONG
    with meeting(script, always=True) as (_, client):
        while ended + cancelled < 200 or not (ended and cancelled):
            assert time.monotonic() < end, (ended, cancelled)
            future = client.submit("m", ONE)
            # Longer and longer, for a machine on which no call takes as little.
            time.sleep(random.random() * 0.00002 * (100 + ended + cancelled))
            if future.cancel():
                cancelled += 1
            else:
                assert future.result(LONG)["OUTPUT0"].tolist() == [0, 1]
                ended += 1


@contextlib.contextmanager
def full_listener():
    """A listener whose queue is full: connections to it are neither made nor refused."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        # The first fills it for certain, and who is told nothing for so long has met a full queue.
        for timeout in (LONG, *[0.1] * 8):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(timeout)
            try:
                filler.connect(address)
            except TimeoutError:
                break
        else:
            pytest.fail("the listener's queue does not fill")
        yield f"127.0.0.1:{address[1]}"


def test_connecting_takes_too_long():
    with full_listener() as url, Client(url, channel="native", shared_memory=False) as client:
        expires(client, 0.3, "the deadline passed while connecting")
        future = client.submit("m", ONE)
        time.sleep(0.1)  # it is connecting by now, most likely
        assert future.cancel()


def test_keepalive_finds_a_dead_server():
    def script(peer):
        peer.request()
        peer.wait()

    # Not shorter: the call to the live server that comes after it must answer within both.
    keepalive = {"keepalive": Keepalive(time=0.2, timeout=0.8)}
    with meeting(script, client=keepalive) as (rogue, client):
        started = time.monotonic()
        fails(client, Unavailable, "did not answer a ping")
        assert 1 <= time.monotonic() - started < 1 + SLACK
        rogue.hang_up()


def test_keepalive_finds_a_live_server():
    pings = []

    def script(peer):
        stream = peer.request().stream
        while len(pings) < 5:
            pings.append(peer.read_until(h2.PING))
        peer.send(h2.answer(stream, GOOD))

    with meeting(script, client={"keepalive": Keepalive(time=0.05, timeout=LONG)}) as (
        rogue,
        client,
    ):
        assert_good(client)
        assert rogue.connections == 1
    assert len(pings) == 5


def flood(peer):
    """Send what no release of nghttp2 counts as abuse, however much there is of it."""
    threading.Thread(target=discard, args=(peer.socket,), daemon=True).start()
    while True:
        peer.send(h2.window_update(0, 1) * 1000)


@pytest.mark.parametrize("case", ["silent", "not connected", "flooding", "not reading"])
def test_ctrl_c(case):
    """A call without a deadline ends with the signal, whatever the server does."""
    code = """
import sys, time
import numpy as np
from triton_fast import Client
client = Client(sys.argv[1], channel="native", shared_memory=False)
try:
    print("ready", flush=True)
    client.infer("m", {"INPUT0": np.ones(int(sys.argv[2]), np.float32)})
except KeyboardInterrupt:
    print("interrupted", flush=True)
client.close()
"""
    asked = threading.Event()

    def script(peer):
        if case == "not reading":
            peer.send(h2.window_update(0, 2**31 - 1 - 65_535))
            peer.begin_request()
        else:
            peer.request()
        asked.set()
        if case == "flooding":
            flood(peer)
        peer.wait()

    with contextlib.ExitStack() as stack:
        if case == "not connected":
            url = stack.enter_context(full_listener())
        else:
            url = stack.enter_context(Rogue(script, GOOD)).url
        count = "20000000" if case == "not reading" else "1"
        child = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", code, url, count], stdout=subprocess.PIPE, text=True
            )
        )
        try:
            assert child.stdout.readline() == "ready\n"
            if case == "not connected":
                time.sleep(0.2)  # it is connecting by now, most likely
            else:
                assert asked.wait(LONG)
            child.send_signal(signal.SIGINT)
            started = time.monotonic()
            assert child.communicate(timeout=LONG)[0] == "interrupted\n"
            assert time.monotonic() - started < SLACK
            assert child.returncode == 0
        finally:
            child.kill()


# Many at once -------------------------------------------------------------------------------------


def test_many_threads_and_a_server_that_does_everything_wrong():
    """Every call ends with the right answer or a typed error, and none of them late."""
    wrong = [sent for sent, _, _ in (*WRONG_FRAMES.values(), *WRONG_MESSAGES.values())]

    def script(peer):
        choose = random.Random(peer.number)
        while True:
            stream = peer.request().stream
            kind = choose.random()
            if kind < 0.6:
                peer.send(h2.answer(stream, GOOD))
            elif kind < 0.9:
                peer.send(choose.choice(wrong)(stream))
            elif kind < 0.95:
                peer.close(reset=choose.random() < 0.5)
            else:
                peer.wait(0.05)
                peer.send(h2.answer(stream, GOOD))

    outcomes = []

    def work(client):
        for _ in range(60):
            started = time.monotonic()
            try:
                result = client.infer("m", ONE, timeout=LONG)["OUTPUT0"].tolist()
            except (ServerError, WireError) as error:
                outcomes.append(type(error))
            else:
                assert result == [0, 1]
                outcomes.append(None)
            assert time.monotonic() - started < LONG / 2

    with meeting(script, always=True, usable=False) as (_, client):
        with futures.ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(work, client) for _ in range(8)]:
                done.result(100)
    assert len(outcomes) == 480
    assert outcomes.count(None) > 100
    assert {Unavailable, Internal} <= set(outcomes)
    assert not re.search("Deadline", str(set(outcomes)))
