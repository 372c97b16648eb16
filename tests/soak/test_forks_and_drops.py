"""Forks with results alive, and clients that are dropped, many times over.

The short forms are part of every test run. The long ones have a thousand of each, or what
``TRITON_FAST_SOAK_FORKS`` says, and are for ``make soak``.
"""

from __future__ import annotations

import gc
import os
import warnings

import numpy as np
import pytest
from support.interpreter import run_python
from support.process import segments
from support.waiting import until

from triton_fast import Client

pytestmark = pytest.mark.server

SHORT = 20
LONG = int(os.environ.get("TRITON_FAST_SOAK_FORKS", "1000"))
FORMS = [
    pytest.param(SHORT, id="short"),
    pytest.param(LONG, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(0)]),
]
BIG = np.arange(1 << 16, dtype=np.float32)

# In an interpreter without grpcio, whose core may keep a child for ever.
FORKING = """
import os, sys
import numpy as np
from support.forked_children import fork, join
from triton_fast import Client

def infer(value):
    array = np.full(1 << 16, value, np.float32)
    return client.infer("identity_cpp", {"INPUT0": array})["OUTPUT0"]

changed = 0
with Client(sys.argv[1], shared_memory=True, timeout=60) as client:
    infer(0)  # from now on results are in slots
    for number in range(1, int(sys.argv[2]) + 1):
        results = [infer(value) for value in (number, -number)]
        own = client.empty(1 << 16, np.float32)
        own[:] = number
        arrays = [*results, own]
        values = [number, -number, number]

        def work():
            '''Read, write, call: all of it is the child's own.'''
            assert all((one == value).all() for one, value in zip(arrays, values))
            for one in arrays:
                one[:] = 7.5
            assert (infer(9) == 9).all()
            client.close()  # which os._exit would not do
            assert all((one == 7.5).all() for one in arrays)

        child = fork(work)
        for one in results:
            one += 1
        fresh = [infer(value) for value in (1, 2)]
        join([child])
        changed += sum(
            not (one == value).all()
            for one, value in zip([*arrays, *fresh], [number + 1, -number + 1, number, 1, 2])
        )
print(changed)
"""


@pytest.fixture
def forked_server(shared_server):
    return shared_server(models=["identity_cpp"])


@pytest.mark.native
@pytest.mark.parametrize("times", FORMS)
def test_no_array_changes(forked_server, times):
    limit = 60 + times
    assert run_python(FORKING, forked_server.grpc_url, str(times), timeout=limit) == "0\n"


@pytest.mark.parametrize("times", FORMS)
def test_dropped_clients_leave_nothing(forked_server, times):
    url = forked_server.grpc_url
    with Client(url, shared_memory=False, timeout=60) as witness:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            for _ in range(times):
                client = Client(url, timeout=60)
                result = client.infer("identity_cpp", {"INPUT0": BIG})["OUTPUT0"]
                assert (result == BIG).all()
            del client
            gc.collect()
        until(lambda: not witness.shared_memory.registered())
    del result
    assert not segments()
