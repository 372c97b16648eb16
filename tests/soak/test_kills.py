"""A server that is killed again and again: every call ends in time, and the client recovers alone.

The short form is part of every test run. The long one has a thousand kills, or what
``TRITON_FAST_SOAK_KILLS`` says, and is for ``make soak``.
"""

from __future__ import annotations

import collections
import os
import threading
import time

import numpy as np
import pytest
from support.process import descriptors

from triton_fast import Cancelled, Client, DeadlineExceeded, NotFound, Unavailable

pytestmark = pytest.mark.server

SHORT = 5
LONG = int(os.environ.get("TRITON_FAST_SOAK_KILLS", "1000"))
TIMEOUT = 10.0
# How late a call may end on a loaded machine.
SLACK = 10.0
# How long after the server is back a client may take; grpcio tries again once a second.
RECOVERY = 60.0


class Worker(threading.Thread):
    """Makes one kind of call without a pause; holds each against its deadline and its answer."""

    def __init__(self, client, kind, seed):
        super().__init__()
        self.client = client
        self.kind = kind
        self.random = np.random.default_rng(seed)
        self.count = 0
        self.right = 0  # calls with the right answer
        self.outcomes = collections.Counter()
        self.faults = []
        self.refusals = ()
        self.longest = 0.0
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.is_set():
            started = time.monotonic()
            try:
                self.make_one()
                self.right += 1
                outcome = "right"
            except (Unavailable, DeadlineExceeded, *self.refusals) as error:
                outcome = f"{type(error).__name__}: {error.message.split('127.0.0.1')[0][:60]}"
                self.stopping.wait(0.02)
            except BaseException as error:
                self.faults.append(error)
                return
            took = time.monotonic() - started
            self.longest = max(self.longest, took)
            if self.kind == "huge":
                self.stopping.wait(0.02)  # leaves the machine to the others
            self.count += 1
            self.outcomes[outcome] += 1
            if took > TIMEOUT + SLACK:
                self.faults.append(AssertionError(f"a call took {took:.1f} s: {outcome}"))

    def make_one(self):
        size = {"small": 16, "large": 150_528, "huge": 1 << 20}.get(self.kind, 64)
        values = self.random.random(size, np.float32)
        inputs = {"INPUT0": values}
        if self.kind == "submitted":
            futures = [self.client.submit("identity_fp32", inputs) for _ in range(3)]
            errors = [future.exception(TIMEOUT + SLACK) for future in futures]
            for error in errors:
                if error is not None:
                    raise error
            results = [future.result()["OUTPUT0"] for future in futures]
        elif self.kind == "waiting":
            inputs["DELAY"] = np.array([self.random.random() * 0.2], np.float32)
            results = [self.client.infer("slow", inputs)["OUTPUT0"]]
        elif self.kind == "into":
            out = np.empty_like(values)
            self.client.infer("identity_fp32", inputs, out={"OUTPUT0": out})
            results = [out]
        else:
            results = [self.client.infer("identity_fp32", inputs)["OUTPUT0"]]
        for result in results:
            assert result.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    "form", ["short", pytest.param("long", marks=[pytest.mark.soak, pytest.mark.timeout(0)])]
)
def test_kills_at_random_moments(triton_server_factory, channel, form, capsys):
    kills = SHORT if form == "short" else LONG
    random = np.random.default_rng(11)
    started = time.monotonic()
    with triton_server_factory(models=["identity_fp32", "slow"]) as server:
        with Client(server.grpc_url, channel=channel, timeout=TIMEOUT) as client:
            kinds = ("small", "small", "large", "huge", "submitted", "waiting", "into")
            workers = [Worker(client, kind, seed) for seed, kind in enumerate(kinds)]
            for worker in workers:
                worker.start()
            slowest = 0.0
            open_then = 0
            try:
                for kill in range(kills):
                    # Each has had an answer from this server: the client is back.
                    slowest = max(slowest, wait_for_answers(workers))
                    if kill == 2:
                        open_then = len(descriptors())
                    time.sleep(random.random() * 0.1)
                    server.kill()
                    time.sleep(random.choice([0, random.random() * 0.1]))
                    server.start()
                wait_for_answers(workers)
                open_now = len(descriptors())
            finally:
                for worker in workers:
                    worker.stopping.set()
                for worker in workers:
                    worker.join(TIMEOUT + SLACK)
            assert not any(worker.is_alive() for worker in workers), "a call hangs"
            assert [fault for worker in workers for fault in worker.faults] == []
            assert client.infer("identity_fp32", {"INPUT0": np.ones(1, np.float32)})
    outcomes = sum((worker.outcomes for worker in workers), collections.Counter())
    # Every kill but for a few finds a call on its way.
    assert outcomes.total() - outcomes["right"] >= kills
    assert open_now <= open_then + 10
    if form == "long":
        with capsys.disabled():
            print(
                f"\n{channel}: {kills} kills in {time.monotonic() - started:.0f} s, "
                f"{outcomes.total()} calls, the longest {max(w.longest for w in workers):.1f} s; "
                f"back after {slowest:.1f} s at the most; descriptors {open_then} and {open_now}"
            )
            for outcome, count in outcomes.most_common():
                print(f"  {count:8} {outcome}")


def test_a_server_that_is_stopped_and_started(triton_server_factory, channel):
    """It unloads its models, cancels what still runs, and closes its port, in that order."""
    with triton_server_factory(models=["identity_fp32", "slow"]) as server:
        with Client(server.grpc_url, channel=channel, timeout=TIMEOUT) as client:
            kinds = ("small", "large", "submitted", "waiting", "waiting")
            workers = [Worker(client, kind, seed) for seed, kind in enumerate(kinds)]
            for worker in workers:
                worker.refusals = (NotFound, Cancelled)
                worker.start()
            try:
                wait_for_answers(workers)
                server.restart()
                wait_for_answers(workers)
            finally:
                for worker in workers:
                    worker.stopping.set()
                for worker in workers:
                    worker.join(TIMEOUT + SLACK)
            assert not any(worker.is_alive() for worker in workers), "a call hangs"
            assert [fault for worker in workers for fault in worker.faults] == []


def wait_for_answers(workers):
    """Wait until each worker has got another right answer; return how long that took."""
    before = [worker.right for worker in workers]
    started = time.monotonic()
    while any(worker.right == then for worker, then in zip(workers, before, strict=True)):
        assert [fault for worker in workers for fault in worker.faults] == []
        assert time.monotonic() - started < RECOVERY, [w.outcomes for w in workers]
        time.sleep(0.002)
    return time.monotonic() - started
