"""Event loops for tests: what is awaited runs under asyncio and under uvloop, and leaves nothing.

A pytest plugin; tests/conftest.py loads it.
"""

from __future__ import annotations

import asyncio
import gc

import pytest

from support.required import need

KINDS = ("asyncio", "uvloop")


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    if kind == "asyncio":
        return asyncio.new_event_loop()
    import uvloop

    return uvloop.new_event_loop()


def _complain(complaints, context):
    # grpc.aio wakes those who waited in a loop that is closed by now, and complains in this one.
    if "PollerCompletionQueue" not in context["message"]:
        complaints.append(context)


class Runner:
    """Runs coroutines, each in a new loop, and fails where one leaves a task or a complaint."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, coroutine, timeout: float = 60):
        complaints = []

        async def watched():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: _complain(complaints, context))
            before = asyncio.all_tasks()
            result = await asyncio.wait_for(coroutine, timeout)
            for _ in range(50):
                left = asyncio.all_tasks() - before
                if not left:
                    break
                await asyncio.sleep(0.01)  # for those that are being cancelled
            assert not left, f"tasks were left behind: {left}"
            return result

        with asyncio.Runner(loop_factory=lambda: new_loop(self.kind)) as runner:
            result = runner.run(watched())
            gc.collect()  # a result that nobody has looked at complains when it dies
        assert not complaints, complaints
        return result


@pytest.fixture(params=KINDS)
def run(request):
    """Return a function that runs a coroutine, in each kind of event loop in turn."""
    if request.param == "uvloop":
        need("uvloop")
    return Runner(request.param)
