"""The server's register of shared memory regions: what can be asked of it, and what it answers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import FailedPrecondition, Internal, InvalidArgument, TritonFastError
from ..management.server import server_metadata
from ..options.values import checked_text, whole_number
from ..protocol.operations import Ask, Query
from ..protocol.server_messages import region_in_use

if TYPE_CHECKING:
    from ..channels.base import CallOptions

    AskAfresh = Callable[[], AbstractContextManager[Ask]]

__all__ = [
    "LETTING_GO_PAUSE_S",
    "LETTING_GO_S",
    "NOT_NOW",
    "RegisteredRegion",
    "Registry",
    "ask_again",
    "registered",
    "registration",
    "removal",
]

# The first Triton that lives on if a region goes which a call is at.
_SURVIVES = (2, 51)

# How long to ask again, and how often, while the server says that a region is in use: it lets go of
# a call's regions a moment after it has answered.
LETTING_GO_S = 0.3
LETTING_GO_PAUSE_S = 0.01
# How it says so: Triton 2.51 and 2.52 refuse while a call is on the region; later ones put it off,
# and list it until then.
NOT_NOW = (Internal, InvalidArgument, FailedPrecondition)


@dataclass(frozen=True, slots=True)
class RegisteredRegion:
    """A region of system shared memory, as the server lists it.

    Parameters
    ----------
    name : str
        What requests call it.
    key : str
        The POSIX name under which the server opened it.
    offset, byte_size : int, bytes
        Which part of the segment the region is.

    Source
    ------
    inference.proto, SystemSharedMemoryStatusResponse.RegionStatus.
    """

    name: str
    key: str
    offset: int
    byte_size: int


def registration(name: str, key: str, byte_size: int, offset: int) -> Query[None]:
    """Return what has the server map a segment, or a part of it that begins at a page.

    Source
    ------
    inference.proto, SystemSharedMemoryRegister.
    """
    fields = {
        "name": _checked(name),
        "key": checked_text(key, "key"),
        "byte_size": whole_number(byte_size, "byte_size must be a number of bytes", 1),
        "offset": whole_number(offset, "offset must be a number of bytes", 0),
    }
    return Query("SystemSharedMemoryRegister", fields, _nothing)


def removal(name: str) -> Query[None]:
    """Return what has the server let go of a region. It says nothing of one it does not know.

    Source
    ------
    inference.proto, SystemSharedMemoryUnregister.
    """
    return Query("SystemSharedMemoryUnregister", {"name": _checked(name)}, _nothing)


def ask_again(error: Internal, since: float) -> bool:
    """Say whether to ask for a removal once more, of which a server says that it cannot be yet.

    Parameters
    ----------
    error : Internal
        What the server said.
    since : float, seconds
        When it was asked first, of `time.monotonic`.

    Notes
    -----
    Triton 2.51 and 2.52 refuse while a call is on the region; later ones put it off.
    """
    return region_in_use(error) and time.monotonic() - since <= LETTING_GO_S


def registered() -> Query[dict[str, RegisteredRegion]]:
    """Return the question for all regions of all clients, by name.

    Source
    ------
    inference.proto, SystemSharedMemoryStatus.
    """
    return Query("SystemSharedMemoryStatus", {}, _regions)


class Registry:
    """The register of one server, for those that wait. Thread-safe.

    Parameters
    ----------
    ask : callable
        Makes the calls. All methods raise what it raises.
    ask_afresh : callable, optional
        Returns, for the time of a ``with`` block, what makes calls on a connection of its own,
        which another server may be at the end of. By default there is none, and ``ask`` does.
    """

    __slots__ = ("_ask", "_ask_afresh", "_survives")

    def __init__(self, ask: Ask, ask_afresh: AskAfresh | None = None) -> None:
        self._ask = ask
        self._ask_afresh = ask_afresh
        self._survives: bool | None = None

    @contextmanager
    def afresh(self) -> Iterator[Registry]:
        """Return the register at the end of a new connection, which goes with the block."""
        if self._ask_afresh is None:
            yield Registry(self._ask)
            return
        with self._ask_afresh() as ask:
            yield Registry(ask)

    def register(
        self, name: str, key: str, byte_size: int, offset: int, options: CallOptions
    ) -> None:
        """Have the server map a segment; see `registration`."""
        self._ask(registration(name, key, byte_size, offset), options)

    def unregister(self, name: str, options: CallOptions) -> None:
        """Have the server let go of a region; see `removal`."""
        self._ask(removal(name), options)

    def survives_removal(self, options: CallOptions) -> bool:
        """Whether the server lives on if a region goes while a call that was given up is at it.

        Triton before 2.51 dies (SIGSEGV) when the model gets to the region. Also False if the
        server does not say which it is.
        """
        if self._survives is None:
            try:
                self._survives = self.says_that_it_survives(options)
            except TritonFastError:
                return False
        return self._survives

    def says_that_it_survives(self, options: CallOptions) -> bool:
        """Ask for what `survives_removal` remembers: the next one may be another server."""
        version = self._ask(server_metadata(), options).version
        found = re.match(r"([0-9]{1,4})\.([0-9]{1,4})\b", version)
        return found is None or (int(found[1]), int(found[2])) >= _SURVIVES

    def regions(self, options: CallOptions) -> dict[str, RegisteredRegion]:
        """Return all regions of all clients, by name."""
        return self._ask(registered(), options)


def _checked(name: str) -> str:
    # An empty one the server would take for all regions of all clients.
    return checked_text(name, "a region's name")


def _nothing(message: Any) -> None:
    """Read an answer that says nothing."""


def _regions(message: Any) -> dict[str, RegisteredRegion]:
    return {
        name: RegisteredRegion(name, region.key, region.offset, region.byte_size)
        for name, region in message.regions.items()
    }
