"""What a stream has sent, as copies to be sent again, until the server is heard of. No I/O.

Owns the copies. Shared by `repeated_stream` and `repeated_stream_async`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from .._core import _wire

if TYPE_CHECKING:
    from .._core import Segment
    from ..channels.base import Outgoing
    from .final_answers import FinalAnswers

__all__ = ["HeldMessages"]

# Of one stream, together. A request that is larger is not copied: most servers take no more than a
# part of it before they have said something about the stream, and until then it is being sent.
_MOST_BYTES = 4 << 20


class HeldMessages:
    """Copies of the messages of one stream on which nothing has come yet.

    Parameters
    ----------
    final_answers : FinalAnswers, optional
        Of the server, where requests ask for the mark of the last answer.

    Attributes
    ----------
    complete : bool
        Whether they are all that was sent, so that the stream can be begun again. Not any more
        once the server was heard of, or more was sent than is held.
    """

    def __init__(self, final_answers: FinalAnswers | None = None) -> None:
        self.complete = True
        self._final_answers = final_answers
        self._ask = False  # whether one of them asks for the mark
        self._messages: list[tuple[SentMessage, bool]] = []
        self._byte_size = 0

    def __iter__(self) -> Iterator[tuple[Outgoing, bool]]:
        """Iterate over the messages, and whether each was the last one."""
        return iter(list(self._messages))

    def add(self, outgoing: Outgoing, *, last: bool) -> None:
        """Keep a copy of a message that was just sent, and whose memory is there still."""
        if not self.complete:
            return
        self._byte_size += outgoing.byte_size
        if self._byte_size > _MOST_BYTES:
            self.let_go()
        else:
            self._messages.append((SentMessage(outgoing.render()), last))

    def to_send(self, outgoing: Outgoing) -> Outgoing:
        """Return a message as it is to be sent: without asking, where the server refuses that."""
        if self._final_answers is not None and self._final_answers.refused:
            return SentMessage(self._final_answers.unasked(outgoing.render()))
        self._ask = True
        return outgoing

    def refused(self, responses: Iterable[Any]) -> bool:
        """Say whether the first answers are that the messages must not ask for the mark.

        Then they are held as they are without, to be sent again.
        """
        asked = self._final_answers
        if asked is None or not self._ask or not self.complete:
            return False
        if not asked.take_note(responses, (message.render() for message, _ in self._messages)):
            return False
        self._ask = False
        self._messages = [
            (SentMessage(asked.unasked(message.render())), last) for message, last in self._messages
        ]
        return True

    def let_go(self) -> None:
        """Keep nothing any more: the stream is not to be begun again. Idempotent."""
        if self.complete:
            self.complete = False
            self._messages = []


class SentMessage:
    """An `Outgoing` that has its own memory."""

    __slots__ = ("_message",)

    def __init__(self, message: bytes) -> None:
        self._message = message

    @property
    def byte_size(self) -> int:
        """Its length."""
        return len(self._message)

    def segments(self) -> list[Segment]:
        """Return it in one piece; valid as long as this lives."""
        return [_wire.address_of(self._message)]

    def render(self) -> bytes:
        """Return it."""
        return self._message
