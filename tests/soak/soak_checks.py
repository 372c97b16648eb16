"""What the long campaigns hold a program's measurements against: nothing grows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from support.interpreter import environment

# What may come and go: the arenas of Python's and the C library's allocators. In the long form of a
# million calls that is 2 bytes for each.
MEMORY = 2 << 20


def run(program: str, *arguments: str):
    """Run a program of this folder; return its measurements, as arrays by name."""
    command = [sys.executable, str(Path(__file__).with_name(program)), *arguments]
    done = subprocess.run(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        check=True,
    )
    measurements = json.loads(done.stdout)
    return {name: np.array([m[name] for m in measurements]) for name in measurements[0]}


def what_grows(measured):
    """Hold the second half of a run against the first, and memory against a line through it."""
    found = {}
    for name, slack in (("descriptors", 2), ("threads", 2), ("native_objects", 0), ("tasks", 0)):
        values = measured.get(name, np.zeros(2))
        half = len(values) // 2
        if values[half:].max() > values[:half].max() + slack:
            found[name] = values.tolist()
    calls, resident = measured["calls"], measured["resident"]
    slope = memory_slope(measured)
    if slope * (calls[-1] - calls[len(calls) // 10]) >= MEMORY:
        found["memory"] = (f"{slope:.1f} bytes for each call", (resident // 1024).tolist())
    return found


def memory_slope(measured):
    """Return how many bytes of memory each call has cost; the first tenth fills caches still."""
    start = len(measured["calls"]) // 10
    return np.polyfit(measured["calls"][start:], measured["resident"][start:], 1)[0]


def summary(measured):
    """Say in a line what a long run measured."""
    slope = memory_slope(measured)
    seconds = measured["time"][-1] - measured["time"][0]
    return (
        f"{measured['calls'][-1]} calls in {seconds:.0f} s; memory "
        f"{measured['resident'][0] / 2**20:.1f} MiB before, "
        f"{measured['resident'][-1] / 2**20:.1f} MiB after, {slope:.2f} bytes a call; "
        f"descriptors {measured['descriptors'][0]} and {measured['descriptors'][-1]}, "
        f"threads {measured['threads'][0]} and {measured['threads'][-1]}"
    )
