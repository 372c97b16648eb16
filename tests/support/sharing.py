"""What tests of shared memory send, and what they look at in a client's pool."""

from __future__ import annotations

import gc

import numpy as np

BIG = 1 << 18  # elements: a mebibyte of FP32


def array(seed, size=BIG):
    return np.random.default_rng(seed).standard_normal(size, np.float32)


def pool(client):
    """Return the pool of a client, or of one for coroutines, which has it at one remove."""
    shared = client._endpoint._shared
    return getattr(shared, "inner", shared).pool


def figures(client):
    gc.collect()
    return pool(client)._arenas.figures()


def in_slot(client, tensor):
    return pool(client).locate(tensor.ctypes.data, tensor.nbytes) is not None
