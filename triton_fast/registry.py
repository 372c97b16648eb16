"""The server's register of shared memory regions: what can be asked of it, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import Internal, InvalidOption
from .query import Ask, Query

if TYPE_CHECKING:
    from .channels.base import CallOptions

__all__ = [
    "LETTING_GO_S",
    "RegisteredRegion",
    "Registry",
    "in_use",
    "registered",
    "registration",
    "removal",
]

# How long to ask again while the server says that a region is in use: it lets go of a call's
# regions a moment after it has answered.
LETTING_GO_S = 0.3


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
    fields = {"name": _checked(name), "key": key, "byte_size": byte_size, "offset": offset}
    return Query("SystemSharedMemoryRegister", fields, _nothing)


def removal(name: str) -> Query[None]:
    """Return what has the server let go of a region. It says nothing of one it does not know.

    Source
    ------
    inference.proto, SystemSharedMemoryUnregister.
    """
    return Query("SystemSharedMemoryUnregister", {"name": _checked(name)}, _nothing)


def in_use(error: Internal) -> bool:
    """Say whether this is what a server says that cannot let go of a region yet.

    Notes
    -----
    Triton 2.51 and 2.52 do, with the status Internal; later ones put it off.
    """
    return "currently in use" in str(error)


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
    """

    __slots__ = ("_ask",)

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def register(
        self, name: str, key: str, byte_size: int, offset: int, options: CallOptions
    ) -> None:
        """Have the server map a segment; see `registration`."""
        self._ask(registration(name, key, byte_size, offset), options)

    def unregister(self, name: str, options: CallOptions) -> None:
        """Have the server let go of a region; see `removal`."""
        self._ask(removal(name), options)

    def regions(self, options: CallOptions) -> dict[str, RegisteredRegion]:
        """Return all regions of all clients, by name."""
        return self._ask(registered(), options)


def _checked(name: str) -> str:
    if not name:  # the server would take it for all regions of all clients
        raise InvalidOption("a region's name is empty")
    return name


def _nothing(message: Any) -> None:
    """Read an answer that says nothing."""


def _regions(message: Any) -> dict[str, RegisteredRegion]:
    return {
        name: RegisteredRegion(name, region.key, region.offset, region.byte_size)
        for name, region in message.regions.items()
    }
