"""What the answers to questions about health amount to; the same for threads and coroutines."""

from __future__ import annotations

import asyncio
import pickle
from types import SimpleNamespace

import pytest

from triton_fast import (
    ClosedError,
    DeadlineExceeded,
    Health,
    HealthStatus,
    InvalidOption,
    Unavailable,
    Unimplemented,
    WireError,
)
from triton_fast.channels.base import CallOptions
from triton_fast.management import health_check, health_check_async
from triton_fast.management.health_check import check_health
from triton_fast.management.health_check_async import check_health_async
from triton_fast.options.deadline import deadline_after, seconds
from triton_fast.protocol.messages import message_class

LIVE = message_class("ServerLiveResponse")(live=True)
READY = message_class("ServerReadyResponse")(ready=True)
NO_INDEX = Unimplemented("no such call", call="RepositoryIndex")


def index(*models):
    fields = ("name", "version", "state", "reason")
    return message_class("RepositoryIndexResponse")(
        models=[dict(zip(fields, model, strict=False)) for model in models]
    )


FINE = index(("a", "1", "READY"), ("b", "7", "READY"))


class Script:
    """A connection that gives the answers it was made with, or raises them."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def options(self, call, timeout, headers):
        return CallOptions(deadline_after(seconds(timeout, "timeout")), headers or (), None, call)

    def exchange(self, method, fields, options):
        assert fields == {}
        self.asked.append((method, options))
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


class AsyncScript(Script):
    async def options(self, call, timeout, headers):
        await asyncio.sleep(0)
        return super().options(call, timeout, headers)

    async def exchange(self, method, fields, options):
        await asyncio.sleep(0)
        return super().exchange(method, fields, options)


@pytest.fixture(params=["threads", "coroutines"])
def ask(request):
    def ask(*answers, timeout=5.0, headers=None):
        if request.param == "threads":
            ask.script = Script(*answers)
            return check_health(ask.script, timeout, headers)
        ask.script = AsyncScript(*answers)
        return asyncio.run(check_health_async(ask.script, timeout, headers))

    return ask


def test_all_is_well(ask):
    health = ask(LIVE, READY, FINE, headers=(("a", "b"),))
    assert health.status is HealthStatus.HEALTHY
    assert health.status == "healthy"
    assert health
    assert (health.live, health.ready, health.errors) == (True, True, ())
    assert health.models == {"a": True, "b": True}
    assert health.latency >= 0
    methods = [method for method, _ in ask.script.asked]
    assert methods == ["ServerLive", "ServerReady", "RepositoryIndex"]
    for method, options in ask.script.asked:
        assert options.call == method
        assert options.headers == (("a", "b"),)
    # One deadline for all.
    assert len({options.deadline_ns for _, options in ask.script.asked}) == 1


def test_without_a_deadline(ask):
    assert ask(LIVE, READY, FINE, timeout=None)
    assert {options.deadline_ns for _, options in ask.script.asked} == {None}


@pytest.mark.parametrize("error", [Unavailable("gone"), DeadlineExceeded("late"), WireError("no")])
def test_no_server(ask, error):
    health = ask(error)
    assert health.status is HealthStatus.UNHEALTHY
    assert health.status == "unhealthy"
    assert not health
    assert (health.live, health.ready, health.models) == (False, False, {})
    assert health.errors == (str(error),)
    assert len(ask.script.asked) == 1


def test_not_live(ask):
    health = ask(message_class("ServerLiveResponse")(live=False))
    assert health.status is HealthStatus.UNHEALTHY
    assert health.errors == ("the server says that it is not live",)


def test_not_ready(ask):
    health = ask(LIVE, message_class("ServerReadyResponse")(ready=False), FINE)
    assert health.status is HealthStatus.DEGRADED
    assert health.status == "degraded"
    assert not health
    assert (health.live, health.ready) == (True, False)
    assert health.models == {"a": True, "b": True}
    assert health.errors == ("the server says that it is not ready",)


def test_readiness_fails(ask):
    health = ask(LIVE, DeadlineExceeded("late", call="ServerReady"), FINE)
    assert health.status is HealthStatus.DEGRADED
    assert (health.live, health.ready) == (True, False)
    assert health.errors == ("ServerReady: DEADLINE_EXCEEDED: late",)


def test_the_index_fails(ask):
    health = ask(LIVE, READY, Unavailable("restricted", call="RepositoryIndex"))
    assert health.status is HealthStatus.DEGRADED
    assert (health.ready, health.models) == (True, {})
    assert health.errors == ("RepositoryIndex: UNAVAILABLE: restricted",)


def test_servers_without_an_index(ask):
    health = ask(LIVE, READY, NO_INDEX)
    assert health.status is HealthStatus.HEALTHY
    assert health.models == {}
    # It is no excuse for the rest.
    assert ask(LIVE, NO_INDEX, NO_INDEX).status is HealthStatus.DEGRADED
    assert ask(NO_INDEX).status is HealthStatus.UNHEALTHY


def test_models_that_are_not_ready(ask):
    health = ask(
        LIVE,
        READY,
        index(
            ("a", "1", "READY"),
            ("a", "2", "UNAVAILABLE", "no file\n"),
            ("b", "1", "LOADING"),
            ("c", "2", "UNKNOWN", "x" * 10_000),
            ("c", "3", "READY"),
            ("d", "1", "READY"),
        ),
    )
    assert health.status is HealthStatus.DEGRADED
    assert health.models == {"a": False, "b": False, "c": False, "d": True}
    assert health.errors[:2] == (
        "model 'a' version 2 is UNAVAILABLE: no file",
        "model 'b' version 1 is LOADING",
    )
    assert len(health.errors) == 3
    assert health.errors[2].startswith("model 'c' version 2 is UNKNOWN: xxx")
    assert len(health.errors[2]) < 500


def test_mlservers_states(ask):
    listed = index(("a", "", "State.READY"), ("b", "", "State.UNAVAILABLE", "no file"))
    health = ask(LIVE, READY, listed)
    assert health.models == {"a": True, "b": False}
    assert health.errors == ("model 'b' is UNAVAILABLE: no file",)


def test_models_that_nobody_wants_served(ask):
    health = ask(
        LIVE,
        READY,
        index(
            ("never",),
            ("a", "1", "UNAVAILABLE", "unloaded"),
            ("a", "2", "READY"),
            ("b", "1", "UNAVAILABLE", "unloaded"),
            ("c", "1", "UNLOADING"),
        ),
    )
    assert health.status is HealthStatus.HEALTHY
    assert health.models == {"a": True}


@pytest.mark.parametrize("error", [ClosedError("closed"), InvalidOption("no"), KeyError("x")])
def test_mistakes_are_raised(ask, error):
    for before in ((), (LIVE,), (LIVE, READY)):
        with pytest.raises(type(error)):
            ask(*before, error)


def test_timeouts_that_are_none(ask):
    with pytest.raises(InvalidOption, match="timeout"):
        ask(LIVE, READY, FINE, timeout=-1)


def test_latency_is_that_of_the_first_call(ask, monkeypatch):
    """By a clock that runs only while the server is asked."""
    now = 10**15
    for module in (health_check, health_check_async):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic_ns=lambda: now))
    real = Script.exchange

    def exchange(script, method, fields, options):
        nonlocal now
        now += 500_000_000 if method == "ServerLive" else 7_000_000_000
        return real(script, method, fields, options)

    monkeypatch.setattr(Script, "exchange", exchange)
    assert ask(LIVE, READY, FINE).latency == 0.5


def test_a_value():
    health = Health(HealthStatus.HEALTHY, True, True, {"a": True}, 0.5, ("x",))
    assert pickle.loads(pickle.dumps(health)) == health
    assert hash(health) == hash(Health(HealthStatus.HEALTHY, True, True, {}, 0.5, ("x",)))
    assert f"{health.status}" == "healthy"


def test_cancelling_goes_through():
    async def main():
        asked = asyncio.Event()

        class Stuck(AsyncScript):
            async def exchange(self, method, fields, options):
                asked.set()
                await asyncio.Event().wait()

        task = asyncio.ensure_future(check_health_async(Stuck(), 60.0, None))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
