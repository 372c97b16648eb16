"""Nothing is left of calls and streams that coroutines give up, here or on the server.

The short form is part of every test run. The long one has 10,000 of them, or what
``TRITON_FAST_SOAK_CANCELLED`` says, and is for ``make soak``.
"""

from __future__ import annotations

import os

import pytest
from soak_checks import check, run, summary

pytestmark = pytest.mark.server

SHORT = 600
LONG = int(os.environ.get("TRITON_FAST_SOAK_CANCELLED", "10000"))


@pytest.fixture(scope="module")
def url(triton_server_factory):
    models = ["identity_fp32", "repeat_int32", "cancellations"]
    return triton_server_factory(models=models).grpc_url


def check_all(measured):
    slope = check(measured)
    assert measured["tasks"].max() <= measured["tasks"][0], measured["tasks"].tolist()
    assert measured["running"][-1] == 0, "the server's model still runs requests that were given up"
    return slope


@pytest.mark.parametrize("form", ["short", pytest.param("long", marks=pytest.mark.soak)])
@pytest.mark.timeout(0)
def test_nothing_is_left(url, channel, form, capsys):
    count = SHORT if form == "short" else LONG
    measured = run("soak_coroutines.py", url, channel, str(count))
    slope = check_all(measured)
    # Half of what was given up was a stream that had begun.
    assert measured["cancelled"][-1] > count // 5
    if form == "long":
        with capsys.disabled():
            print(f"\n{channel}, given up: {summary(measured, slope)}")


@pytest.mark.native
def test_what_is_left_is_seen(url):
    measured = run("soak_coroutines.py", url, "native", "200", "tasks")
    with pytest.raises(AssertionError):
        check_all(measured)
