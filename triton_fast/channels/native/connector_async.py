"""How the native channel's connections are made in an event loop: names, and addresses in turn.

Owns no connection: whoever asks for one has it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from ..event_loop import end_of
from .connection_async import AsyncConnection

if TYPE_CHECKING:
    from ..._core import _http2
    from .channel import Address
    from .loop_budget import LoopBudget

__all__ = ["AsyncConnector"]

# How long to wait for an address before the next one is tried beside it. Source: RFC 8305, 8.
_ATTEMPT_DELAY_S = 0.25


class AsyncConnector:
    """Makes connections to one server.

    Parameters
    ----------
    native : module
        ``_core._http2``.
    address : Address
        The server's.
    budget : LoopBudget
        Of all connections of the channel.
    keepalive : (int, int), nanoseconds
        As in `AsyncConnection`.
    """

    def __init__(
        self, native: Any, address: Address, budget: LoopBudget, keepalive: tuple[int, int]
    ) -> None:
        self._native = native
        self._address = address
        self._budget = budget
        self._keepalive = keepalive

    async def connect(self, on_change: Callable[[], None]) -> AsyncConnection:
        """Connect, and return the connection; ``on_change`` is as in `AsyncConnection`.

        Raises
        ------
        OSError, RuntimeError
            If the server cannot be reached.
        """
        loop = asyncio.get_running_loop()
        hosts = await self._hosts(loop)
        if len(hosts) == 1:
            connecting = await self._reached(loop, hosts[0])
        else:
            connecting = await self._first_reached(loop, deque(hosts))
        multiplexer = self._native.Multiplexer(connecting, self._address.authority)
        return AsyncConnection(loop, multiplexer, self._budget, self._keepalive, on_change)

    async def _reached(self, loop: asyncio.AbstractEventLoop, host: str) -> _http2.Connecting:
        """Connect to an address. Raises RuntimeError."""
        connecting = self._native.Connecting(
            host,
            self._address.port,
            self._address.unix_path.encode("utf-8", "surrogateescape"),
        )
        while not connecting.step():
            await _writable(loop, connecting.descriptor)
        return connecting  # type: ignore[no-any-return]

    async def _first_reached(
        self, loop: asyncio.AbstractEventLoop, hosts: deque[str]
    ) -> _http2.Connecting:
        """Connect to the first of some addresses that answers, as `Connecting` does with a name.

        Raises OSError or RuntimeError.
        """
        failure: BaseException = OSError(f"{self._address.host} has no address")
        trying: set[asyncio.Task[_http2.Connecting]] = set()
        try:
            while hosts or trying:
                if hosts:
                    trying.add(loop.create_task(self._reached(loop, hosts.popleft())))
                done, trying = await asyncio.wait(
                    trying,
                    timeout=_ATTEMPT_DELAY_S if hosts else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                failures = [error for task in done if (error := task.exception())]
                if len(failures) < len(done):
                    return next(task.result() for task in done if not task.exception())
                failure = failures[-1] if failures else failure
        finally:
            for task in trying:
                task.cancel()
            await end_of(trying)
            for task in trying:
                _look_at(task)
        raise failure

    async def _hosts(self, loop: asyncio.AbstractEventLoop) -> list[str]:
        """Return the addresses that the host's name has now: of the families in turn."""
        host, port = self._address.host, self._address.port
        if self._address.unix_path:
            return [host]
        for family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                socket.inet_pton(family, host)
                return [host]
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        first = [str(address[0]) for family, *_, address in found if family == found[0][0]]
        others = [str(address[0]) for family, *_, address in found if family != found[0][0]]
        return [host for pair in zip_longest(first, others) for host in pair if host is not None]


def _look_at(task: asyncio.Task[Any]) -> None:
    """Look at a result that nobody may look at any more, or asyncio would complain."""
    if not task.cancelled():
        task.exception()


async def _writable(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    """Return when a socket can be written to."""
    waiter: asyncio.Future[None] = loop.create_future()
    loop.add_writer(descriptor, _wake, waiter)
    try:
        await waiter
    finally:
        loop.remove_writer(descriptor)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
