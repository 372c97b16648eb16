"""Which failed calls are made again: the rules, against channels that fail as they are told."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import weakref
from collections.abc import Callable

import pytest
from support.waiting import until

from triton_fast import Client, DeadlineExceeded, InvalidArgument, ServerError, Unavailable
from triton_fast.channels.unseen import Unseen
from triton_fast.client.repeats import Repeats, repeated, repeated_async
from triton_fast.protocol.operations import Query

SEEN = Unavailable("the connection broke")


def unseen():
    return Unavailable("the connection broke", safe_to_retry=True)


class Placed:
    """What of a client's use of shared memory `Repeats` asks."""

    def __init__(self, *, better: bool, required: bool = True):
        self.better = better
        self.required = required
        self.concluded: list[BaseException] = []

    def conclude(self, prepared, placement, error):
        self.concluded.append(error)
        return self.better


def test_a_call_that_the_server_has_not_begun_is_made_again():
    repeats = Repeats(None)
    shared = Placed(better=False)
    pauses = [repeats.after(unseen(), shared, None, object()) for _ in range(40)]
    assert pauses.index(None) == 31
    assert shared.concluded == []  # the server has not been at the slots
    assert Repeats(None, lambda: False).after(unseen(), None, None, None) is None


@pytest.mark.parametrize(
    "error", [SEEN, DeadlineExceeded("late"), InvalidArgument("no"), KeyboardInterrupt()]
)
def test_others_are_the_callers(error):
    assert Repeats(None).after(error, None, None, None) is None
    shared = Placed(better=False)
    assert Repeats(None).after(error, shared, None, object()) is None
    assert shared.concluded == [error]


def test_a_call_is_placed_anew_three_times_at_most():
    repeats = Repeats(None)
    shared = Placed(better=True)
    error = InvalidArgument("no")
    pauses = [repeats.after(error, shared, None, object()) for _ in range(5)]
    assert pauses == [0, 0, 0, None, None]
    assert len(shared.concluded) == 5
    shared.required = False
    repeats = Repeats(None)
    again = [(repeats.after(error, shared, None, object()), repeats.on_the_wire) for _ in range(4)]
    assert again == [(0, False)] * 3 + [(0, True)]
    shared.concluded.clear()
    assert Repeats(None).after(error, shared, None, None) is None  # nothing was placed
    assert repeats.after(error, shared, None, None) is None
    assert not shared.concluded


class Failing:
    """Something to call that fails as often as it is told."""

    def __init__(self, error: Callable[[], ServerError], times: int):
        self.error = error
        self.times = times
        self.calls = 0

    def __call__(self, argument):
        self.calls += 1
        if self.calls <= self.times:
            raise self.error()
        return argument

    async def later(self, argument):
        return self(argument)


@pytest.mark.parametrize(
    ("error", "times", "calls", "fails"),
    [(unseen, 0, 1, False), (unseen, 4, 5, False), (lambda: SEEN, 1, 1, True)],
)
@pytest.mark.parametrize("face", ["blocking", "async"])
def test_management_calls(error, times, calls, fails, face):
    call = Failing(error, times)

    def make():
        if face == "blocking":
            return repeated(None, call, "answer")
        return asyncio.run(repeated_async(None, call.later, "answer"))

    if fails:
        with pytest.raises(Unavailable) as caught:
            make()
        assert caught.value is SEEN
    else:
        assert make() == "answer"
    assert call.calls == calls


class Channel:
    """A channel whose calls all fail, each with an error of its own."""

    def __init__(self, *, safe_to_retry: bool):
        self.safe_to_retry = safe_to_retry
        self.calls = 0

    def call(self, method, outgoing, incoming, options):
        self.calls += 1
        raise Unavailable("the connection broke", safe_to_retry=self.safe_to_retry)

    def cancel(self):
        pass

    def start(self, method, outgoing, incoming, options, on_done):
        self.calls += 1
        on_done(Unavailable("the connection broke", safe_to_retry=self.safe_to_retry))
        return self

    def close(self):
        pass


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("how", ["infer", "submit", "server_metadata"])
def test_every_call_of_a_client_goes_by_them(how, safe):
    client = Client("localhost:1", shared_memory=False, timeout=0.05)
    channel = client._endpoint._channel = Channel(safe_to_retry=safe)
    call = {
        "infer": lambda: client.infer("model", {"INPUT0": [b"x"]}),
        "submit": lambda: client.submit("model", {"INPUT0": [b"x"]}).result(30),
        "server_metadata": client.server_metadata,
    }[how]
    with pytest.raises(Unavailable) as caught:
        call()
    assert caught.value.safe_to_retry is safe
    if not safe:
        assert channel.calls == 1
    elif channel.calls > 1:  # on a machine that is busy with other things the time is soon over
        assert caught.value.message.endswith(f" (tried {channel.calls} times)")


def test_a_future_that_is_cancelled_is_not_tried_for_any_more():
    client = Client("localhost:1", shared_memory=False)
    channel = client._endpoint._channel = Channel(safe_to_retry=True)
    future = client.submit("model", {"INPUT0": [b"x"]})
    assert future.cancel()
    until(lambda: not any(one.name == "triton_fast" for one in threading.enumerate()))
    assert channel.calls < 32


def test_an_error_that_is_pickled_says_so_still():
    again = pickle.loads(pickle.dumps(unseen()))
    assert (again.safe_to_retry, str(again)) == (True, str(unseen()))
    assert pickle.loads(pickle.dumps(SEEN)).safe_to_retry is False


def test_an_error_is_not_kept_by_its_own_frames():
    def fail(failed, given):
        try:
            failed(given())
        except Unavailable as error:
            return weakref.ref(error)

    query = Query("ServerLive", {}, lambda answer: answer)
    gc.collect()
    gc.disable()
    try:
        assert fail(query.failed, unseen)() is None

        def tried(make):
            rule = Unseen(None)
            try:
                raise make()
            except Unavailable as error:
                rule.pause(error)
                raise

        assert fail(tried, lambda: unseen)() is None
    finally:
        gc.enable()
