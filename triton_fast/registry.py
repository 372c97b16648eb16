"""The server's register of shared memory regions: the calls, and what they answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from .channels.base import CallOptions

__all__ = ["Exchange", "RegisteredRegion", "Registry"]

Exchange: TypeAlias = "Callable[[str, Mapping[str, Any], CallOptions], Message]"
"""Makes a management call, as `triton_fast.connection.Connection.exchange`."""


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


class Registry:
    """The register of one server. Thread-safe.

    Parameters
    ----------
    exchange : callable
        Makes the calls. All methods raise what it raises.
    """

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def register(
        self, name: str, key: str, byte_size: int, offset: int, options: CallOptions
    ) -> None:
        """Have the server map a segment, or a part of it that begins at a page."""
        fields = {"name": name, "key": key, "byte_size": byte_size, "offset": offset}
        self._exchange("SystemSharedMemoryRegister", fields, options)

    def unregister(self, name: str, options: CallOptions) -> None:
        """Have the server let go of a region. It says nothing of one that it does not know."""
        if not name:
            raise ValueError("an empty name would unregister every client's regions")
        self._exchange("SystemSharedMemoryUnregister", {"name": name}, options)

    def regions(self, options: CallOptions) -> dict[str, RegisteredRegion]:
        """Return all regions of all clients, by name."""
        answer: Any = self._exchange("SystemSharedMemoryStatus", {}, options)
        return {
            name: RegisteredRegion(name, region.key, region.offset, region.byte_size)
            for name, region in answer.regions.items()
        }
