"""One connection of the native channel in an event loop, and the calls that share it.

Owns what the loop has registered for the connection: its reader, its writer, its timers. Wakes
whoever waits for a call when there is news of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..._core import _http2
    from .loop_budget import LoopBudget

__all__ = ["AsyncConnection"]


class AsyncConnection:
    """A connection, from when it is made until it is hung up.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        Drives it; all methods are called on it.
    multiplexer : _http2.Multiplexer
        Connected.
    budget : LoopBudget
        Of all connections of the channel.
    keepalive : (int, int), nanoseconds
        Silence after which to ping while there are calls, and how long to wait; 0 is off.
    on_change : callable
        Called when there may be a place for a call, or there is none any more.

    Attributes
    ----------
    calls, byte_size : int
        How many calls are on it, and how many bytes they send.
    promised : int
        How many calls were given a place on it, and are about to begin.
    idle_since : float
        When the last of them ended, in seconds of ``loop.time()``.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        multiplexer: _http2.Multiplexer,
        budget: LoopBudget,
        keepalive: tuple[int, int],
        on_change: Callable[[], None],
    ) -> None:
        self.multiplexer = multiplexer
        self.calls = 0
        self.byte_size = 0
        self.promised = 0
        self.idle_since = loop.time()
        self._loop = loop
        self._budget = budget
        self._on_change = on_change
        self._waiting: set[Callable[[], None]] = set()  # for the loop's next round
        self._descriptor = multiplexer.descriptor
        self._scheduled = False
        self._writing = False
        self._retired = False
        self._keepalive = tuple(one * 1e-9 for one in keepalive)
        self._timer: asyncio.TimerHandle | None = None
        loop.add_reader(self._descriptor, self._on_readable)

    @property
    def usable(self) -> bool:
        """Whether it takes new calls."""
        return not self._retired and self.multiplexer.usable

    def begin(self, byte_size: int) -> None:
        """Count a call that was just opened, and have it sent."""
        self.calls += 1
        self.byte_size += byte_size
        if self.calls == 1:
            if self._keepalive[0] and self._timer is None:
                self._expect(self.multiplexer.received)
            if not (self._scheduled or self._budget.over):
                # Nobody else is at it who might have something to send along.
                self._budget.run(self.flush)
                return
        self.flush_soon()

    def finish(self, byte_size: int) -> None:
        """Count a call out."""
        self.calls -= 1
        self.byte_size -= byte_size
        if self.calls == 0:
            self.idle_since = self._loop.time()
            if not self.usable:
                self.hang_up()
        self._on_change()

    def decline(self) -> None:
        """Say that a place that was given to a call is not taken."""
        self._on_change()

    def retire(self) -> None:
        """Take no more calls; hang up after the last one."""
        self._retired = True
        if self.calls == 0:
            self.hang_up()

    def flush_soon(self) -> None:
        """Send what there is when all who can run now have had their turn."""
        # A loop that was closed in mid-call leaves its calls to whoever collects them.
        if not self._scheduled and not self._loop.is_closed():
            self._scheduled = True
            self._loop.call_soon(self._in_turn, self.flush)

    def flush(self) -> None:
        """Send what the kernel takes now."""
        self._scheduled = False
        try:
            self.multiplexer.flush()
        except BaseException as error:
            self._break(error)
            raise
        self._settle()

    def drop(self, exchange: _http2.Exchange, timer: asyncio.TimerHandle | None) -> None:
        """Give up a call that nobody waits for any more. Any thread."""
        if self.multiplexer.inherited or self._loop.is_closed():
            return
        with contextlib.suppress(RuntimeError):  # closed just now
            self._loop.call_soon_threadsafe(self._give_up, exchange, timer)

    def _give_up(self, exchange: _http2.Exchange, timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
        self.multiplexer.close(exchange)
        self.flush()
        self.finish(0)

    def hang_up(self, reason: str = "the connection was closed") -> None:
        """Close the connection. Calls that are on it end. Idempotent."""
        if self._descriptor < 0:
            return
        self._retired = True
        if not self._loop.is_closed():
            self._loop.remove_reader(self._descriptor)
            self._loop.remove_writer(self._descriptor)
        self._descriptor = -1
        if self._timer is not None:
            self._timer.cancel()
        if not self.multiplexer.broken:
            self.multiplexer.fail(reason)
        self.multiplexer.hang_up()
        if not self._loop.is_closed():
            wake(self.multiplexer.news())
            self._on_change()

    def _on_readable(self) -> None:
        self._in_turn(self._receive)

    def _on_writable(self) -> None:
        self._in_turn(self._go_on_sending)

    def _in_turn(self, step: Callable[[], None]) -> None:
        """Take a step now, or in the loop's next round if connections have had enough of this one.

        Those that had to wait come first then, for the loop tells of ready ones in the same order
        every time.
        """
        if not self._budget.over:
            self._budget.run(step)
        elif step not in self._waiting:
            self._waiting.add(step)
            self._loop.call_soon(self._resume, step)

    def _resume(self, step: Callable[[], None]) -> None:
        self._waiting.discard(step)
        if self._descriptor >= 0:
            self._in_turn(step)

    def _receive(self) -> None:
        try:
            news = self.multiplexer.receive()
        except BaseException as error:
            self._break(error)
            raise
        wake(news)
        self._settle()
        self._on_change()  # the server may take more calls by now, or none any more

    def _settle(self) -> None:
        """Watch for what is to be watched for now."""
        if self.multiplexer.broken:
            self.hang_up()
            return
        wants_write = self.multiplexer.wants_write
        if wants_write != self._writing and self._descriptor >= 0:
            self._writing = wants_write
            if wants_write:
                self._loop.add_writer(self._descriptor, self._on_writable)
            else:
                self._loop.remove_writer(self._descriptor)

    def _go_on_sending(self) -> None:
        self.flush()
        # A message that is sent, or memory that is read no more.
        wake(self.multiplexer.news())

    def _break(self, error: BaseException) -> None:
        """End the connection for something that no peer can do: memory has run out, say."""
        self.multiplexer.fail(f"the connection cannot go on: {error!r}")
        self.hang_up()

    def _expect(self, received: int) -> None:
        self._timer = self._loop.call_later(self._keepalive[0], self._after_silence, received)

    def _after_silence(self, received: int) -> None:
        self._timer = None
        if self.calls == 0:
            return
        if self.multiplexer.received != received:
            self._expect(self.multiplexer.received)
            return
        answered = self.multiplexer.ping()
        self.flush()
        if self._descriptor >= 0:
            self._timer = self._loop.call_later(self._keepalive[1], self._after_ping, answered)

    def _after_ping(self, answered: int) -> None:
        self._timer = None
        if self.multiplexer.acknowledged_pings == answered:
            self.hang_up("the server did not answer a ping in time")
        else:
            self._expect(self.multiplexer.received)


def wake(exchanges: list[_http2.Exchange]) -> None:
    """Wake those who wait for calls."""
    for exchange in exchanges:
        waiter = exchange.waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
