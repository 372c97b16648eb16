"""Calls of `EchoServer` over channels, for threads and for coroutines."""

from __future__ import annotations

import asyncio
import contextlib

from support.channel_ends import Answer, Ending, Message

from triton_fast import errors
from triton_fast.channels.base import CallOptions
from triton_fast.channels.native.channel_async import AsyncNativeChannel


def path(method: str) -> str:
    return f"/test.Echo/{method}"


def call(channel, method: str, message: bytes = b"", **options) -> bytes:
    answer = Answer()
    channel.call(path(method), Message(message), answer, CallOptions(**options))
    assert answer.told[0] == "begin"
    assert answer.told[-1] == "finish"
    assert set(answer.told[1:-1]) <= {"feed"}
    assert answer.announced == len(answer.bytes)
    return answer.bytes


def start(channel, method: str, message: bytes = b"", **options):
    answer, ending = Answer(), Ending()
    started = channel.start(path(method), Message(message), answer, CallOptions(**options), ending)
    return started, answer, ending


def ids(answers) -> list[str]:
    found = []
    for response in answers:
        found.append(response.take()[2])
        response.release()
    return found


async def call_async(channel, method: str, message: bytes = b"", **options) -> bytes:
    answer = Answer()
    await channel.call(path(method), Message(message), answer, CallOptions(**options))
    assert answer.told[0] == "begin"
    assert answer.told[-1] == "finish"
    assert set(answer.told[1:-1]) <= {"feed"}
    assert answer.announced == len(answer.bytes)
    return answer.bytes


@contextlib.asynccontextmanager
async def closing(channel):
    try:
        yield channel
    finally:
        await channel.close()


async def answered_at_last(channel, message: bytes) -> None:
    """Call until there is an answer: how many calls it tells of a lost server is grpcio's affair.

    It may start some on a connection before it has seen the end of it, and fails those that come
    while it waits to connect again. The native channel fails none, once it has told of one.
    """
    if isinstance(channel, AsyncNativeChannel):
        assert await call_async(channel, "Echo", message) == message
        return
    async with asyncio.timeout(30):
        while True:
            try:
                assert await call_async(channel, "Echo", message) == message
                return
            except errors.Unavailable:
                await asyncio.sleep(0.02)
