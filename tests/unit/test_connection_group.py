"""Who is given a place on which of the native channel's connections; the connections are played."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from triton_fast import ClosedError, DeadlineExceeded, Unavailable
from triton_fast.channels.base import CallOptions
from triton_fast.channels.native import connection_group_async
from triton_fast.channels.native.connection_group_async import AsyncConnectionGroup
from triton_fast.options.deadline import deadline_after


class Connection:
    """What of an `AsyncConnection` the group asks."""

    def __init__(self, on_change, most):
        self.calls = self.promised = self.byte_size = 0
        self.idle_since = asyncio.get_running_loop().time()
        self.usable = True
        self.on_change = on_change
        self.multiplexer = SimpleNamespace(most_calls=1, settled=False, inherited=False)
        if most is not None:
            self.settle(most)

    def settle(self, most):
        self.multiplexer.most_calls, self.multiplexer.settled = most, True
        self.on_change()

    def begin(self):
        assert self.usable
        self.calls += 1
        assert self.calls + self.promised <= self.multiplexer.most_calls
        return self

    def end(self):
        self.calls -= 1
        self.on_change()

    def retire(self):
        self.usable = False
        self.on_change()

    def hang_up(self, reason):
        self.retire()


class Server:
    """Makes connections, of which each takes so many calls; None until it says so."""

    def __init__(self, most, usual=1):
        self.most = most
        self.made = []
        self.failure = None
        self.group = AsyncConnectionGroup(
            self.connect, asyncio.get_running_loop(), usual, "localhost:1"
        )

    async def connect(self, on_change):
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        self.made.append(Connection(on_change, self.most))
        return self.made[-1]

    async def call(self, timeout=None):
        """Begin a call, as the channel does; return its connection."""
        found = self.group.free()
        if found is None:
            found = await self.group.place(CallOptions(deadline_after(timeout)))
        return found.begin()

    def calls(self, number):
        return [asyncio.ensure_future(self.call()) for _ in range(number)]


async def turns():
    """Let all who can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def done(calls):
    return [call.done() for call in calls]


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(connection_group_async, "_MOST", 2)


def test_the_first_call_goes_at_once_and_others_when_the_server_has_said_how_many():
    async def main():
        server = Server(None)
        calls = server.calls(6)
        await turns()
        assert (done(calls), len(server.made)) == ([True] + [False] * 5, 1)
        server.made[0].settle(3)
        await turns()
        assert (done(calls), len(server.made)) == ([True] * 4 + [False] * 2, 2)
        server.made[1].settle(3)
        await turns()
        assert done(calls) == [True] * 6

    asyncio.run(main())


def test_places_are_given_in_order():
    async def main():
        server = Server(1)
        calls = server.calls(5)
        await turns()
        assert done(calls) == [True, True, False, False, False]
        calls[0].result().end()
        # Whoever comes between the end and who waits for it comes last all the same.
        assert server.group.free() is None
        late = asyncio.ensure_future(server.call())
        await turns()
        assert [*done(calls), late.done()] == [True, True, True, False, False, False]
        assert len(server.made) == 2
        # A place that is given to one who does not wait any more is the next one's.
        calls[1].result().end()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        calls[3].cancel()
        await turns()
        assert calls[3].cancelled()
        assert [calls[4].done(), late.done()] == [True, False]
        with pytest.raises(DeadlineExceeded, match="the server takes 1 at a time"):
            await server.call(0.01)
        calls[2].result().end()
        await turns()
        assert late.done()

    asyncio.run(main())


def test_a_connection_that_goes_leaves_its_calls_to_others():
    async def main():
        server = Server(1)
        calls = server.calls(4)
        await turns()
        server.made[0].retire()
        await turns()
        assert done(calls) == [True, True, True, False]
        # Also between the moment that a place is given and the call's own turn.
        server.made[1].end()
        await asyncio.sleep(0)
        server.made[1].retire()
        await turns()
        assert done(calls) == [True] * 4
        assert len(server.made) == 4

    asyncio.run(main())


def test_large_calls_have_connections_to_themselves_while_there_are_some():
    async def main():
        server = Server(10, usual=2)
        calls = server.calls(5)
        await turns()
        assert done(calls) == [True] * 5
        assert {call.result() for call in calls[:2]} == set(server.made)

    asyncio.run(main())


def test_a_server_that_takes_none_is_waited_for():
    async def main():
        server = Server(0)
        calls = server.calls(3)
        await turns()
        assert (done(calls), len(server.made)) == ([False] * 3, 1)
        server.made[0].settle(3)
        await turns()
        assert done(calls) == [True] * 3

    asyncio.run(main())


def test_a_server_that_is_not_reached():
    async def main():
        server = Server(1)
        server.failure = OSError("nobody there")
        calls = server.calls(2)
        for call in calls:
            with pytest.raises(Unavailable, match="nobody there"):
                await call
        server.failure = None
        first = await server.call()
        # As long as there is a connection, one more that cannot be made is no call's fault.
        server.failure = OSError("nobody there")
        waiting = asyncio.ensure_future(server.call())
        await turns()
        assert not waiting.done()
        first.end()
        await turns()
        assert waiting.done()
        further = server.calls(2)
        await turns()
        server.group.hang_up()
        for call in further:
            with pytest.raises(ClosedError):
                await call
        with pytest.raises(ClosedError):
            await server.call()

    asyncio.run(main())
