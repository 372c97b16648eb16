"""What a signal handler's exception leaves behind, wherever it comes: nobody waiting, nothing lost.

Every place of a call at which the interpreter may run a handler is tried, on both channels.
"""

from __future__ import annotations

import gc
from itertools import count

import numpy as np
import pytest
from support.interruptions import interrupted
from support.model_calls import outs, square
from support.waiting import until

from triton_fast import Cancelled, Client
from triton_fast._core import _wire
from triton_fast.channels.grpcio.fork import gate

pytestmark = [pytest.mark.server, pytest.mark.server_may_die]

# What must happen may take so long on a busy machine, in seconds.
SOON = 20.0


@pytest.fixture(autouse=True)
def no_fork_waits():
    """No call may count as running that is over: a fork would wait for it."""
    yield
    until(lambda: not gate.flights)


@pytest.fixture
def interrupted_url(shared_server):
    return shared_server(models=["identity_cpp", "square_int32", "cancellations"]).grpc_url


@pytest.fixture(autouse=True)
def grpcio_is_up(interrupted_url, channel):
    """Keep grpcio's core up, whose two pollers come and go with it.

    They stay, without us too, once a stream has failed to connect, as when the server dies (1.85).
    """
    if channel == "native":
        yield
        return
    with Client(interrupted_url, channel=channel, timeout=SOON) as client:
        client.is_ready()
        yield


def rest(answers):
    """Return how many answers are left, and whether the request was cancelled."""
    found = []
    try:
        found += outs(answers)
    except Cancelled:
        return found, True
    return found, False


def test_reading_a_stream(interrupted_url, channel, nothing_is_left):
    """No other request's answer is lost: it has them all, or is told that it was cancelled."""
    cancelled = 0
    with Client(interrupted_url, channel=channel, timeout=SOON) as client:
        for number in count():
            with client.open_stream() as stream:
                mine = stream.stream("square_int32", square(3), timeout=SOON)
                others = stream.stream("square_int32", square(3), timeout=SOON)
                again = interrupted(number, lambda mine=mine: list(mine))
                found, told = rest(others)
                assert found == [3] * len(found)
                assert told or len(found) == 3
                assert len(rest(mine)[0]) <= 3
                cancelled += told
            if not again:
                break
        assert outs(client.stream("square_int32", square(2), timeout=SOON)) == [2, 2]
    assert number > 30
    assert 0 < cancelled < number  # where answers are handed out, and only there


def test_a_request_on_a_stream(interrupted_url, channel, nothing_is_left):
    """Made, read and closed: those before it are answered, or told that they are cancelled."""
    with Client(interrupted_url, channel=channel, timeout=SOON) as client:
        for number in count():
            with client.open_stream() as stream:
                others = stream.stream("square_int32", square(2), timeout=SOON)

                def ask(stream=stream):
                    with stream.stream("square_int32", square(1), timeout=SOON) as mine:
                        outs(mine)
                    stream.send("square_int32", square(1), timeout=SOON)
                    stream.receive(timeout=SOON)

                again = interrupted(number, ask)
                found, told = rest(others)
                assert told or found == [2, 2]
            if not again:
                break
        assert number > 30
        assert outs(client.stream("square_int32", square(2), timeout=SOON)) == [2, 2]


def test_a_stream_of_its_own(interrupted_url, channel, nothing_is_left):
    with Client(interrupted_url, channel=channel, timeout=SOON) as client:
        for number in count():
            if not interrupted(
                number, lambda: outs(client.stream("square_int32", square(2), timeout=SOON))
            ):
                break
        assert number > 30
        assert outs(client.stream("square_int32", square(2), timeout=SOON)) == [2, 2]


@pytest.mark.parametrize(
    ("shared_memory", "size"), [(False, 4), (False, 300_000), (True, 300_000)],
    ids=["small", "large", "shared memory"],
)  # fmt: skip
def test_a_call(interrupted_url, channel, shared_memory, size, nothing_is_left):
    """What it had goes back: memory, slots, connections; and the next call is as the first."""
    x = np.arange(size, dtype=np.float32)

    def infer():
        return client.infer("identity_cpp", {"INPUT0": x})["OUTPUT0"]

    with Client(
        interrupted_url, channel=channel, shared_memory=shared_memory, timeout=SOON
    ) as client:
        infer()
        infer()
        gc.collect()
        before = _wire.live_counts()
        for number in count():
            if not interrupted(number, infer):
                break
            assert np.array_equal(infer(), x)
        gc.collect()
        assert _wire.live_counts() == before
        if shared_memory:
            assert client._endpoint._shared.pool._arenas.figures()["leased"] == 0
    assert number > 30
