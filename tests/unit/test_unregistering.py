"""How regions are unregistered by hand, with a server that has not let go of them yet."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from triton_fast import Internal, InvalidArgument, InvalidOption
from triton_fast.shared_memory import regions, regions_async, registration
from triton_fast.shared_memory.regions import Regions
from triton_fast.shared_memory.regions_async import AsyncRegions

IN_USE = "Cannot unregister shared memory region 'camera', it is currently in use."


class Clock:
    """Stands for the module `time`: only looking at it takes any, 10 ms, and pausing does."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        self.now += 0.01
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture(autouse=True)
def regions_clock(monkeypatch):
    clock = Clock()
    for module in (regions_async, regions, registration):
        monkeypatch.setattr(module, "time", clock)

    async def sleep(seconds):
        clock.sleep(seconds)

    monkeypatch.setattr(regions_async, "asyncio", SimpleNamespace(sleep=sleep))
    return clock


class Server:
    """Says what it is told to, one after the other, and then that all is well."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.asked = []

    def ask(self, query):
        self.asked.append((query.method, query.fields))
        if self.errors:
            raise self.errors.pop(0)

    async def ask_later(self, query):
        self.ask(query)


@pytest.fixture(params=["blocking", "coroutines"])
def unregister(request):
    def blocking(server):
        Regions(server.ask).unregister("camera")

    def coroutines(server):
        asyncio.run(AsyncRegions(server.ask_later).unregister("camera"))

    return blocking if request.param == "blocking" else coroutines


def test_it_is_asked_again(unregister):
    server = Server(Internal(IN_USE), Internal(IN_USE))
    unregister(server)
    assert server.asked == [("SystemSharedMemoryUnregister", {"name": "camera"})] * 3


def test_not_for_ever(unregister, regions_clock):
    server = Server(*[Internal(IN_USE)] * 1000)
    began = regions_clock.now
    with pytest.raises(Internal, match="currently in use"):
        unregister(server)
    assert 0.3 <= regions_clock.now - began < 0.35
    assert 10 < len(server.asked) < 20


@pytest.mark.parametrize("error", [Internal("out of memory"), InvalidArgument(IN_USE[:20])])
def test_nothing_else_is_asked_twice(unregister, error):
    server = Server(error)
    with pytest.raises(type(error)):
        unregister(server)
    assert len(server.asked) == 1


def test_a_region_without_a_name():
    """The server would let go of everybody's."""
    with pytest.raises(InvalidOption):
        Regions(Server().ask).unregister("")
