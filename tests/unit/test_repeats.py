"""Which failed calls are made again: the rules, against channels that fail as they are told."""

from __future__ import annotations

import asyncio
import pickle

import pytest

from triton_fast import Client, DeadlineExceeded, InvalidArgument, ServerError, Unavailable
from triton_fast.client.repeats import Repeats, repeated, repeated_async

UNSEEN = Unavailable("the connection broke", safe_to_retry=True)
SEEN = Unavailable("the connection broke")


class Placed:
    """What of a client's use of shared memory `Repeats` asks."""

    def __init__(self, *, better: bool, required: bool = True):
        self.better = better
        self.required = required
        self.concluded: list[BaseException] = []

    def conclude(self, prepared, placement, error):
        self.concluded.append(error)
        return self.better


def test_a_call_that_the_server_has_not_begun_is_made_once_more():
    repeats = Repeats()
    shared = Placed(better=False)
    assert repeats.after(UNSEEN, shared, None, object())
    assert not repeats.after(UNSEEN, shared, None, object())
    assert shared.concluded == []  # the server has not been at the slots


@pytest.mark.parametrize(
    "error", [SEEN, DeadlineExceeded("late"), InvalidArgument("no"), KeyboardInterrupt()]
)
def test_others_are_the_callers(error):
    assert not Repeats().unseen(error)
    assert not Repeats().after(error, None, None, None)
    shared = Placed(better=False)
    assert not Repeats().after(error, shared, None, object())
    assert shared.concluded == [error]


def test_a_call_is_placed_anew_three_times_at_most():
    repeats = Repeats()
    shared = Placed(better=True)
    error = InvalidArgument("no")
    assert [repeats.after(error, shared, None, object()) for _ in range(5)] == [1, 1, 1, 0, 0]
    assert len(shared.concluded) == 5
    shared.required = False
    repeats = Repeats()
    again = [(repeats.after(error, shared, None, object()), repeats.on_the_wire) for _ in range(4)]
    assert again == [(True, False)] * 3 + [(True, True)]
    shared.concluded.clear()
    assert not Repeats().after(error, shared, None, None)  # nothing was placed
    assert not repeats.after(error, shared, None, None)
    assert not shared.concluded


class Failing:
    """Something to call that fails as often as it is told."""

    def __init__(self, error: ServerError, times: int):
        self.error = error
        self.times = times
        self.calls = 0

    def __call__(self, argument):
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return argument

    async def later(self, argument):
        return self(argument)


@pytest.mark.parametrize(
    ("error", "times", "calls", "fails"),
    [(UNSEEN, 0, 1, False), (UNSEEN, 1, 2, False), (UNSEEN, 2, 2, True), (SEEN, 1, 1, True)],
)
@pytest.mark.parametrize("face", ["blocking", "async"])
def test_management_calls(error, times, calls, fails, face):
    call = Failing(error, times)

    def make():
        if face == "blocking":
            return repeated(call, "answer")
        return asyncio.run(repeated_async(call.later, "answer"))

    if fails:
        with pytest.raises(Unavailable) as caught:
            make()
        assert caught.value is error
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

    def start(self, method, outgoing, incoming, options, on_done):
        self.calls += 1
        on_done(Unavailable("the connection broke", safe_to_retry=self.safe_to_retry))
        return self

    def close(self):
        pass


@pytest.mark.parametrize(("unseen", "calls"), [(True, 2), (False, 1)])
@pytest.mark.parametrize("how", ["infer", "submit", "server_metadata"])
def test_every_call_of_a_client_goes_by_them(how, unseen, calls):
    client = Client("localhost:1", shared_memory=False)
    channel = client._endpoint._channel = Channel(safe_to_retry=unseen)
    call = {
        "infer": lambda: client.infer("model", {"INPUT0": [b"x"]}),
        "submit": lambda: client.submit("model", {"INPUT0": [b"x"]}).result(30),
        "server_metadata": client.server_metadata,
    }[how]
    with pytest.raises(Unavailable) as caught:
        call()
    assert caught.value.safe_to_retry is unseen
    assert channel.calls == calls


def test_an_error_that_is_pickled_says_so_still():
    again = pickle.loads(pickle.dumps(UNSEEN))
    assert (again.safe_to_retry, str(again)) == (True, str(UNSEEN))
    assert pickle.loads(pickle.dumps(SEEN)).safe_to_retry is False
