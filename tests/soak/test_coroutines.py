"""Nothing is left of calls and streams that coroutines give up, here or on the server.

The short form is part of every test run. The long one has 10,000 of them, or what
``TRITON_FAST_SOAK_CANCELLED`` says, and is for ``make soak``. The server is one that may die: it is
started anew then, and the client goes on. What is left here is held against the same limits
whether it lived or not.
"""

from __future__ import annotations

import os

import pytest
from soak_checks import memory_slope, run, summary, what_grows

pytestmark = [pytest.mark.server, pytest.mark.server_may_die]

MODELS = ["identity_fp32", "repeat_int32", "cancellations"]
SHORT = 400
LONG = int(os.environ.get("TRITON_FAST_SOAK_CANCELLED", "10000"))


@pytest.fixture
def give_up(shared_server, request):
    """Return what gives up so many calls and streams; nothing of ours may be left after them."""
    measurements = []

    def grown(channel, measured):
        found = what_grows(measured)
        # grpc.aio keeps a kibibyte or two of every call that is cancelled, by itself too (1.85);
        # over these few calls 6 KiB each were seen.
        if channel == "grpc" and memory_slope(measured) < 12 << 10:
            found.pop("memory", None)
        return found

    def give_up(channel, count, *planted):
        server = shared_server(models=MODELS)
        with request.getfixturevalue("mortal_servers").kept_up(server) as deaths:
            measured = run("soak_coroutines.py", server.grpc_url, channel, str(count), *planted)
        if not planted:
            measurements.append((channel, measured))
        assert deaths or measured["refused"][-1] == 0, "a server that is well refused calls"
        assert measured["running"][-1] == 0, "the model still runs what was given up"
        return measured, deaths

    yield give_up
    # Not while it runs: what fails here is not excused by a server that died.
    for channel, measured in measurements:
        assert grown(channel, measured) == {}


def test_nothing_is_left(give_up, channel):
    give_up(channel, SHORT)


# Not on the grpcio channel, for what grpc.aio keeps of each.
@pytest.mark.soak
@pytest.mark.native
@pytest.mark.timeout(0)
def test_nothing_is_left_of_very_many(give_up, capsys):
    measured, deaths = give_up("native", LONG)
    with capsys.disabled():
        print(f"\ngiven up: {summary(measured)}; the server died {len(deaths)} times")


@pytest.mark.native
def test_what_is_left_is_seen(give_up):
    measured, _ = give_up("native", 100, "tasks")
    assert "tasks" in what_grows(measured)
