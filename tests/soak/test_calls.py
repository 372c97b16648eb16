"""A client that makes calls without end needs no more of anything after them than before.

The short form is part of every test run. The long one has a million calls, or what
``TRITON_FAST_SOAK_CALLS`` says, and is for ``make soak``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.server

SHORT = 10_000
LONG = int(os.environ.get("TRITON_FAST_SOAK_CALLS", "1000000"))
# What may come and go: the arenas of Python's and the C library's allocators. In the long form that
# is 2 bytes for each call.
MEMORY = 2 << 20


def soak(url, channel, count, planted=""):
    """Run the program; return its measurements, as arrays by name."""
    program = [sys.executable, str(Path(__file__).with_name("soak_calls.py"))]
    done = subprocess.run(
        [*program, url, channel, str(count), planted],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
    )
    measurements = json.loads(done.stdout)
    return {name: np.array([m[name] for m in measurements]) for name in measurements[0]}


def check(measured):
    """Hold the second half of a run against the first, and memory against a line through it."""
    for name, slack in (("descriptors", 2), ("threads", 2), ("native_objects", 0)):
        values = measured[name]
        half = len(values) // 2
        assert values[half:].max() <= values[:half].max() + slack, (name, values.tolist())
    calls, resident = measured["calls"], measured["resident"]
    # The first tenth is left out: caches still fill.
    start = len(calls) // 10
    slope = np.polyfit(calls[start:], resident[start:], 1)[0]
    growth = slope * (calls[-1] - calls[start])
    assert growth < MEMORY, (f"{slope:.1f} bytes for each call", (resident // 1024).tolist())
    return slope


@pytest.mark.parametrize("form", ["short", pytest.param("long", marks=pytest.mark.soak)])
@pytest.mark.timeout(0)
def test_nothing_grows(triton_server, channel, form, capsys):
    count = SHORT if form == "short" else LONG
    measured = soak(triton_server.grpc_url, channel, count)
    slope = check(measured)
    if form == "long":
        seconds = measured["time"][-1] - measured["time"][0]
        with capsys.disabled():
            print(
                f"\n{channel}: {count} calls in {seconds:.0f} s; memory "
                f"{measured['resident'][0] / 2**20:.1f} MiB before, "
                f"{measured['resident'][-1] / 2**20:.1f} MiB after, {slope:.2f} bytes a call; "
                f"descriptors {measured['descriptors'][0]} and {measured['descriptors'][-1]}, "
                f"threads {measured['threads'][0]} and {measured['threads'][-1]}"
            )


@pytest.mark.native
@pytest.mark.parametrize("planted", ["memory", "descriptors", "threads"])
def test_what_grows_is_seen(triton_server, planted):
    measured = soak(triton_server.grpc_url, "native", SHORT // 2, planted)
    with pytest.raises(
        AssertionError, match="bytes for each call" if planted == "memory" else planted
    ):
        check(measured)
