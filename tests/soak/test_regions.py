"""Shared memory over a long time: clients that are killed, servers that restart, many calls.

The short forms are part of every test run. The long ones are for ``make soak``: 1,000 killed
clients (``TRITON_FAST_SOAK_KILLS``), 10 restarts, 100,000 calls (a tenth of
``TRITON_FAST_SOAK_CALLS``).
"""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from support.interpreter import environment
from support.process import descriptors, resident, segments

from triton_fast import Client, Unavailable
from triton_fast._core import _shm

pytestmark = pytest.mark.server

BIG = 1 << 16  # elements: 256 KiB of FP32
KILLS = int(os.environ.get("TRITON_FAST_SOAK_KILLS", "1000"))
CALLS = int(os.environ.get("TRITON_FAST_SOAK_CALLS", "1000000")) // 10

VICTIM = textwrap.dedent(
    """
    import sys
    import numpy as np
    from triton_fast import Client
    data = np.ones(1 << 16, np.float32)
    print("ready", flush=True)
    while True:
        with Client(sys.argv[1], shared_memory=True) as client:
            for _ in range(20):
                client.infer("identity_cpp", {"INPUT0": data})
    """
)


def forms(short, long):
    marks = [pytest.mark.soak, pytest.mark.timeout(0)]
    return [pytest.param(short, id="short"), pytest.param(long, id="long", marks=marks)]


@pytest.fixture
def region_server(shared_server):
    return shared_server(models=["identity_cpp"])


@pytest.mark.server_may_die
@pytest.mark.parametrize("kills", forms(6, KILLS))
def test_clients_that_are_killed(region_server, kills, capsys):
    """None leaves a file but in the moment of a registration, and the next client removes that."""
    random = np.random.default_rng(5)
    left = 0
    for _ in range(kills):
        victim = subprocess.Popen(
            [sys.executable, "-c", VICTIM, region_server.grpc_url],
            stdout=subprocess.PIPE,
            env=environment(),
        )
        assert victim.stdout.readline() == b"ready\n"
        time.sleep(random.uniform(0, 0.15))
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        victim.stdout.close()
        if segments(victim.pid):
            left += 1
            with Client(region_server.grpc_url, shared_memory=True) as client:
                client.empty(1, np.int8)
            assert not segments(victim.pid)
    with Client(region_server.grpc_url, shared_memory=False) as client:
        stale = client.shared_memory.stale()
        for region in stale:
            client.shared_memory.unregister(region.name)
        assert not client.shared_memory.registered()
    if kills == KILLS:
        with capsys.disabled():
            print(f"\n{kills} killed, {left} while they registered; {len(stale)} stale regions")


@pytest.mark.parametrize("restarts", forms(2, 10))
def test_a_server_that_restarts_under_load(triton_server_factory, channel, restarts):
    with (
        triton_server_factory(models=["identity_cpp"]) as server,
        Client(server.grpc_url, channel=channel, shared_memory=True, timeout=60) as client,
    ):
        stopping = threading.Event()
        away = threading.Event()
        faults = []
        right = [0] * 4

        def work(number):
            random = np.random.default_rng(number)
            while not stopping.is_set():
                data = random.standard_normal(BIG, np.float32)
                was_away = away.is_set()
                try:
                    answer = client.infer("identity_cpp", {"INPUT0": data})["OUTPUT0"]
                    np.testing.assert_array_equal(answer, data)
                    right[number] += 1
                except Unavailable as error:
                    if not (was_away or away.is_set()):
                        faults.append(error)
                        return
                except BaseException as error:
                    faults.append(error)
                    return

        def wait_for_answers():
            """Have each get two more: the second is of a call that began meanwhile."""
            before = list(right)
            deadline = time.monotonic() + 60
            while any(now < then + 2 for now, then in zip(right, before, strict=True)):
                assert not faults, faults
                assert time.monotonic() < deadline
                time.sleep(0.005)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(restarts):
                wait_for_answers()
                away.set()
                server.kill()
                server.start()
                wait_for_answers()
                away.clear()
                wait_for_answers()
        finally:
            stopping.set()
            for thread in threads:
                thread.join()
        assert not faults, faults
    gc.collect()


@pytest.mark.parametrize("calls", forms(1000, CALLS))
def test_nothing_grows(region_server, channel, calls, capsys):
    def measure():
        gc.collect()
        maps = Path("/proc/self/maps").read_text()
        return {
            "descriptors": len(descriptors()),
            "mappings": len(re.findall(r"triton_fast|/dev/shm", maps)),
            "objects": sum(_shm.live_counts().values()),
            "resident": resident(),
        }

    random = np.random.default_rng(0)
    with Client(region_server.grpc_url, channel=channel, shared_memory=True, timeout=60) as client:
        mine = client.empty(BIG, np.float32)
        mine[:] = 1

        def call(number):
            size = int(random.integers(BIG // 4, 2 * BIG))
            data = mine if number % 3 == 0 else np.full(size, number, np.float32)
            answer = client.infer("identity_cpp", {"INPUT0": data})["OUTPUT0"]
            assert answer.shape == data.shape
            assert answer[0] == data[0]
            assert answer[-1] == data[-1]

        for number in range(calls // 4):
            call(number)
        before = measure()
        for number in range(calls):
            call(number)
        after = measure()
    for name, slack in (("descriptors", 2), ("mappings", 0), ("objects", 0), ("resident", 4 << 20)):
        assert after[name] <= before[name] + slack, (name, before, after)
    if calls == CALLS:
        with capsys.disabled():
            print(f"\n{channel}: {calls} calls; before {before}, after {after}")
