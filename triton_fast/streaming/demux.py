"""Which answer of a stream belongs to which of its requests, and when a request is over. No I/O.

Owns what is known of a stream's requests from when they are made until their last answer. Whoever
uses it guards it, and passes it the stream's answers in the order in which they came.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ..errors import TritonFastError, WireError
from ..inference.result import InferResult, result_of
from ..protocol.server_messages import request_error

if TYPE_CHECKING:
    from ..inference.request import Prepared
    from ..inference.tensor import InputTensor
    from ..protocol.codec import ResponseDecoder

__all__ = ["Inbox", "Item", "Pending", "Refusal", "ResponseDemux"]

Item: TypeAlias = "InferResult | Refusal | TritonFastError"
"""An answer; or what came in its place, or how the stream ended."""

Inbox: TypeAlias = "deque[Item]"
"""What has come for a request, or for several, and was not read yet."""

# What an answer takes beside its tensors, about.
_ANSWER_SIZE = 1024

# The server's word that no more answers to a request come; Triton sends it since 2.35.
_FINAL = "triton_final_response"

_MOST_UNMARKED = 1000
_UNKNOWN = "was not made or has had its last answer"
_UNMARKED = (
    "has had one already: this server does not say which is the last (Triton does since 2.35), so "
    "that many requests on one stream can have one answer each; where a model gives several, use "
    "client.stream, which has a stream for each request"
)


class Pending:
    """A request whose last answer has not come.

    Attributes
    ----------
    id : str
        The caller's; empty if it gave none.
    wire_id : str
        What the server knows it by.
    call : str
        What errors call it.
    inbox : Inbox
        Where its answers go; the caller's.
    alone : bool
        Whether the call has no other request, and there can be none.
    answered : bool
        Whether something came that was no error.
    over : bool
        Whether nothing more comes.
    unmarked : bool
        Whether the last thing that came did not say whether more comes.
    unwanted : bool
        Whether nobody reads what still comes.
    sent : tuple of (Prepared, list of InputTensor), optional
        What was asked, for who explains a refusal; without the tensors' elements.
    """

    __slots__ = (
        "alone",
        "answered",
        "call",
        "id",
        "inbox",
        "over",
        "sent",
        "unmarked",
        "unwanted",
        "wire_id",
    )

    def __init__(
        self, request_id: str, wire_id: str, call: str, inbox: Inbox, *, alone: bool
    ) -> None:
        self.id = request_id
        self.wire_id = wire_id
        self.call = call
        self.inbox = inbox
        self.alone = alone
        self.answered = False
        self.over = False
        self.sent: tuple[Prepared, list[InputTensor]] | None = None
        self.unmarked = False
        self.unwanted = False


class Refusal(NamedTuple):
    """What the server says is wrong with a request, in place of an answer."""

    error: TritonFastError
    pending: Pending


class ResponseDemux:
    """The requests of one stream.

    Parameters
    ----------
    target : str
        For errors.

    Attributes
    ----------
    target : str
        As given.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._pending: dict[str, Pending] = {}
        self._prefix = secrets.token_hex(4)
        self._count = 0
        self._unread = 0  # bytes, at most: what was read since it was counted is in it
        # By their ids, those of requests that are over: they may hold what nobody has read.
        self._left: dict[int, Inbox] = {}
        self._most_left = 100  # before those that are empty are forgotten
        # Requests of late that are over though the server did not say so.
        self._unmarked: deque[str] = deque(maxlen=_MOST_UNMARKED)

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, request_id: str, call: str, inbox: Inbox, *, alone: bool = False) -> Pending:
        """Take note of a request before it is sent.

        The server is told the caller's id, if no other request on the stream has it just now. If it
        is ``alone``, its answers go on to the end of the call where the server does not mark the
        last one.
        """
        self._count += 1
        wire_id = request_id or f"{self._prefix}-{self._count}"
        if wire_id in self._pending:
            wire_id = f"{request_id}-{self._prefix}-{self._count}"
        pending = Pending(request_id, wire_id, call, inbox, alone=alone)
        self._pending[wire_id] = pending
        return pending

    def withdraw(self, pending: Pending) -> None:
        """Forget a request that was not sent."""
        pending.over = True
        self._pending.pop(pending.wire_id, None)

    def deliver(self, responses: Iterable[ResponseDecoder]) -> None:
        """Put answers where they are read.

        Raises
        ------
        WireError
            If one belongs to no request: nothing on the stream can be trusted then.
        ServerError
            If the server says that something is wrong, and not with which request.
        """
        for response in responses:
            error = response.error_message
            result = result_of(response)
            pending = self._pending.get(result.id)
            if pending is None:
                if error:
                    raise request_error(error, "ModelStreamInfer", self.target)
                raise WireError(
                    f"an answer came on the stream for a request {result.id!r}, which "
                    + (_UNMARKED if result.id in self._unmarked else _UNKNOWN)
                )
            # A server that does not say whether more come (Triton before 2.35, others) may end the
            # call when there are none. On a stream that many requests share it does not: there, one
            # answer to each is what can be told apart. After an error of which it says nothing more
            # comes nothing, as the model has not had the request.
            final = result.parameters.get(_FINAL, bool(error) or not pending.alone)
            pending.unmarked = _FINAL not in result.parameters
            result.id = pending.id
            pending.answered = pending.answered or not error
            if not pending.unwanted:
                if error:
                    refusal = request_error(error, pending.call, self.target)
                    pending.inbox.append(Refusal(refusal, pending))
                elif len(result) or not final:
                    pending.inbox.append(result)
                    self._unread += _byte_size(result)
            if final:
                pending.over = True
                del self._pending[pending.wire_id]
                self._left[id(pending.inbox)] = pending.inbox
                if pending.unmarked and not error:
                    self._unmarked.append(pending.wire_id)
        if len(self._left) > self._most_left:
            self._forget_empty()

    def end(self) -> None:
        """Take note that the server has ended the stream well."""
        for pending in list(self._pending.values()):
            if pending.alone and pending.unmarked:
                pending.over = True
                del self._pending[pending.wire_id]

    def fail(self, error: TritonFastError) -> None:
        """End all requests: the stream is over."""
        for pending in self._pending.values():
            if not pending.unwanted:
                pending.inbox.append(error)
            pending.over = True
        self._pending.clear()

    def unread(self, limit: int) -> int:
        """Return the bytes of the answers that nobody has read yet; exact from a limit up."""
        if self._unread >= limit:
            self._forget_empty()
            inboxes = {id(pending.inbox): pending.inbox for pending in self._pending.values()}
            inboxes.update(self._left)
            # Others may take what is there at any time: it is counted in a copy.
            self._unread = sum(
                _byte_size(item) for inbox in inboxes.values() for item in tuple(inbox)
            )
        return self._unread

    def _forget_empty(self) -> None:
        self._left = {key: inbox for key, inbox in self._left.items() if inbox}
        self._most_left = 2 * len(self._left) + 100

    def took(self, item: Item, limit: int) -> int:
        """Take note of an answer that was read; see `unread`, which is exact below the limit too.

        Only of use from when `unread` has been at the limit on.
        """
        self._unread -= _byte_size(item)
        if self._unread >= limit:
            return self._unread
        return self.unread(self._unread)  # not all that were read may have been counted


def _byte_size(item: Item) -> int:
    size = _ANSWER_SIZE
    if isinstance(item, InferResult):
        for array in item.values():
            size += sum(map(len, array.flat)) if array.dtype.hasobject else array.nbytes
    return size
