"""What tests ask the test models for, and what they look at in the answers."""

from __future__ import annotations

import numpy as np

from support.waiting import until

ONE = {"INPUT0": np.ones(1, np.float32)}


def slow(seconds):
    """Return inputs of the model `slow`, which takes so long over them."""
    return {**ONE, "DELAY": np.array([seconds], np.float32)}


def assert_usable(client):
    assert client.infer("identity_fp32", ONE, timeout=30)["OUTPUT0"].tolist() == [1]


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
    until(lambda: counts(client)[1] == 0)
    counts(client, reset=True)
