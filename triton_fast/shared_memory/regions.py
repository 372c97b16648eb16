# Written by `make twins` from regions_async.py, which is the one to edit.
"""The face of a server's shared memory register: what `Client.shared_memory` is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..errors import Internal
from ..protocol.operations import Query
from .ownership import StaleRegion, stale_regions
from .registration import (
    LETTING_GO_PAUSE_S,
    RegisteredRegion,
    ask_again,
    registered,
    registration,
    removal,
)

__all__ = ["Regions"]


class Regions:
    """Shared memory regions that a client's server knows, its own and everybody else's.

    Notes
    -----
    Every method asks the server, and raises `ServerError` like every call; `Unimplemented` if the
    server takes no shared memory. Any number of threads may use it.
    """

    def __init__(self, ask: Callable[[Query[Any]], Any]) -> None:
        self._ask = ask

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
        self._ask(registration(name, key, byte_size, offset))

    def unregister(self, name: str) -> None:
        """Have the server let go of a region. Nothing happens if it knows none of that name.

        Raises
        ------
        Internal
            If the server says for 0.3 s that the region is in use: right after the answer of a
            call it still is, for a moment.

        Source
        ------
        inference.proto, SystemSharedMemoryUnregister.
        """
        since = time.monotonic()
        while True:
            try:
                self._ask(removal(name))
            except Internal as error:
                if not ask_again(error, since):
                    raise
                time.sleep(LETTING_GO_PAUSE_S)
            else:
                return

    def registered(self) -> dict[str, RegisteredRegion]:
        """Return all regions that the server knows, by name.

        Source
        ------
        inference.proto, SystemSharedMemoryStatus.
        """
        regions: dict[str, RegisteredRegion] = self._ask(registered())
        return regions

    def stale(self) -> list[StaleRegion]:
        """Return the regions of clients that were killed on this machine, oldest first.

        Their memory is the server's until they are dropped, with `unregister`, or it ends.
        """
        regions = self.registered()
        return stale_regions(regions.values())
