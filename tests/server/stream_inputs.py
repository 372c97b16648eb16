"""What the tests of streams ask the test models for, and what they look at in the answers."""

from __future__ import annotations

import time

import numpy as np


def repeat(values, delays=None, wait=0):
    """Return inputs that are answered value by value, each after a delay in milliseconds."""
    return {
        "IN": np.int32(values),
        "DELAY": np.uint32([0] * len(values) if delays is None else delays),
        "WAIT": np.uint32([wait]),
    }


# An answer, and nothing more before everybody has lost patience.
ENDLESS = repeat([1, 2], [0, 600_000])


def square(count):
    return {"IN": np.int32([count])}


def outs(answers, name="OUT"):
    return [answer[name].item() for answer in answers]


def counts(client, *, reset=False):
    """Return how many requests were cancelled, and how many a model has."""
    found = client.infer("cancellations", {"RESET": np.array([reset])})
    return found["CANCELLED"].item(), found["RUNNING"].item()


def reset(client):
    """Begin counting anew, once no model has anything to do."""
    wait_until(lambda: counts(client)[1] == 0)
    counts(client, reset=True)


def wait_until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still not so after {seconds} s"
        time.sleep(0.01)
