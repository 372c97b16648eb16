"""Which failed calls are made again, and why that is safe: the one place that decides it.

Three kinds of failure are over with a second try, and none of them is the caller's:

- The channel says that the server has not begun the call (`ServerError.safe_to_retry`): a
  connection that idled was dead, or the server was going away. Once more, whatever the call.
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

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..errors import ServerError, WireError
from ..protocol.server_messages import explain_lost_region

if TYPE_CHECKING:
    from ..inference.request import Prepared
    from ..shared_memory.placement import Placement

__all__ = ["Repeats", "distrust", "repeated", "repeated_async"]

T = TypeVar("T")


class Concluding(Protocol):
    """A client's use of shared memory, of either face."""

    @property
    def required(self) -> bool:
        """Whether large tensors may not go over the wire."""

    def conclude(self, prepared: Prepared, placement: Placement, error: BaseException) -> bool:
        """Draw the conclusions of a failed call; say whether another placement may do better."""


# With a fresh connection; if that one breaks too, it is not for having idled.
_MOST_UNSEEN = 1
# Several regions may be lost, and several outputs have grown.
_MOST_PLACED_ANEW = 3


class Repeats:
    """How often one call was made again; made when it has failed for the first time."""

    __slots__ = ("_placed_anew", "_unseen")

    def __init__(self) -> None:
        self._unseen = 0
        self._placed_anew = 0

    def unseen(self, error: BaseException) -> bool:
        """Say whether to make a call again that the server has not begun, by all that is known.

        Parameters
        ----------
        error : BaseException
            What the channel has raised.
        """
        if not isinstance(error, ServerError) or not error.safe_to_retry:
            return False
        self._unseen += 1
        return self._unseen <= _MOST_UNSEEN

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
    ) -> bool:
        """Say whether to make an inference again, and draw the conclusions for shared memory.

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
        if isinstance(error, ServerError) and error.safe_to_retry:
            return self.unseen(error)
        again = False
        if shared is not None and placement is not None:
            again = shared.conclude(prepared, placement, error)
        if again and shared is not None:
            self._placed_anew += 1
            again = not self.on_the_wire or not shared.required
        if not again:
            explain_lost_region(error)
        return again


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


def repeated(call: Callable[..., T], *arguments: Any) -> T:
    """Make a management call, and make it again where `Repeats.unseen` says so."""
    repeats = Repeats()
    while True:
        try:
            return call(*arguments)
        except ServerError as error:
            if not repeats.unseen(error):
                raise


async def repeated_async(call: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Do as `repeated`, for coroutines."""
    repeats = Repeats()
    while True:
        try:
            return await call(*arguments)
        except ServerError as error:
            if not repeats.unseen(error):
                raise
