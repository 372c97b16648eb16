"""Which failed calls are made again, and why that is safe: the one place that decides it.

Three kinds of failure are over with another try, and none of them is the caller's:

- The channel says that the server has not begun the call (`ServerError.safe_to_retry`): a
  connection that idled was dead, the server was going away, or refused the stream. Until the call's
  deadline, whatever the call; `triton_fast.channels.unseen` has the rule, which streams go by too.
- The server does not know a shared memory region any more: it was started anew, and the call is
  placed in fresh slots. Or there are several servers, and the call goes over the wire; see
  `triton_fast.shared_memory.several_servers`.
- An output has outgrown its slot, or is gone, because the model was replaced. The call is placed
  anew, too. The model may have run for nothing then, which is why one with state is never asked for
  outputs in shared memory; see `triton_fast.shared_memory.placement`.

Where shared memory is not required, a call that was placed anew too often goes over the wire.
Everything else is the caller's to decide. Channels make a call once.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..channels.unseen import Unseen
from ..errors import ServerError, WireError
from ..protocol.server_messages import advise

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ..channels.base import CallOptions, Channel
    from ..inference.request import Prepared
    from ..shared_memory.placement import Placement

__all__ = ["Repeats", "distrust", "exchanged", "repeated", "repeated_async"]

T = TypeVar("T")


class Concluding(Protocol):
    """A client's use of shared memory, of either face."""

    @property
    def required(self) -> bool:
        """Whether large tensors may not go over the wire."""

    def conclude(self, prepared: Prepared, placement: Placement, error: BaseException) -> bool:
        """Draw the conclusions of a failed call; say whether another placement may do better."""


# Several regions may be lost, and several outputs have grown.
_MOST_PLACED_ANEW = 3


class Repeats:
    """How often one call was made again; made when it has failed for the first time.

    Parameters
    ----------
    deadline_ns : int or None
        The call's.
    wanted : callable
        Says whether anybody waits for the call still.
    """

    __slots__ = ("_placed_anew", "_unseen", "_wanted")

    def __init__(self, deadline_ns: int | None, wanted: Callable[[], bool] = lambda: True) -> None:
        self._unseen = Unseen(deadline_ns)
        self._wanted = wanted
        self._placed_anew = 0

    @property
    def on_the_wire(self) -> bool:
        """Whether the call is not to be placed in shared memory again."""
        return self._placed_anew > _MOST_PLACED_ANEW

    def after(
        self,
        error: BaseException,
        shared: Concluding | None,
        prepared: Prepared,
        placement: Placement | None,
    ) -> float | None:
        """Say after how many seconds to make an inference again; None not to, and raise the error.

        Draws the conclusions for shared memory.

        Parameters
        ----------
        error : BaseException
            What the channel has raised.
        shared : SharedMemory, AsyncSharedMemory or None
            The client's use of shared memory.
        prepared : Prepared
            What was asked for.
        placement : Placement or None
            What of it was in shared memory.
        """
        pause = self._unseen.pause(error)
        if isinstance(error, ServerError) and error.safe_to_retry:
            return pause if self._wanted() else None
        again = False
        if shared is not None and placement is not None:
            again = shared.conclude(prepared, placement, error)
        if again and shared is not None:
            self._placed_anew += 1
            again = not self.on_the_wire or not shared.required
        if not again:
            advise(error)
        return 0.0 if again else None


def distrust(
    error: BaseException,
    shared: Concluding | None,
    prepared: Prepared,
    placement: Placement | None,
) -> None:
    """Draw the conclusions for shared memory of an answer that made no sense.

    Nobody knows then what the server has done, or does, with the slots. For the parameters see
    `Repeats.after`.
    """
    if isinstance(error, WireError) and shared is not None and placement is not None:
        shared.conclude(prepared, placement, error)


def repeated(deadline_ns: int | None, call: Callable[..., T], *arguments: Any) -> T:
    """Make a management call, and make it again where `Unseen.pause` says so."""
    unseen = Unseen(deadline_ns)
    while True:
        try:
            return call(*arguments)
        except ServerError as error:
            pause = unseen.pause(error)
            if pause is None:
                raise
        time.sleep(pause)


def exchanged(
    channel: Channel, method: str, fields: Mapping[str, Any], options: CallOptions
) -> Message:
    """Make a management call by its name, again as `repeated` does, and return the answer."""
    from ..protocol.grpc.queries import exchange  # noqa: PLC0415 - management only

    return repeated(options.deadline_ns, exchange, channel, method, fields, options)


async def repeated_async(
    deadline_ns: int | None, call: Callable[..., Awaitable[T]], *arguments: Any
) -> T:
    """Do as `repeated`, for coroutines."""
    import asyncio  # noqa: PLC0415 - the face for threads does without

    unseen = Unseen(deadline_ns)
    while True:
        try:
            return await call(*arguments)
        except ServerError as error:
            pause = unseen.pause(error)
            if pause is None:
                raise
        await asyncio.sleep(pause)
