"""A client that makes calls without end needs no more of anything after them than before.

The short form is part of every test run. The long one has a million calls, or what
``TRITON_FAST_SOAK_CALLS`` says, and is for ``make soak``.
"""

from __future__ import annotations

import os

import pytest
from soak_checks import run, summary, what_grows

# Some of the calls are given up.
pytestmark = [pytest.mark.server, pytest.mark.server_may_die]

MODELS = ["identity_fp32", "identity_bytes", "slow"]
SHORT = 5_000
LONG = int(os.environ.get("TRITON_FAST_SOAK_CALLS", "1000000"))


@pytest.fixture
def soak_url(shared_server):
    return shared_server(models=MODELS).grpc_url


def test_nothing_grows(soak_url, channel):
    assert what_grows(run("soak_calls.py", soak_url, channel, str(SHORT))) == {}


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_nothing_grows_in_the_long_run(soak_url, channel, capsys):
    measured = run("soak_calls.py", soak_url, channel, str(LONG))
    assert what_grows(measured) == {}
    with capsys.disabled():
        print(f"\n{channel}: {summary(measured)}")


@pytest.mark.native
def test_what_grows_is_seen(soak_url):
    measured = run("soak_calls.py", soak_url, "native", str(SHORT // 2), "planted")
    assert what_grows(measured).keys() == {"memory", "descriptors", "threads"}
