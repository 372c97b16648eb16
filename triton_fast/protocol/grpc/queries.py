"""The management calls' messages on their way through a channel: whole, small, and protobuf's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..._core import _wire
from ...errors import WireError
from ..messages import decode, message_class, method_path

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ..._core import Segment
    from ...channels.base import CallOptions, Channel

__all__ = ["MessageIn", "MessageOut", "exchange", "message_ends"]

# Of what is decoded as a whole, and copied twice for that: configurations have some kilobytes.
_MOST_BYTES = 64 << 20


class MessageOut:
    """An `Outgoing` that is one protobuf message.

    Parameters
    ----------
    message : google.protobuf.message.Message
        Serialized at once; not needed afterwards.
    """

    __slots__ = ("_encoded",)

    def __init__(self, message: Message) -> None:
        self._encoded: bytes = message.SerializeToString()

    @property
    def byte_size(self) -> int:
        """Length of the message in bytes."""
        return len(self._encoded)

    def segments(self) -> list[Segment]:
        """Return the one piece that the message is, which lives as long as this object."""
        return [_wire.address_of(self._encoded)]

    def render(self) -> bytes:
        """Return the message."""
        return self._encoded


class MessageIn:
    """An `Incoming` that gathers one protobuf message.

    Parameters
    ----------
    name : str
        The message's name, ``"ModelReadyResponse"``.
    """

    __slots__ = ("_encoded", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._encoded = bytearray()

    def begin(self, byte_size: int) -> None:
        """Announce the length; nothing is taken on the word of it.

        Raises
        ------
        WireError
            If it is longer than what a server has to say of itself.
        """
        if byte_size > _MOST_BYTES:
            raise WireError(
                f"{self._name} of {byte_size} bytes: at most {_MOST_BYTES} are taken for one"
            )

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next piece."""
        self._encoded += data

    def finish(self) -> None:
        """Say that the message is complete."""

    def message(self) -> Message:
        """Return the message.

        Raises
        ------
        WireError
            If the bytes are none.
        """
        return decode(self._name, bytes(self._encoded))


def message_ends(method: str, fields: Mapping[str, Any]) -> tuple[MessageOut, MessageIn]:
    """Return both ends of a management call: its request, and what receives its answer."""
    request = MessageOut(message_class(f"{method}Request")(**fields))
    return request, MessageIn(f"{method}Response")


def exchange(
    channel: Channel, method: str, fields: Mapping[str, Any], options: CallOptions
) -> Message:
    """Make a management call, wait, and return the answer's message.

    Raises
    ------
    ServerError, WireError, ClosedError
        As `triton_fast.channels.base.Channel.call`.
    """
    request, response = message_ends(method, fields)
    channel.call(method_path(method), request, response, options)
    return response.message()
