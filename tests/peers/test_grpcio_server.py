"""The channels against grpcio's own server: what it is told, and what is made of its answers."""

from __future__ import annotations

import base64
import json
import math
import threading

import pytest
from peer_calls import SLACK, Caller, give_up_by_deadline, told

from triton_fast import errors
from triton_fast.errors import StatusCode
from triton_fast.options.keepalive import Keepalive

# grpcio at both ends is grpcio's business.
only_native = pytest.mark.parametrize("channel", ["native"], indirect=True)


@pytest.fixture(scope="module")
def peer_server(start_server):
    return start_server()


@pytest.fixture
def open_caller(channel):
    callers = []

    def make(server, **settings):
        callers.append(Caller(server.target, channel, **settings))
        return callers[-1]

    yield make
    for caller in callers:
        caller.channel.close()


@pytest.fixture
def call(open_caller, peer_server):
    call = open_caller(peer_server)
    yield call
    assert call("Echo", b"usable") == b"usable"


# What the server is told --------------------------------------------------------------------------


def test_headers_arrive_as_they_are(call):
    sent = [
        ("x-text", "plain"),
        ("x-empty", ""),
        ("x-printable", "".join(map(chr, range(0x21, 0x7F)))),
        ("x-spaces", "a b  c"),
        ("x-twice", "1"),
        ("x-twice", "2"),
        ("x-percent", "%41%"),
        ("x-long", "l" * 5000),
        ("authorization", "Bearer secret"),
        ("x-all-bin", bytes(range(256))),
        ("x-empty-bin", b""),
        *((f"x-{size}-bin", b"\xff" * size) for size in range(1, 6)),
        ("x_under.dot-dash0", "ok"),
    ]
    for _ in range(2):  # the second time from the header table
        received = [
            (name, base64.b64decode(value["base64"]) if isinstance(value, dict) else value)
            for name, value in told(call, headers=sent)["headers"]
        ]
        own = [pair for pair in received if pair[0] in dict(sent)]
        # Those of one name keep their order; gRPC promises no more.
        assert sorted(own, key=lambda pair: pair[0]) == sorted(sent, key=lambda pair: pair[0])
        assert {name for name, _ in received} - dict(sent).keys() == {"user-agent"}


def test_many_headers(call):
    sent = [(f"x-{number}", str(number)) for number in range(150)]
    received = told(call, headers=sent)["headers"]
    assert {tuple(pair) for pair in received} >= set(sent)


@pytest.mark.parametrize("timeout", [20.0, 90.0, 4000.0, 1e6, 3e8])
def test_the_server_knows_the_deadline(call, timeout, channel):
    left = told(call, timeout=timeout)["time_left"]
    if channel == "native":
        assert timeout - SLACK < left <= timeout * 1.0001 + 0.002
    else:  # grpcio rounds as it likes, and has a longest one
        assert min(timeout, 1e6) - SLACK < left <= timeout * 1.1


def test_no_deadline(call):
    left = told(call, timeout=None)["time_left"]
    assert left is None or left == math.inf or left > 1e8


@pytest.mark.parametrize("byte_size", [0, 1, 5, 16_384, 65_535, 65_536, 602_112, 20 << 20])
def test_messages_of_any_size(call, byte_size):
    message = bytes(range(251)) * (byte_size // 251 + 1)
    message = message[:byte_size]
    assert call("Echo", message) == message
    assert told(call)["size"] == 0
    assert len(call("Size", str(byte_size).encode())) == byte_size


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_both_ways(call, encoding):
    for message in (b"", b"x", bytes(1 << 20), bytes(range(256)) * 1000):
        assert call("Echo", message, compression=encoding) == message
        for other in ("gzip", "deflate"):
            request = other.encode() + b":" + message
            assert call("Compressed", request, compression=encoding) == message


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_though_unasked(call, channel, encoding):
    """grpcio's server compresses although nobody told it that it may; grpcio says so of itself."""
    request = encoding.encode() + b":" + bytes(1 << 20)
    if channel == "grpc":
        assert call("Compressed", request) == bytes(1 << 20)
        return
    with pytest.raises(errors.Internal, match="compressed message though it was not asked"):
        call("Compressed", request)


def test_a_call_that_is_given_up(call):
    give_up_by_deadline(call)
    running, ending = call.start("Sleep", b"60")
    assert call("Begun", b"30") == b"yes"
    running.cancel()
    running.cancel()
    assert isinstance(ending.wait(), errors.Cancelled)
    assert call("GivenUp", b"30") == b"yes"


def test_closing_gives_calls_up(open_caller, peer_server, call):
    closing = open_caller(peer_server)
    endings = [closing.start("Sleep", b"60")[1] for _ in range(3)]
    for _ in endings:
        assert call("Begun", b"30") == b"yes"
    closing.channel.close()
    for ending in endings:
        assert isinstance(ending.wait(), errors.ClosedError)
    for _ in endings:
        assert call("GivenUp", b"30") == b"yes"


# What it answers ----------------------------------------------------------------------------------

WORDS = "größer als 5 €: 𝄞, 50 % of %41,\ttabs and\nlines"


@pytest.mark.parametrize(
    "method", ["Status", "StatusAfterHeaders", "StatusWithTrailers", "StatusAndMessage"]
)
def test_every_status(call, method):
    for code in StatusCode:
        if code == StatusCode.OK:
            continue
        details = f"{code.name} {WORDS}"
        with pytest.raises(errors.ServerError) as caught:
            call(method, json.dumps([code, details]).encode())
        assert caught.value.status == code
        assert type(caught.value).default_status == code
        assert caught.value.message == details


def test_trailers_beside_the_status(call):
    assert call("StatusWithTrailers", b'[0, ""]') == b"fine"


@pytest.mark.parametrize("details", ["", " ", "\n", "%", "%%%4", "\x00\x7f", "é" * 2000])
def test_details_of_all_kinds(call, details):
    with pytest.raises(errors.Internal) as caught:
        call("Status", json.dumps([13, details]).encode())
    assert caught.value.message == details


def test_what_the_server_has_not(call):
    with pytest.raises(errors.Unimplemented) as caught:
        call("Nothing")
    assert caught.value.message  # grpcio's words, whatever they are
    with pytest.raises(errors.Unknown, match="no, größer"):
        call("Raise", "no, größer".encode())


@pytest.mark.parametrize("byte_size", [6000, 20_000, 60_000])
def test_large_headers(call, byte_size):
    for _ in range(2):
        assert call("Headers", str(byte_size).encode()) == b"fine"


@only_native
@pytest.mark.parametrize("byte_size", [70_000, 200_000])
def test_headers_larger_than_a_call_takes(call, byte_size):
    too_much = "more than (64|128) KiB|to-be-sent"  # an older grpcio says so itself
    for _ in range(2):
        with pytest.raises(errors.ResourceExhausted, match=too_much):
            call("Headers", str(byte_size).encode())
        with pytest.raises(errors.ResourceExhausted, match=too_much):
            call("Status", json.dumps([13, "x" * byte_size]).encode())


# Servers with other settings ----------------------------------------------------------------------


def test_a_message_larger_than_the_server_takes(start_server, open_caller):
    call = open_caller(start_server(max_receive_message_length=1 << 20))
    for byte_size in (2 << 20, 20 << 20):
        with pytest.raises(errors.ResourceExhausted):
            call("Echo", bytes(byte_size))
        assert call("Echo", bytes(1 << 20)) == bytes(1 << 20)


def test_headers_larger_than_the_server_takes(start_server, open_caller):
    options = {"max_metadata_size": 8192, "absolute_max_metadata_size": 8192}
    call = open_caller(start_server(**options))
    assert call("Echo", b"x") == b"x"  # it does not insist before its settings are acknowledged
    for _ in range(2):
        with pytest.raises(errors.ResourceExhausted):
            call("Echo", headers={"x-long": "x" * 100_000})
    assert call("Echo", b"usable", headers={"x-short": "x" * 1000}) == b"usable"


@only_native
@pytest.mark.parametrize(
    "options",
    [
        {"http2.lookahead_bytes": 1024, "http2.bdp_probe": 0},
        {"http2.max_frame_size": 16_384, "http2.write_buffer_size": 1},
        {"http2.max_frame_size": 16_777_215},
        {"http2.hpack_table_size.decoder": 0, "http2.hpack_table_size.encoder": 0},
        {"http2.hpack_table_size.decoder": 65_536, "http2.hpack_table_size.encoder": 65_536},
        {"max_concurrent_streams": 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_settings_of_http2(start_server, open_caller, options):
    caller = open_caller(start_server(**options))

    def call(method, message, **further):
        # As the clients do. grpcio's server counts a stream for a moment after its end has gone
        # out, and refuses the next one of the connection if that is one too many.
        for _ in range(20):
            try:
                return caller(method, message, **further)
            except errors.Unavailable as error:
                if not error.safe_to_retry or "max_concurrent_streams" not in options:
                    raise
        pytest.fail("the server refused twenty calls, one after the other")

    for turn in range(2):
        for byte_size in (64, 602_112, 4 << 20):
            message = bytes([turn]) * byte_size
            assert call("Echo", message, headers={"x-turn": str(turn)}) == message
    wrong = []

    def work(number):
        message = bytes([number]) * 300_000
        try:
            wrong.extend(number for _ in range(5) if call("Echo", message) != message)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@only_native
def test_connections_that_the_server_ages_out(start_server, open_caller):
    """It says GOAWAY every now and then, in the middle of calls too; none is lost."""
    # A call that began before is ended after the grace, so that has to be long.
    call = open_caller(start_server(max_connection_age_ms=200, max_connection_age_grace_ms=60_000))
    failures = []

    def work(number):
        try:
            message = bytes([number]) * 100_000
            for _ in range(4):
                for _ in range(20):
                    assert call("Echo", message) == message
                assert call("Sleep", b"0.3") == b"slept"  # longer than a connection's age
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@only_native
def test_pings_that_the_server_does_not_want(start_server, open_caller):
    """Two are forgiven; then the connection ends, and the error says why."""
    server = start_server(**{"http2.min_ping_interval_without_data_ms": 300_000})
    keepalive = Keepalive(time=0.1, timeout=30)
    call = open_caller(server, keepalive=keepalive)
    with pytest.raises(errors.Unavailable, match="(?i)too.many.pings"):
        call("Sleep", b"20")
    assert call("Echo", b"usable") == b"usable"


@only_native
def test_pings_that_the_server_wants(start_server, open_caller):
    server = start_server(
        **{"http2.min_ping_interval_without_data_ms": 1, "http2.max_ping_strikes": 0}
    )
    call = open_caller(server, keepalive=Keepalive(time=0.05, timeout=30))
    assert call("Sleep", b"0.5") == b"slept"
