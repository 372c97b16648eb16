"""A misbehaving HTTP/2 server: frames byte by byte, and whatever a script does with them.

Owns no rules: what a script sends goes out as it is. Requests are read as far as the scripts need
it. Every connection runs on a thread of its own, all of which end with the server.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Frame types, flags and settings (RFC 9113, sections 6 and 6.5.2).
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS = 0, 1, 2, 3, 4
PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 5, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 1, 2, 3, 4
MAX_FRAME_SIZE = 5

OK_HEADERS = ((":status", "200"), ("content-type", "application/grpc"))
OK_TRAILERS = (("grpc-status", "0"),)

Fields = Iterable[tuple[str | bytes, str | bytes]]
Script = Callable[["Peer"], object]


class Frame(NamedTuple):
    type: int
    flags: int
    stream: int
    payload: bytes


class Request(NamedTuple):
    stream: int
    message: bytes  # with its five-byte prefix
    frames: int  # of data


# What is written ----------------------------------------------------------------------------------


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int = -1) -> bytes:
    """Return a frame, whose head may lie about the length."""
    size = len(payload) if length < 0 else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def integer(value: int, prefix: int, first: int = 0) -> bytes:
    most = (1 << prefix) - 1
    if value < most:
        return bytes([first | value])
    out = bytearray([first | most])
    value -= most
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def block(fields: Fields, representation: int = 0x00) -> bytes:
    """Return a header block of literals: without indexing, or as ``representation`` says."""
    out = bytearray()
    for name, value in fields:
        out.append(representation)
        for text in (_bytes(name), _bytes(value)):
            out += integer(len(text), 7) + text
    return bytes(out)


def headers(stream: int, fields: Fields, flags: int = 0, size: int = 16384) -> bytes:
    """Return HEADERS, and CONTINUATION for what does not fit in ``size`` bytes."""
    encoded = block(fields)
    pieces = [encoded[at : at + size] for at in range(0, len(encoded), size)] or [b""]
    out = bytearray()
    for index, piece in enumerate(pieces):
        last = END_HEADERS if index == len(pieces) - 1 else 0
        if index == 0:
            out += frame(HEADERS, flags | last, stream, piece)
        else:
            out += frame(CONTINUATION, last, stream, piece)
    return bytes(out)


def data(stream: int, payload: bytes, flags: int = 0, size: int = 16384) -> bytes:
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
    return b"".join(
        frame(DATA, flags if index == len(pieces) - 1 else 0, stream, piece)
        for index, piece in enumerate(pieces)
    )


def message(payload: bytes, flags: int = 0, length: int = -1) -> bytes:
    """Return a gRPC message with its prefix, which may lie about the length."""
    return struct.pack(">BI", flags, len(payload) if length < 0 else length) + payload


def settings(values: Iterable[tuple[int, int]] = ()) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in values))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def ping(payload: bytes = b"12345678", flags: int = 0) -> bytes:
    return frame(PING, flags, 0, payload)


def goaway(last_stream: int, code: int = 0, text: bytes = b"") -> bytes:
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream, code) + text)


def reset(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def answer(stream: int, payload: bytes) -> bytes:
    """Return an answer that has nothing wrong with it."""
    return (
        headers(stream, OK_HEADERS)
        + data(stream, message(payload))
        + headers(stream, OK_TRAILERS, END_STREAM)
    )


def trailers_only(stream: int, fields: Fields) -> bytes:
    return headers(stream, (*OK_HEADERS, *fields), END_STREAM)


# The server ---------------------------------------------------------------------------------------


class Gone(Exception):
    """The client has closed the connection, or the server is to stop."""


class Peer:
    """One connection, as a script sees it.

    Attributes
    ----------
    number : int
        Which of the server's connections this is, from 0.
    port : int
        The client's.
    polite : bool
        Whether `read_frame` acknowledges settings and pings.
    seen : list of Frame
        What has come so far, but for DATA.
    """

    def __init__(self, server: Rogue, connection: socket.socket, number: int, port: int) -> None:
        self.server = server
        self.socket = connection
        self.number = number
        self.port = port
        self.seen: list[Frame] = []
        self.polite = True  # acknowledges what has to be acknowledged
        self._rest = b""

    def send(self, sent: bytes) -> None:
        try:
            self.socket.sendall(sent)
        except OSError as error:
            raise Gone from error

    def receive(self, size: int) -> bytes:
        """Return exactly that many bytes."""
        while len(self._rest) < size:
            try:
                piece = self.socket.recv(1 << 18)
            except OSError as error:
                raise Gone from error
            if not piece:
                raise Gone
            self._rest += piece
        received, self._rest = self._rest[:size], self._rest[size:]
        return received

    def start(self, values: Iterable[tuple[int, int]] = ()) -> None:
        """Exchange prefaces."""
        assert self.receive(len(PREFACE)) == PREFACE
        self.send(settings(values))

    def read_frame(self) -> Frame:
        head = self.receive(9)
        length, (type_, flags, stream) = (
            int.from_bytes(head[:3], "big"),
            struct.unpack(">BBI", head[3:]),
        )
        read = Frame(type_, flags, stream, self.receive(length))
        if self.polite and not read.flags & ACK:
            if read.type == SETTINGS:
                self.send(frame(SETTINGS, ACK, 0))
            elif read.type == PING:
                self.send(ping(read.payload, ACK))
        if read.type != DATA:
            self.seen.append(read)
        return read

    def read_until(self, type_: int) -> Frame:
        while (read := self.read_frame()).type != type_:
            pass
        return read

    def begin_request(self) -> int:
        """Read up to the next request's headers, and return its stream."""
        return self.read_until(HEADERS).stream

    def request(self, stream: int = 0, window: int | None = None) -> Request:
        """Read a request to its end.

        Parameters
        ----------
        stream : int
            Whose headers have been read; 0 reads the next one's.
        window : int, optional
            What to open the windows by after each frame; left out, by what was received.
        """
        stream = stream or self.begin_request()
        received = bytearray()
        frames = 0
        while True:
            read = self.read_frame()
            if read.type == RST_STREAM and read.stream == stream:
                return self.request(window=window)  # given up: on to the next one
            if read.type != DATA or read.stream != stream:
                continue
            received += read.payload
            frames += 1
            if read.flags & END_STREAM:
                return Request(stream, bytes(received), frames)
            size = len(read.payload) if window is None else window
            if size:
                self.send(window_update(0, size) + window_update(stream, size))

    def serve(self) -> None:
        """Answer everything, and rightly, from now on."""
        while True:
            self.send(answer(self.request().stream, self.server.payload))

    def be_heard(self) -> None:
        """Return when the client has read all that was sent."""
        self.send(ping(b"be heard"))
        while self.read_until(PING)[1:] != (ACK, 0, b"be heard"):
            pass

    def arrive(self) -> None:
        """Return when all that was sent is with the client, who need not have read it."""
        while struct.unpack("i", fcntl.ioctl(self.socket, termios.TIOCOUTQ, bytes(4))) != (0,):
            time.sleep(0.001)

    def finish(self) -> None:
        """Close the connection after what was sent, which arrives in any case.

        `close` may lose it: where something was not read, the kernel's reset overtakes it.
        """
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)
            while self.socket.recv(1 << 18):
                pass
        raise Gone

    def close(self, *, reset: bool = False) -> None:
        """Close the connection; with ``reset``, as when the process has crashed."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
        raise Gone

    def wait(self, seconds: float = 60) -> None:
        """Do nothing until the server hangs up."""
        if self.server.stopping.wait(seconds):
            raise Gone


class Rogue:
    """A server on a port of its own.

    Parameters
    ----------
    script : callable
        What to do with the first connection, after the prefaces. If it returns, the connection is
        served as it should be. Later connections are as well, or get ``script`` too if ``always``.
        None of those gets it that come after `reform`.
    payload : bytes
        The message of a right answer.
    raw : bool
        No prefaces: the script does it all.
    settings : iterable of (int, int)
        Sent with the preface.
    """

    def __init__(
        self,
        script: Script,
        payload: bytes,
        *,
        raw: bool = False,
        always: bool = False,
        settings: Iterable[tuple[int, int]] = (),
    ) -> None:
        self.payload = payload
        self.stopping = threading.Event()
        self.failures: list[BaseException] = []
        self._script = script
        self._raw = raw
        self._always = always
        self._reformed = False
        self._settings = tuple(settings)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._port = self._listener.getsockname()[1]
        self.url = f"127.0.0.1:{self._port}"
        self.connections = 0
        self._peers: list[Peer] = []
        self._meeting = threading.Lock()  # a connection that is there has a thread that runs
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._threads[0].join()
        self._listener.close()
        self._end_connections()
        if self.failures:
            raise self.failures[0]

    def reform(self) -> None:
        """Serve as it should be whoever comes from now on, the first that comes as well.

        A call whose deadline was short may have left a connection that has yet to be accepted.
        """
        self._reformed = True

    def hang_up(self) -> None:
        """Reform, and close all connections; return when the client's kernel has heard of it."""
        self.reform()
        for peer in self._end_connections():
            self.wait_until_closed(peer.number)

    def wait_until_closed(self, number: int) -> None:
        """Return when one connection is closed, at the client's end too."""
        end = time.monotonic() + 30
        while len(self._peers) <= number:
            assert time.monotonic() < end, "nobody has connected"
            time.sleep(0.001)
        ends = f":{self._peers[number].port:04X} 0100007F:{self._port:04X} 01"  # established
        while ends in Path("/proc/net/tcp").read_text():
            assert time.monotonic() < end, "the connection stays open"
            time.sleep(0.001)

    def _end_connections(self) -> list[Peer]:
        self.stopping.set()
        with self._meeting:
            peers, threads = self._peers[:], self._threads[1:]
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.socket.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        self.stopping.clear()
        return peers

    def _accept(self) -> None:
        for number in itertools.count():
            try:
                connection, address = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
            peer = Peer(self, connection, number, address[1])
            thread = threading.Thread(target=self._run, args=(peer,))
            with self._meeting:
                self._peers.append(peer)
                self._threads.append(thread)
                thread.start()

    def _run(self, peer: Peer) -> None:
        bad = not self._reformed and (self._always or peer.number == 0)
        try:
            with peer.socket:
                if not (bad and self._raw):
                    peer.start(self._settings if bad else ())
                if bad:
                    self._script(peer)
                peer.serve()
        except Gone:
            pass
        except BaseException as failure:
            self.failures.append(failure)
