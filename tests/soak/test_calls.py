"""A client that makes calls without end needs no more of anything after them than before.

The short form is part of every test run. The long one has a million calls, or what
``TRITON_FAST_SOAK_CALLS`` says, and is for ``make soak``.
"""

from __future__ import annotations

import os

import pytest
from soak_checks import check, run, summary

pytestmark = pytest.mark.server

SHORT = 10_000
LONG = int(os.environ.get("TRITON_FAST_SOAK_CALLS", "1000000"))


@pytest.mark.parametrize("form", ["short", pytest.param("long", marks=pytest.mark.soak)])
@pytest.mark.timeout(0)
def test_nothing_grows(triton_server, channel, form, capsys):
    count = SHORT if form == "short" else LONG
    measured = run("soak_calls.py", triton_server.grpc_url, channel, str(count))
    slope = check(measured)
    if form == "long":
        with capsys.disabled():
            print(f"\n{channel}: {summary(measured, slope)}")


@pytest.mark.native
@pytest.mark.parametrize("planted", ["memory", "descriptors", "threads"])
def test_what_grows_is_seen(triton_server, planted):
    measured = run("soak_calls.py", triton_server.grpc_url, "native", str(SHORT // 2), planted)
    with pytest.raises(
        AssertionError, match="bytes for each call" if planted == "memory" else planted
    ):
        check(measured)
