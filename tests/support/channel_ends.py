"""Both ends of a channel's calls, made of plain bytes: what is sent, and who is told what comes."""

from __future__ import annotations

import threading

from triton_fast._core import _wire
from triton_fast.protocol.messages import message_class


class Message:
    """An Outgoing of given bytes that counts how often it was rendered."""

    def __init__(self, message: bytes = b"") -> None:
        self.message = message
        self.rendered = 0

    @property
    def byte_size(self) -> int:
        return len(self.message)

    def segments(self):
        return [_wire.address_of(self.message)]

    def render(self) -> bytes:
        self.rendered += 1
        return self.message


def received(stream, deadline_ns=None):
    """Return what a stream receives next: a list, empty at its end."""
    into = []
    stream.receive(into, deadline_ns)
    return into


class FreshMessage(Message):
    """An Outgoing whose bytes belong to nobody else once they are rendered."""

    def __init__(self, byte_size: int) -> None:
        super().__init__()
        self.size = byte_size

    @property
    def byte_size(self) -> int:
        return self.size

    def render(self) -> bytes:
        return b"\x01" * self.size  # zeros would take no memory until somebody writes them


class Answer:
    """An Incoming that keeps what it was told, in order."""

    def __init__(self, fail_in: str = "", error: BaseException | None = None) -> None:
        self.told: list[object] = []
        self.bytes = b""
        self._fail_in = fail_in
        self._error = error

    def begin(self, byte_size: int) -> None:
        self._tell("begin", byte_size)

    def feed(self, data) -> None:
        self._tell("feed", len(data))
        self.bytes += bytes(data)

    def finish(self) -> None:
        self._tell("finish", None)

    def _tell(self, what: str, size: int | None) -> None:
        self.told.append(what)
        if what == "begin":
            self.announced = size
        if what == self._fail_in:
            raise self._error


class Ending:
    """An on_done that keeps how often it was called, with what and where."""

    def __init__(self) -> None:
        self.errors: list[BaseException | None] = []
        self.thread = 0
        self._over = threading.Event()

    def __call__(self, error: BaseException | None) -> None:
        self.errors.append(error)
        self.thread = threading.get_ident()
        self._over.set()

    def wait(self, timeout: float = 30.0) -> BaseException | None:
        assert self._over.wait(timeout), "the call did not end"
        return self.errors[0]


def envelope(text: str, error: str = "") -> bytes:
    """Return a message of a stream: ModelStreamInferResponse with an id."""
    message = message_class("ModelStreamInferResponse")(error_message=error)
    message.infer_response.id = text
    return message.SerializeToString()
