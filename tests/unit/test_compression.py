"""What is compressed comes back as it was, within bounds, and as long as its call goes on."""

from __future__ import annotations

import gc
import gzip
import random
import time
import zlib

import pytest
from support.channel_ends import Answer

from triton_fast import Cancelled, DeadlineExceeded, Internal, ResourceExhausted
from triton_fast.channels import compression
from triton_fast.channels.base import CallOptions
from triton_fast.channels.compression import CallCheck, Compressed, decompressed, feed_decompressed
from triton_fast.channels.grpcio.answers import encoding_of

MIB = 1 << 20
COMPRESS = {"gzip": gzip.compress, "deflate": zlib.compress}


def check(ended=lambda: None, **options):
    return CallCheck(CallOptions(call="a call", **options), "host:1", ended)


def noise(count):
    return random.Random(1).randbytes(count)


@pytest.mark.parametrize("encoding", COMPRESS)
@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"x",
        *(bytes(count) for count in (MIB - 1, MIB, MIB + 1, 8 * MIB)),
        *(noise(count) for count in (65536 - 28, 65536, MIB, 3 * MIB + 7)),
        noise(1000) * 5000 + bytes(3 * MIB),
    ],
    ids=lambda message: f"{len(message)}.{message[:1].hex()}",
)
def test_there_and_back(encoding, message):
    sent = Compressed(message, encoding, check()).render()
    for encoded in (sent, COMPRESS[encoding](message)):
        assert encoding_of(encoded) == encoding
        pieces = decompressed(encoded, encoding, check())
        assert b"".join(pieces) == message
        assert max(map(len, pieces)) <= MIB
    answer = Answer()
    assert feed_decompressed(answer, sent, encoding, check()) == len(message)
    assert answer.bytes == message
    assert answer.announced == len(message)


@pytest.mark.parametrize("level", range(10))
def test_every_level_is_told_by_its_beginning(level):
    for message in (b"", bytes(1000), noise(1000)):
        assert encoding_of(zlib.compress(message, level)) == "deflate"
        assert encoding_of(gzip.compress(message, level)) == "gzip"


@pytest.mark.parametrize("message", [b"", b"x", b"\x1f", b"\x0a\x01m", b"\x12\x05\x0a\x01mxx"])
def test_what_is_not_compressed_is_not_taken_for_it(message):
    assert encoding_of(message) is None


def test_bounds(monkeypatch):
    monkeypatch.setattr(compression, "_ANY_RATIO_BYTES", 4 * MIB)

    def size(message):
        return sum(map(len, decompressed(zlib.compress(message), "deflate", check())))

    assert size(bytes(4 * MIB)) == 4 * MIB
    with pytest.raises(ResourceExhausted, match=r"4,\d\d\d bytes has more than 4,194,304 in it"):
        size(bytes(4 * MIB + 1))
    # As long as it is no denser than what people send.
    assert size(noise(MIB // 10) + bytes(9 * MIB)) == MIB // 10 + 9 * MIB
    monkeypatch.setattr(compression, "_MOST_BYTES", 5 * MIB)
    with pytest.raises(ResourceExhausted, match="5,242,880 in it, which is what protobuf allows"):
        size(noise(MIB // 10) + bytes(9 * MIB))


def test_the_bounds_are_what_is_documented():
    assert compression._ANY_RATIO_BYTES == 256 * MIB
    assert compression._MOST_RATIO == 100
    assert compression._MOST_BYTES == 2**31 - 1


@pytest.mark.parametrize("cut", [1, 5, 70_000])
def test_what_is_broken(cut):
    encoded = gzip.compress(noise(200_000))
    for broken, match in (
        (encoded[:-cut], "is cut off"),
        (encoded + bytes(cut), "goes on after its end"),
        (encoded[:20] + bytes(cut) + encoded[20:], "cannot be decompressed"),
    ):
        with pytest.raises(Internal, match=match):
            decompressed(broken, "gzip", check())


def test_it_goes_on_no_longer_than_its_call():
    """Whatever ends the call is looked at between two pieces, on the way in and on the way out."""
    encoded = gzip.compress(bytes(20 * MIB))
    stopped = check()
    stopped.stop()
    late = check(deadline_ns=time.monotonic_ns())
    for over, error in ((stopped, Cancelled), (late, DeadlineExceeded)):
        with pytest.raises(error):
            decompressed(encoded, "gzip", over)
        with pytest.raises(error):
            Compressed(bytes(MIB), "gzip", over)
    looks = 0

    def ended():
        nonlocal looks
        looks += 1
        return Internal("over") if looks == last else None

    answer = Answer()
    for last in (3, 10, 30, 38):
        looks = 0
        with pytest.raises(Internal, match="over"):
            feed_decompressed(answer, encoded, "gzip", check(ended))
        assert looks == last
    assert "finish" not in answer.told
    looks, last = 0, 15
    with pytest.raises(Internal, match="over"):
        Compressed(bytes(20 * MIB), "gzip", check(ended))
    assert looks == 15


def test_an_error_keeps_nothing_of_the_answer():
    class Fails(Answer):
        def begin(self, byte_size):
            raise Internal("no")

    encoded = gzip.compress(bytes(8 * MIB))
    gc.collect()
    for act in (
        lambda: feed_decompressed(Fails(), encoded, "gzip", check()),
        lambda: decompressed(encoded[:-1], "gzip", check()),
        lambda: decompressed(encoded[:-4] + b"oops", "gzip", check()),
    ):
        with pytest.raises(Internal) as caught:
            act()
        held = []
        traceback = caught.value.__traceback__
        while traceback is not None:
            held += traceback.tb_frame.f_locals.values()
            traceback = traceback.tb_next
        pieces = [value for value in held if type(value).__name__ == "deque"]
        assert sum(map(len, pieces)) == 0
