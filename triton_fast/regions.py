"""The face of a server's shared memory register: what `Client.shared_memory` is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .errors import InvalidOption
from .registry import RegisteredRegion, Registry
from .stale import StaleRegion, stale_region

if TYPE_CHECKING:
    from .channels.base import CallOptions

__all__ = ["Regions"]


class Regions:
    """Shared memory regions that a client's server knows, its own and everybody else's.

    Notes
    -----
    Every method asks the server, and raises `ServerError` like every call; `Unimplemented` if the
    server takes no shared memory. Thread-safe.
    """

    def __init__(self, registry: Registry, options: Callable[[str], CallOptions]) -> None:
        self._registry = registry
        self._options = options

    def register(self, name: str, key: str, byte_size: int, offset: int = 0) -> None:
        """Have the server map shared memory.

        Parameters
        ----------
        name : str
            What requests will call it.
        key : str
            Its POSIX name, ``"/camera"``.
        byte_size, offset : int, bytes
            Which part of it; the offset is a multiple of the page size.

        Source
        ------
        inference.proto, SystemSharedMemoryRegister.
        """
        if not name:
            raise InvalidOption("a region's name is empty")
        options = self._options(f"SystemSharedMemoryRegister({name!r})")
        self._registry.register(name, key, byte_size, offset, options)

    def unregister(self, name: str) -> None:
        """Have the server let go of a region. Nothing happens if it knows none of that name.

        Source
        ------
        inference.proto, SystemSharedMemoryUnregister.
        """
        if not name:
            raise InvalidOption("a region's name is empty")
        self._registry.unregister(name, self._options(f"SystemSharedMemoryUnregister({name!r})"))

    def registered(self) -> dict[str, RegisteredRegion]:
        """Return all regions that the server knows, by name.

        Source
        ------
        inference.proto, SystemSharedMemoryStatus.
        """
        return self._registry.regions(self._options("SystemSharedMemoryStatus"))

    def stale(self) -> list[StaleRegion]:
        """Return the regions of clients that were killed on this machine, oldest first.

        Their memory is the server's until they are dropped, with `unregister`, or it ends.
        """
        regions = (stale_region(region) for region in self.registered().values())
        return sorted((region for region in regions if region), key=lambda region: -region.age)
