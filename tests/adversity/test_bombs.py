"""Few bytes that stand for many: a typed error, little memory, and an end when the call has one."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import signal
import threading
import time
import zlib

import numpy as np
import pytest
from rogue_meetings import GOOD, LONG, SLACK, response
from support import rogue as h2
from support.blocking_face import BlockingFace
from support.model_calls import ONE
from support.process import peak, reset_peak
from support.rogue import END_STREAM, Rogue
from support.waiting import until

from triton_fast import (
    AsyncClient,
    Client,
    ClosedError,
    DeadlineExceeded,
    ResourceExhausted,
    WireError,
)
from triton_fast.channels import compression
from triton_fast.channels.grpcio.channel import _StartedCall
from triton_fast.protocol.messages import message_class

MIB = 1 << 20
FACES = {"threads": Client, "coroutines": BlockingFace}
HEADS = {"gzip": b"\x1f\x8b\x08\0\0\0\0\0\0\xff", "deflate": b"\x78\x9c"}


@pytest.fixture(params=FACES)
def open_face(request, channel):
    """Return how to make a client of either kind."""
    return lambda url, **more: FACES[request.param](
        url, channel=channel, timeout=LONG, shared_memory=False, **more
    )


@pytest.fixture
def low_bounds(monkeypatch):
    monkeypatch.setattr(compression, "_ANY_RATIO_BYTES", 32 * MIB)
    monkeypatch.setattr(compression, "_MOST_RATIO", 10)


def bomb(mebibytes, encoding):
    """Return zeros, compressed in no time: but for the checksum, as zlib would."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    once = squeeze.compress(bytes(MIB)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    return HEADS[encoding] + once * mebibytes + b"\x03\0" + bytes(8)


def compressed(payload, encoding, times=1000):
    """Return a script that answers so many requests so, and others as it should."""
    fields = (*h2.OK_HEADERS, ("grpc-encoding", encoding))

    def script(peer):
        for _ in range(times):
            stream = peer.request().stream
            peer.send(
                h2.headers(stream, fields)
                + h2.data(stream, h2.message(payload, flags=1))
                + h2.headers(stream, h2.OK_TRAILERS, END_STREAM)
            )

    return script


@contextlib.contextmanager
def little_memory(mebibytes):
    reset_peak()
    before = peak()
    yield
    assert peak() - before < mebibytes * MIB


# How much ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb(open_face, encoding, low_bounds):
    sent = bomb(1024, encoding)
    with (
        Rogue(compressed(sent, encoding, 1), GOOD) as rogue,
        open_face(rogue.url, compression=encoding) as client,
    ):
        with (
            little_memory(300),
            pytest.raises(ResourceExhausted, match=f"{len(sent):,} bytes has more than 33,554,432"),
        ):
            client.infer("m", ONE)
        assert client.infer("m", ONE)["OUTPUT0"].tolist() == [0, 1]


def test_zeros_are_no_bomb(open_face):
    """A mask of nothing shrinks to a thousandth, and is an answer like any other."""
    message = message_class("ModelInferResponse")(model_name="m")
    message.outputs.add(name="OUTPUT0", datatype="UINT8", shape=[40 * MIB])
    message.raw_output_contents.append(bytes(40 * MIB))
    sent = gzip.compress(message.SerializeToString())
    assert len(sent) * 900 < 40 * MIB
    with Rogue(compressed(sent, "gzip"), GOOD) as rogue:
        with open_face(rogue.url, compression="gzip") as client:
            result = client.infer("m", ONE)["OUTPUT0"]
            assert result.shape == (40 * MIB,)
            assert not result.any()
            out = np.ones(40 * MIB, np.uint8)
            client.infer("m", ONE, out={"OUTPUT0": out})
            assert not out.any()


def envelope(request_id, count, final):
    message = message_class("ModelStreamInferResponse")()
    message.infer_response.ParseFromString(response(count))
    message.infer_response.id = request_id
    message.infer_response.parameters["triton_final_response"].bool_param = final
    return message.SerializeToString()


def stream_script(middle):
    """Return a script for a stream's answers, of which the second is compressed."""

    def script(peer):
        stream = peer.begin_request()
        while True:
            frame = peer.read_frame()
            if frame.type == h2.DATA and frame.payload:
                break
        request = message_class("ModelInferRequest").FromString(frame.payload[5:])
        said = h2.message(envelope(request.id, 2, False))
        said += h2.message(middle(request.id), flags=1)
        said += h2.message(envelope(request.id, 4, True))
        fields = (*h2.OK_HEADERS, ("grpc-encoding", "gzip"))
        peer.send(h2.headers(stream, fields) + h2.data(stream, said))
        peer.send(h2.headers(stream, h2.OK_TRAILERS, END_STREAM))

    return script


@pytest.mark.parametrize("channel", ["grpc"])
def test_a_bomb_in_a_stream(open_face, low_bounds):
    """Of grpcio's streams; the native channel does not take compressed messages there."""
    with (
        Rogue(stream_script(lambda _: bomb(1024, "gzip")), GOOD) as rogue,
        open_face(rogue.url) as client,
    ):
        answers = client.stream("m", ONE)
        assert len(next(answers)["OUTPUT0"]) == 2
        with little_memory(300), pytest.raises(ResourceExhausted, match="more than 33,554,432"):
            next(answers)


@pytest.mark.parametrize("channel", ["grpc"])
def test_compressed_in_a_stream(open_face):
    script = stream_script(lambda name: gzip.compress(envelope(name, 2 * MIB, False), 1))
    with Rogue(script, GOOD) as rogue, open_face(rogue.url) as client:
        found = [result["OUTPUT0"] for result in client.stream("m", ONE)]
        assert [len(values) for values in found] == [2, 2 * MIB, 4]
        assert np.array_equal(found[1], np.arange(2 * MIB, dtype=np.float32))


# How many ----------------------------------------------------------------------------------------


def field(number, value):
    size = len(value)
    out = bytearray([number << 3 | 2])
    while size >= 0x80:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*out, size]) + value


def test_parameters_by_the_million(open_face, channel):
    """As many as are allowed of outputs, with as many parameters each: 33 MB that were 1.3 GiB."""
    outputs = 4096 if channel == "native" else 400  # in grpcio's window, which a rogue ignores
    payload = field(5, field(4, b"") * 4096) * outputs
    with Rogue(lambda peer: None, payload) as rogue, open_face(rogue.url) as client:
        with (
            little_memory(300),
            pytest.raises(WireError, match="parameters has more than 16384 entries"),
        ):
            client.infer("m", ONE)


def test_inputs_by_the_million(open_face):
    """Of a model, in an answer that protobuf's own package reads."""
    payload = field(4, b"") * 1_000_000
    with Rogue(lambda peer: None, payload) as rogue, open_face(rogue.url) as client:
        with (
            little_memory(100),
            pytest.raises(WireError, match="2000000 bytes has more than 262144 entries"),
        ):
            client.model_metadata("m")


# How long ----------------------------------------------------------------------------------------


class SlowZlib:
    """Stands for the module, and takes its time over each piece.

    Attributes
    ----------
    pieces : int
        How many were asked for.
    """

    error = zlib.error

    def __init__(self):
        self.pieces = 0
        self.on_piece = lambda: None

    def decompressobj(self, wbits):
        return _Slowly(self, zlib.decompressobj(wbits))

    def compressobj(self, wbits):
        return _Slowly(self, zlib.compressobj(wbits=wbits))

    def await_end(self):
        """Return when no more pieces are asked for; that has to be before there are no more."""
        seen = -1
        while seen != self.pieces:
            seen = self.pieces
            time.sleep(0.5)
        assert seen < PIECES


class _Slowly:
    def __init__(self, module, inner):
        self._module = module
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def decompress(self, *arguments):
        self._take_time()
        return self._inner.decompress(*arguments)

    def compress(self, *arguments):
        self._take_time()
        return self._inner.compress(*arguments)

    def _take_time(self):
        self._module.pieces += 1
        self._module.on_piece()
        time.sleep(0.05)


# So many that it takes longer than all who wait here do, on any machine.
PIECES = 100
LONG_WORK = bomb(PIECES, "gzip")


@pytest.fixture
def slow_zlib(monkeypatch):
    slow = SlowZlib()
    monkeypatch.setattr(compression, "zlib", slow)
    return slow


@pytest.fixture
def at_work(open_face, slow_zlib):
    """Yield a client whose calls are answered with what takes five seconds to decompress."""
    with (
        Rogue(compressed(LONG_WORK, "gzip"), GOOD) as rogue,
        open_face(rogue.url, compression="gzip") as client,
    ):
        yield client


def ends_in_time(client, inputs, slow_zlib, match):
    """A call ends with its deadline in the middle of the work, which goes no further."""
    for timeout in (0.5, 2.0, 4.0):  # on a machine that is busy the first may be too short
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded) as caught:
            client.infer("m", inputs, timeout=timeout)
        assert timeout <= time.monotonic() - started < timeout + SLACK
        if slow_zlib.pieces:
            assert match in str(caught.value)
            slow_zlib.await_end()
            return
    pytest.fail("the work had not begun before a deadline")


def test_the_deadline_passes(at_work, slow_zlib):
    ends_in_time(at_work, ONE, slow_zlib, "the deadline passed before the answer was")


@pytest.mark.parametrize("channel", ["native"])
def test_the_deadline_passes_before_the_request_is_compressed(at_work, slow_zlib):
    large = {"INPUT0": np.zeros(PIECES * MIB, np.uint8)}
    ends_in_time(at_work, large, slow_zlib, "the deadline passed before the request was sent")


def test_the_client_is_closed(at_work, slow_zlib):
    def close():
        until(lambda: slow_zlib.pieces)
        at_work.close()

    closing = threading.Thread(target=close)
    closing.start()
    with pytest.raises(ClosedError):
        at_work.infer("m", ONE)
    closing.join()
    slow_zlib.await_end()


class Interrupt(BaseException):
    pass


def test_a_signal_interrupts(channel, slow_zlib):
    def interrupt(*_):
        raise Interrupt

    main = threading.get_ident()
    slow_zlib.on_piece = lambda: slow_zlib.pieces == 3 and signal.pthread_kill(main, signal.SIGUSR1)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with (
            Rogue(compressed(LONG_WORK, "gzip"), GOOD) as rogue,
            Client(rogue.url, channel=channel, compression="gzip") as client,
            pytest.raises(Interrupt),
        ):
            client.infer("m", ONE)
        slow_zlib.await_end()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_submitted_call_is_cancelled(channel, slow_zlib):
    with (
        Rogue(compressed(LONG_WORK, "gzip"), GOOD) as rogue,
        Client(rogue.url, channel=channel, compression="gzip") as client,
    ):
        future = client.submit("m", ONE)
        until(lambda: slow_zlib.pieces)
        future.cancel()
        until(future.done)
        slow_zlib.await_end()


def test_whoever_starts_a_call_does_not_decompress(channel, slow_zlib, monkeypatch):
    """Also if the answer was there when it was started."""
    watch = _StartedCall.watch

    def watch_late(self, future):
        until(future.done)
        watch(self, future)

    monkeypatch.setattr(_StartedCall, "watch", watch_late)
    with (
        Rogue(compressed(LONG_WORK, "gzip"), GOOD) as rogue,
        Client(rogue.url, channel=channel, compression="gzip") as client,
    ):
        future = client.submit("m", ONE)
        assert slow_zlib.pieces < PIECES
        future.cancel()
        slow_zlib.await_end()


def test_a_task_is_cancelled_and_its_loop_goes_on_meanwhile(channel, slow_zlib):
    rounds = 0
    seen = set()
    slow_zlib.on_piece = lambda: seen.add(rounds)

    async def go_round():
        nonlocal rounds
        while True:
            rounds += 1
            await asyncio.sleep(0.001)

    async def work(url):
        going = asyncio.create_task(go_round())
        async with AsyncClient(url, channel=channel, compression="gzip") as client:
            task = asyncio.create_task(client.infer("m", ONE))
            while len(seen) < 10:
                await asyncio.sleep(0.01)
                assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            going.cancel()
            slow_zlib.await_end()

    with Rogue(compressed(LONG_WORK, "gzip"), GOOD) as rogue:
        asyncio.run(asyncio.wait_for(work(rogue.url), 60))
