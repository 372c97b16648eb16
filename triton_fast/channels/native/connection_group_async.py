"""The connections that calls of one kind share, in an event loop, and the places on them.

Owns the connections, the tasks that make them, and the order in which calls wait. A server says
how many calls it takes at a time on a connection (SETTINGS_MAX_CONCURRENT_STREAMS): where all
places are taken, a further connection is made, and whoever comes waits in order for the first place
that there is. So calls that never end hold up no others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from ...errors import Cancelled, ClosedError, DeadlineExceeded, Unavailable
from ..event_loop import seconds_left

if TYPE_CHECKING:
    from ..base import CallOptions
    from .connection_async import AsyncConnection

__all__ = ["AsyncConnectionGroup"]

# As many as the pool for threads has; beyond, calls wait for others to end.
_MOST = 128
# Shorter than the idle timeouts of the load balancers that people put in between (60 s and up).
_IDLE_S = 50.0


class Connect(Protocol):
    """Makes connections."""

    def __call__(self, on_change: Callable[[], None]) -> Coroutine[Any, Any, AsyncConnection]:
        """Return one, which calls what it is given when a place on it has come or gone.

        Raises
        ------
        OSError, RuntimeError
            If the server cannot be reached.
        """


class AsyncConnectionGroup:
    """The connections to one server for one kind of calls.

    Parameters
    ----------
    connect : Connect
        Makes one. Does not know the channel, which goes when nobody uses it any more.
    loop : asyncio.AbstractEventLoop
        All methods are called on it.
    usual : int
        So many connections there may be though those that there are have places: a call has one to
        itself then. More are made only for want of places.
    target : str
        For errors.
    """

    def __init__(
        self, connect: Connect, loop: asyncio.AbstractEventLoop, usual: int, target: str
    ) -> None:
        self._connect = connect
        self._loop = loop
        self._usual = usual
        self._target = target
        self._connections: list[AsyncConnection] = []
        self._opening: set[asyncio.Task[AsyncConnection]] = set()
        # Each is given a connection, or why there is none.
        self._waiting: deque[asyncio.Future[AsyncConnection | BaseException]] = deque()
        self._scheduled = False
        self._hung_up = False

    def free(self) -> AsyncConnection | None:
        """Return a connection for a call that is begun at once; None if it has to wait for one."""
        if self._waiting:
            return None
        found = self._best()
        if found is None or (found.calls and len(self._connections) < self._usual):
            return None
        return found

    async def place(
        self, options: CallOptions, given_up: asyncio.Future[None] | None = None
    ) -> AsyncConnection:
        """Wait for a connection with a place for a call, which is to be begun at once.

        Parameters
        ----------
        options : CallOptions
            The call's.
        given_up : asyncio.Future, optional
            Done when the call is given up by others than the task that waits here.

        Raises
        ------
        DeadlineExceeded
            If there is none in time.
        Cancelled
            If the call is given up meanwhile.
        Unavailable
            If the server cannot be reached.
        ClosedError
            If the channel is closed meanwhile.
        """
        first = False
        while True:
            if self._hung_up:
                raise self._closed()
            waiter: asyncio.Future[AsyncConnection | BaseException] = self._loop.create_future()
            if first:
                self._waiting.appendleft(waiter)
            else:
                self._waiting.append(waiter)
            self._settle()
            try:
                await asyncio.wait(
                    (waiter,) if given_up is None else (waiter, given_up),
                    timeout=seconds_left(options.deadline_ns),
                    return_when=asyncio.FIRST_COMPLETED,
                )
            except BaseException:
                self._withdraw(waiter)
                raise
            if not waiter.done():
                self._withdraw(waiter)
                if given_up is not None and given_up.done():
                    raise Cancelled(
                        "the call was cancelled", call=options.call, target=self._target
                    )
                raise DeadlineExceeded(self._late(), call=options.call, target=self._target)
            given = waiter.result()
            if self._hung_up:
                raise self._closed()
            if isinstance(given, BaseException):
                raise Unavailable(_said(given), call=options.call, target=self._target) from given
            given.promised -= 1
            if given.usable:
                return given
            first = True  # it broke, or the server said good-bye, just now

    def hang_up(self, reason: str = "the connection was closed") -> None:
        """Close all connections, for a reason; whoever waits for one gets `ClosedError`."""
        self._hung_up = True
        if not self._loop.is_closed():  # or nobody is told any more
            for task in self._opening:
                task.cancel()
            self._give_up(self._closed())
        for connection in self._connections:
            connection.hang_up(reason)

    def hang_up_soon(self) -> None:
        """Close all connections when the loop gets to it. Any thread."""
        self._hung_up = True
        for connection in self._connections:
            if not connection.multiplexer.inherited:
                with contextlib.suppress(RuntimeError):  # the loop was closed just now
                    self._loop.call_soon_threadsafe(connection.hang_up)

    def _best(self) -> AsyncConnection | None:
        """Return the connection with a place that sends the least; forget those of no more use.

        Where there are several though they have places, an idle one comes first.
        """
        found: AsyncConnection | None = None
        least = (True, 0)
        stale = []
        for connection in self._connections:
            calls = connection.calls + connection.promised
            if not connection.usable or (
                not calls and self._loop.time() - connection.idle_since > _IDLE_S
            ):
                stale.append(connection)
            elif calls < connection.multiplexer.most_calls:
                load = (calls != 0 and self._usual > 1, connection.byte_size)
                if found is None or load < least:
                    found, least = connection, load
        for connection in stale:
            self._connections.remove(connection)
            connection.retire()
        return found

    def _settle(self, *, opening: bool = True) -> None:
        """Give places to those who wait, in order, and have connections made for the others."""
        self._scheduled = False
        while self._waiting:
            connection = self._best()
            if connection is None:
                break
            few = len(self._connections) < self._usual
            if few and (connection.calls or connection.promised) and (opening or self._opening):
                break  # one that it has to itself is on its way, or about to be
            waiter = self._waiting.popleft()
            connection.promised += 1
            waiter.set_result(connection)
        if self._waiting and opening:
            for _ in range(self._wanted()):
                task = self._loop.create_task(self._connect(self._on_change))
                self._opening.add(task)
                task.add_done_callback(self._on_opened)

    def _wanted(self) -> int:
        """Return how many connections are to be made for those who wait."""
        there = len(self._connections) + len(self._opening)
        waiting = len(self._waiting)
        if there < self._usual:
            return min(waiting - len(self._opening), self._usual - there)
        known = [one.multiplexer.most_calls for one in self._connections if one.multiplexer.settled]
        unknown = there - len(known)
        if not known:
            return 0 if unknown else 1  # what the first one is told holds for the others
        most = max(known)
        if most == 0:
            return 0  # the server takes no calls, for the time being
        return max(0, min(-(-waiting // most) - unknown, _MOST - there))

    def _on_opened(self, task: asyncio.Task[AsyncConnection]) -> None:
        self._opening.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            if self._hung_up:
                task.result().hang_up()
                return
            self._connections.append(task.result())
            self._settle()
            return
        # Others may have places, or be about to have some.
        self._best()
        if self._connections or self._opening:
            self._settle(opening=False)
        else:
            self._give_up(error)

    def _on_change(self) -> None:
        """Look, in the loop's next round, whether there is a place for one who waits."""
        if self._waiting and not self._scheduled and not self._loop.is_closed():
            self._scheduled = True
            self._loop.call_soon(self._settle)

    def _withdraw(self, waiter: asyncio.Future[AsyncConnection | BaseException]) -> None:
        """Forget one who waits no more, and give its place, if it was given one, to the next."""
        if not waiter.done():
            self._waiting.remove(waiter)
            waiter.cancel()
            return
        given = waiter.result()
        if not isinstance(given, BaseException):
            given.promised -= 1
            self._on_change()

    def _give_up(self, error: BaseException) -> None:
        """Tell all who wait that there will be no connection."""
        while self._waiting:
            self._waiting.popleft().set_result(error)

    def _closed(self) -> ClosedError:
        return ClosedError(f"the channel to {self._target} was closed during the call")

    def _late(self) -> str:
        known = [one.multiplexer.most_calls for one in self._connections if one.multiplexer.settled]
        if not known:
            return "the deadline passed while connecting"
        return (
            "the deadline passed while waiting for other calls to end: the server takes "
            f"{max(known)} at a time on a connection"
        )


def _said(error: BaseException) -> str:
    return str(error).removeprefix("triton_fast's native code failed: ")
