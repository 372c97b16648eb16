"""What a server refuses, or says good-bye before, is sent again; no more at a time than it takes.

Against the native channel: calls and streams of both faces.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import threading
import time

import pytest
from rogue_meetings import GOOD, LONG, SLACK
from support import rogue as h2
from support.model_calls import ONE
from support.rogue import Rogue
from support.waiting import until_async
from test_rogue_streams import Asked, answer

from triton_fast import AsyncClient, Cancelled, Client, DeadlineExceeded, Unavailable

pytestmark = [pytest.mark.native, pytest.mark.usefixtures("loaded", "nothing_is_left")]


# Both faces ---------------------------------------------------------------------------------------


def infer(client):
    return client.infer("m", ONE)["OUTPUT0"].tolist()


def submit(client):
    return client.submit("m", ONE).result(60)["OUTPUT0"].tolist()


def stream(client):
    """Make two requests on one stream, the second of which may come before a refusal or after."""
    with client.open_stream() as shared:
        shared.send("m", ONE)
        shared.send("m", ONE)
        shared.half_close()
        return [one["OUTPUT0"][0] for one in shared]


async def infer_async(client):
    return (await client.infer("m", ONE))["OUTPUT0"].tolist()


async def stream_async(client):
    async with client.open_stream() as shared:
        await shared.send("m", ONE)
        await shared.send("m", ONE)
        await shared.half_close()
        return [one["OUTPUT0"][0] async for one in shared]


def run(act, url, times=1, timeout=LONG):
    """Do something so often, on what may be one connection; return what it gave in the end."""
    settings = {"channel": "native", "shared_memory": False, "timeout": timeout}
    if not asyncio.iscoroutinefunction(act):
        with Client(url, **settings) as client:
            return [act(client) for _ in range(times)][-1]

    async def acting():
        async with AsyncClient(url, **settings) as client:
            return [await act(client) for _ in range(times)][-1]

    return asyncio.run(acting())


def serve(peer, number, act):
    """Answer a call or a stream, of which the headers have come, rightly."""
    if "stream" not in act.__name__:
        peer.send(h2.answer(peer.request(number).stream, GOOD))
        return
    asked = Asked(peer, number)
    second = asked.next_id()
    asked.begin()
    asked.say(answer(asked.id, 0, final=True) + answer(second, 1, final=True))
    asked.end()


def refuse(peer, number):
    peer.send(h2.reset(number, 7))


def say_goodbye(peer, number):
    peer.send(h2.goaway(max(number - 2, 0), 0, b"max_requests"))
    peer.wait()


def say_goodbye_and_close(peer, number):
    peer.send(h2.goaway(max(number - 2, 0)))
    peer.finish()


@pytest.mark.parametrize("act", [infer, submit, stream, infer_async, stream_async])
@pytest.mark.parametrize("how", [refuse, say_goodbye, say_goodbye_and_close])
def test_what_is_not_taken_is_sent_again(act, how):
    """Three times not; the first time on a connection that has served already."""
    begun = itertools.count()

    def script(peer):
        while True:
            number = peer.begin_request()
            if next(begun) in {1, 2, 3}:
                how(peer, number)
            else:
                serve(peer, number, act)

    with Rogue(script, GOOD, always=True) as rogue:
        assert run(act, rogue.url, 2) == [0, 1]
        assert next(begun) == 5
        if how is not refuse:
            assert rogue.connections >= 4


@pytest.mark.parametrize("act", [infer, stream, infer_async, stream_async])
def test_a_server_that_says_goodbye_to_all_who_come(act):
    """Before they have sent anything, or in the middle of it."""

    def script(peer):
        if peer.number < 3:
            peer.send(h2.goaway(0))
            peer.wait()
        while True:
            serve(peer, peer.begin_request(), act)

    with Rogue(script, GOOD, always=True) as rogue:
        assert run(act, rogue.url, 2) == [0, 1]
        assert rogue.connections >= 4


@pytest.mark.parametrize("act", [infer, submit, stream, infer_async, stream_async])
@pytest.mark.parametrize("how", [refuse, say_goodbye])
def test_a_server_that_takes_nothing(act, how):
    """Until the deadline, and not without a pause; the error says why, and how often."""
    begun = itertools.count()

    def script(peer):
        while True:
            number = peer.begin_request()
            next(begun)
            how(peer, number)

    # A stream has no deadline of its own, and so is given up after 32 tries.
    limit = None if "stream" in act.__name__ else 0.5
    why = "REFUSED_STREAM" if how is refuse else "the server is going away: max_requests"
    with Rogue(script, GOOD, always=True) as rogue:
        started = time.monotonic()
        with pytest.raises((Unavailable, DeadlineExceeded), match=re.escape(why)) as caught:
            run(act, rogue.url, timeout=limit)
        assert time.monotonic() - started < 5 + SLACK
        tries = next(begun)
    assert tries <= 32
    if isinstance(caught.value, Unavailable):
        assert caught.value.safe_to_retry
        assert limit is not None or tries == 32
        if tries > 1:  # on a machine that is busy with other things half a second is soon over
            assert f"(tried {tries} times)" in str(caught.value)


# No more at a time than the server takes ----------------------------------------------------------


def test_calls_at_a_time():
    """From the first on, when the server has not said yet how many it takes."""
    together = []

    def script(peer):
        answered = set()
        while True:
            peer.begin_request()
            peer.be_heard()  # and whatever was sent along with it
            there = {one.stream for one in peer.seen if one.type == h2.HEADERS} - answered
            together.append(len(there))
            answered |= there
            peer.send(b"".join(h2.answer(number, GOOD) for number in sorted(there)))

    async def calling(url):
        async with AsyncClient(url, shared_memory=False, timeout=LONG) as client:
            return await asyncio.gather(*(infer_async(client) for _ in range(60)))

    settings = [(h2.MAX_CONCURRENT_STREAMS, 3)]
    with Rogue(script, GOOD, always=True, settings=settings) as rogue:
        assert asyncio.run(calling(rogue.url)) == [[0, 1]] * 60
    assert sum(together) == 60
    assert max(together) <= 3


@pytest.mark.parametrize("act", [infer_async, stream_async])
def test_calls_that_never_end_hold_up_no_others(act):
    """Three of them, where the server takes two at a time: further connections are made."""
    held = []

    def script(peer):
        for number in iter(peer.begin_request, None):
            if len(held) < 3:
                held.append(number)
            else:
                serve(peer, number, act)

    async def calling(url):
        async with AsyncClient(url, shared_memory=False, timeout=LONG) as client:
            first = [asyncio.ensure_future(act(client)) for _ in range(3)]
            await until_async(lambda: len(held) == 3)
            found = [await act(client) for _ in range(5)]
            for one in first:
                one.cancel()
            await asyncio.wait(first)
            return found

    settings = [(h2.MAX_CONCURRENT_STREAMS, 2)]
    with Rogue(script, GOOD, always=True, settings=settings) as rogue:
        assert asyncio.run(calling(rogue.url)) == [[0, 1]] * 5
        assert rogue.connections == 2


def test_a_server_that_takes_none_for_a_while():
    allowed = threading.Event()

    def script(peer):
        peer.send(h2.answer(peer.request().stream, GOOD))
        assert peer.read_until(h2.SETTINGS).flags == h2.ACK
        assert allowed.wait(LONG)
        peer.send(h2.settings([(h2.MAX_CONCURRENT_STREAMS, 100)]))

    async def calling(url):
        async with AsyncClient(url, shared_memory=False, timeout=LONG) as client:
            assert await infer_async(client) == [0, 1]
            with pytest.raises(DeadlineExceeded, match="the server takes 0 at a time"):
                await client.infer("m", ONE, timeout=0.3)
            waiting = asyncio.ensure_future(infer_async(client))
            await asyncio.sleep(0)
            allowed.set()
            assert await waiting == [0, 1]

    settings = [(h2.MAX_CONCURRENT_STREAMS, 0)]
    with Rogue(script, GOOD, settings=settings) as rogue:
        asyncio.run(calling(rogue.url))
        assert rogue.connections == 1


def test_closing_a_stream_that_waits_for_a_place():
    async def calling(url):
        async with AsyncClient(url, shared_memory=False, timeout=LONG) as client:
            first = client.open_stream()
            await first.send("m", ONE)  # before the server has said that it takes none
            shared = client.open_stream()
            sending = asyncio.ensure_future(shared.send("m", ONE))
            await asyncio.wait((sending,), timeout=0.2)
            assert not sending.done()
            await shared.aclose()
            with pytest.raises(Cancelled):
                await asyncio.wait_for(sending, LONG)

    settings = [(h2.MAX_CONCURRENT_STREAMS, 0)]
    with Rogue(lambda peer: peer.wait(), GOOD, settings=settings) as rogue:
        asyncio.run(calling(rogue.url))
