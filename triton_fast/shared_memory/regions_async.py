"""The face of a server's shared memory register for coroutines: `AsyncClient.shared_memory`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ..errors import Internal
from ..protocol.operations import Query
from .ownership import StaleRegion
from .regions import stale_regions
from .registration import (
    LETTING_GO_PAUSE_S,
    RegisteredRegion,
    ask_again,
    registered,
    registration,
    removal,
)

__all__ = ["AsyncRegions"]


class AsyncRegions:
    """Shared memory regions that a client's server knows; see `.regions.Regions`."""

    def __init__(self, ask: Callable[[Query[Any]], Awaitable[Any]]) -> None:
        self._ask = ask

    async def register(self, name: str, key: str, byte_size: int, offset: int = 0) -> None:
        """Have the server map shared memory; see `.regions.Regions.register`."""
        await self._ask(registration(name, key, byte_size, offset))

    async def unregister(self, name: str) -> None:
        """Have the server let go of a region; see `.regions.Regions.unregister`."""
        since = time.monotonic()
        while True:
            try:
                await self._ask(removal(name))
            except Internal as error:
                if not ask_again(error, since):
                    raise
                await asyncio.sleep(LETTING_GO_PAUSE_S)
            else:
                return

    async def registered(self) -> dict[str, RegisteredRegion]:
        """Return all regions that the server knows, by name."""
        regions: dict[str, RegisteredRegion] = await self._ask(registered())
        return regions

    async def stale(self) -> list[StaleRegion]:
        """Return the regions of killed clients; see `.regions.Regions.stale`."""
        return stale_regions((await self.registered()).values())
