"""Writes the seeds of fuzz_session: what servers send, right and wrong.

Run it after a change here: ``python csrc/fuzz/make_session_corpus.py``. Each file is eight bytes of
setting (see fuzz_session.cpp) and a server's bytes, written with the frame writer of the adversity
tests. The same input gives the same files, byte for byte.
"""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus" / "session"
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from support import rogue as h2  # noqa: E402 - it is a module of the tests

# Settings: how the bytes are cut; how many requests, compressed (4), large (8), parsed (16), a sink
# that throws (32), given up half-way (64), every other one a stream (128); how much is taken at a
# time; a seed; what streams do, a digit each, from the right: they send (1, and 9 if it is the next
# one's turn), half-close (2), take what has come (3), are cancelled (4), look at the news (5), send
# for the last time (6), are forgotten (7).
NOTHING = bytes(4)
ONE = bytes([0, 1, 50, 0]) + NOTHING
THREE = bytes([7, 3, 100, 1]) + NOTHING
COMPRESSED = bytes([2, 1 | 4, 50, 2]) + NOTHING
LARGE = bytes([4, 1 | 8, 255, 3]) + NOTHING
PARSED = bytes([5, 1 | 16, 50, 4]) + NOTHING
THROWS = bytes([6, 1 | 32, 50, 5]) + NOTHING
LONG_PIECES = bytes([6, 1 | 16, 50, 12]) + NOTHING
SHORT_PIECES = bytes([1, 1 | 16, 50, 7]) + NOTHING
GIVES_UP = bytes([3, 3 | 8 | 64, 200, 6]) + NOTHING
STREAM = bytes([6, 1 | 16 | 128, 50, 8, 0x31, 0x51, 0x31, 0x36])
LARGE_STREAM = bytes([4, 1 | 8 | 128, 255, 9, 0x01, 0x10, 0x05, 0x12])
CANCELLED = bytes([4, 3 | 8 | 128, 20, 10, 0x91, 0x00, 0x04, 0x7C])
MIXED = bytes([3, 3 | 128, 100, 11, 0x91, 0x39, 0x53, 0xE6])

START = h2.settings() + h2.frame(h2.SETTINGS, h2.ACK, 0)
# ModelInferResponse: model_name "m", an output "OUTPUT0" of FP32 [2], eight bytes.
ANSWER = b"\x0a\x01m" + b"\x2a\x12\x0a\x07OUTPUT0\x12\x04FP32\x1a\x01\x02" + b"\x32\x08" + bytes(8)
# The same in a stream's message, and an error in another.
STREAMED = b"\x12" + bytes([len(ANSWER)]) + ANSWER
FAILED = b"\x0a\x02no" + b"\x12\x05\x1a\x03abc"
# One with 200 bytes.
LONGER = b"\x2a\x12\x0a\x07OUTPUT0\x12\x04FP32\x1a\x01\x32" + b"\x32\xc8\x01" + bytes(range(200))
NGINX = (":status", "502"), ("server", "nginx"), ("content-type", "text/html")


def seeds() -> dict[str, bytes]:
    """Return the corpus: names and contents."""
    errors = (("grpc-status", "13"), ("grpc-message", "it %62roke at 5%"))
    indexed = h2.block((("x-long", "y" * 100), *h2.OK_TRAILERS), 0x40)
    packed = gzip.compress(ANSWER, mtime=0)
    windows = [h2.window_update(1, 30_000 + n) + h2.window_update(0, 40_000) for n in range(8)]
    found = {
        "answer": ONE + START + h2.answer(1, ANSWER),
        "parsed": PARSED + START + h2.answer(1, ANSWER),
        "throws": THROWS + START + h2.answer(1, ANSWER),
        "three": THREE + START + h2.answer(5, b"") + h2.answer(1, ANSWER) + h2.answer(3, b"x"),
        "small_frames": ONE
        + START
        + h2.headers(1, h2.OK_HEADERS, size=5)
        + h2.data(1, h2.message(ANSWER), size=3)
        + h2.headers(1, h2.OK_TRAILERS, h2.END_STREAM, size=7),
        # Tensors go on in the next frame, in the middle of a piece.
        "long_pieces": LONG_PIECES
        + START
        + h2.headers(1, h2.OK_HEADERS)
        + h2.data(1, h2.message(LONGER), size=70)
        + h2.headers(1, h2.OK_TRAILERS, h2.END_STREAM),
        "interleaved": THREE
        + START
        + b"".join(h2.headers(stream, h2.OK_HEADERS) for stream in (1, 3, 5))
        + b"".join(h2.data(stream, h2.message(b"abc")[:4]) for stream in (5, 3, 1))
        + b"".join(h2.data(stream, h2.message(b"abc")[4:]) for stream in (1, 3, 5))
        + b"".join(h2.headers(stream, h2.OK_TRAILERS, h2.END_STREAM) for stream in (3, 1, 5)),
        "trailers_only": ONE + START + h2.trailers_only(1, errors),
        "informational": ONE
        + START
        + h2.headers(1, ((":status", "103"), ("link", "</x>")))
        + h2.answer(1, ANSWER),
        "indexed": THREE
        + START
        + h2.headers(1, h2.OK_HEADERS)
        + h2.data(1, h2.message(b"x"))
        + h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 1, indexed)
        + h2.headers(3, h2.OK_HEADERS)
        + h2.data(3, h2.message(b"y"))
        + h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, 3, b"\xbe\xbf"),
        "padded": ONE
        + START
        + h2.frame(
            h2.HEADERS,
            h2.END_HEADERS | h2.PADDED | h2.WITH_PRIORITY,
            1,
            b"\x02" + bytes(5) + h2.block(h2.OK_HEADERS) + bytes(2),
        )
        + h2.frame(h2.DATA, h2.PADDED, 1, b"\x03" + h2.message(ANSWER) + bytes(3))
        + h2.headers(1, h2.OK_TRAILERS, h2.END_STREAM),
        "compressed": COMPRESSED
        + START
        + h2.headers(1, (*h2.OK_HEADERS, ("grpc-encoding", "gzip")))
        + h2.data(1, h2.message(packed, flags=1))
        + h2.headers(1, h2.OK_TRAILERS, h2.END_STREAM),
        "unasked": ONE
        + START
        + h2.headers(1, (*h2.OK_HEADERS, ("grpc-encoding", "gzip")))
        + h2.data(1, h2.message(b"x", flags=1)),
        "two_messages": ONE
        + START
        + h2.headers(1, h2.OK_HEADERS)
        + h2.data(1, h2.message(b"x") * 2)
        + h2.headers(1, h2.OK_TRAILERS, h2.END_STREAM),
        "announces_more": ONE
        + START
        + h2.headers(1, h2.OK_HEADERS)
        + h2.data(1, h2.message(b"x", length=2**32 - 1))
        + h2.headers(1, h2.OK_TRAILERS, h2.END_STREAM),
        # More than it says, and in pieces the parser has its own word on it first.
        "content_length": SHORT_PIECES
        + START
        + h2.headers(1, (*h2.OK_HEADERS, ("content-length", "20")))
        + h2.data(1, h2.message(b"\xff" * 40))
        + h2.headers(1, h2.OK_TRAILERS, h2.END_STREAM),
        "no_trailers": ONE
        + START
        + h2.headers(1, h2.OK_HEADERS)
        + h2.data(1, h2.message(b"x"), h2.END_STREAM),
        "proxy": ONE
        + START
        + h2.headers(1, NGINX)
        + h2.data(1, b"<html>Bad Gateway</html>", h2.END_STREAM),
        "windows": LARGE
        + h2.settings([(h2.INITIAL_WINDOW_SIZE, 100), (h2.MAX_FRAME_SIZE, 1 << 20)])
        + h2.window_update(1, 70_000)
        + h2.window_update(0, 1_000_000)
        + h2.settings([(h2.INITIAL_WINDOW_SIZE, 0)])
        + h2.window_update(1, 200_000)
        + h2.answer(1, ANSWER),
        "given_up": GIVES_UP
        + h2.settings([(h2.INITIAL_WINDOW_SIZE, 1 << 20)])
        + h2.window_update(0, 1 << 20)
        + h2.answer(1, b"x")
        + h2.ping() * 5
        + h2.answer(3, b"x")
        + h2.answer(5, b"x"),
        "early": LARGE + START + h2.trailers_only(1, errors) + h2.reset(1, 0) + h2.ping(),
        "reset": THREE
        + START
        + h2.reset(1, 7)
        + h2.headers(3, h2.OK_HEADERS)
        + h2.reset(3, 7)
        + h2.reset(5, 8),
        "goaway": THREE
        + START
        + h2.goaway(2**31 - 1)
        + h2.goaway(3, 0, b"max_age")
        + h2.answer(1, b"x")
        + h2.answer(3, b"x"),
        "pings": ONE + START + h2.ping() + h2.ping(flags=h2.ACK) + h2.answer(1, ANSWER),
        "push": ONE
        + START
        + h2.frame(h2.PUSH_PROMISE, h2.END_HEADERS, 1, struct.pack(">I", 2) + b"\x82\x84"),
        "stream": STREAM
        + START
        + h2.window_update(0, 1000)
        + h2.headers(1, h2.OK_HEADERS)
        + h2.data(1, h2.message(STREAMED) + h2.message(FAILED) + h2.message(b"")[:3])
        + h2.data(1, h2.message(b"")[3:] + h2.message(STREAMED), size=11)
        + h2.headers(1, h2.OK_TRAILERS, h2.END_STREAM),
        "stream_windows": LARGE_STREAM
        + h2.settings([(h2.INITIAL_WINDOW_SIZE, 100)])
        + h2.headers(1, h2.OK_HEADERS)
        + b"".join(one + h2.data(1, b"") + h2.ping() for one in windows)
        + h2.data(1, h2.message(b"x"))
        + h2.headers(1, h2.OK_TRAILERS, h2.END_STREAM),
        "stream_early": LARGE_STREAM
        + START
        + h2.headers(1, h2.OK_HEADERS)
        + h2.data(1, h2.message(b"x") * 2)
        + h2.headers(1, (("grpc-status", "8"),), h2.END_STREAM)
        + h2.window_update(1, 200_000)
        + h2.window_update(0, 200_000)
        + h2.ping() * 20,
        "stream_cancelled": CANCELLED
        + h2.settings([(h2.INITIAL_WINDOW_SIZE, 1 << 20)])
        + h2.window_update(0, 1 << 20)
        + h2.ping() * 6
        + h2.headers(1, h2.OK_HEADERS)
        + h2.data(1, h2.message(b"x"))
        + h2.ping() * 20
        + h2.answer(3, b"x"),
        "stream_cut": STREAM
        + START
        + h2.headers(1, h2.OK_HEADERS)
        + h2.data(1, h2.message(STREAMED) + h2.message(STREAMED)[:20])
        + h2.headers(1, h2.OK_TRAILERS, h2.END_STREAM),
        "stream_goaway": MIXED
        + START
        + h2.headers(1, h2.OK_HEADERS)
        + h2.data(1, h2.message(b"abc"))
        + h2.goaway(3, 0, b"max_age")
        + h2.data(1, h2.message(b"def") * 3)
        + h2.answer(3, b"x")
        + h2.headers(1, h2.OK_TRAILERS, h2.END_STREAM),
        "streams": MIXED
        + START
        + h2.headers(1, h2.OK_HEADERS)
        + h2.headers(5, h2.OK_HEADERS)
        + b"".join(h2.data(stream, h2.message(b"abc")) for stream in (5, 1, 1, 5))
        + h2.answer(3, b"abc")
        + h2.reset(5, 8)
        + h2.data(1, h2.message(b""))
        + h2.headers(1, h2.OK_TRAILERS, h2.END_STREAM),
        "http1": ONE + b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        "tls": ONE + bytes.fromhex("15030100020246"),
    }
    return {name: content[:1024] for name, content in found.items()}


def main() -> None:
    """Write the corpus, and remove what is no longer part of it."""
    CORPUS.mkdir(parents=True, exist_ok=True)
    found = seeds()
    for old in CORPUS.iterdir():
        if old.name not in found:
            old.unlink()
    for name, content in found.items():
        (CORPUS / name).write_bytes(content)
    print(f"{len(found)} seeds in {CORPUS}")


if __name__ == "__main__":
    main()
