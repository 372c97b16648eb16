"""The table: what a call takes with triton_fast and with tritonclient, against the same server.

The contenders take turns, ten calls each, so that what else the machine does hits all of them, and
in every order, because each finds the server as the one before has left it. A contender's call is
all that its user would do: array in, array out.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np
from tqdm import tqdm

from triton_fast import Client

if TYPE_CHECKING:
    from training import Array

    from triton_fast.testing import TritonServer

__all__ = ["Workload", "WrongAnswer", "compare"]

_CALLS_IN_TURN = 10
_BASELINE = "tritonclient.grpc"
_CONTENDERS = 3


class WrongAnswer(Exception):
    """A contender's answer is not what was expected: its times mean nothing."""


@dataclass(frozen=True)
class Workload:
    """One call, to be made over and over.

    Attributes
    ----------
    title : str
        Its name in the table.
    model, input, output : str
        What is called, with which tensor, for which tensor.
    tensor, expected : ndarray
        What is sent, and what must come back.
    amount, unit : float, str
        What one call gets done: the throughput is in ``unit`` per second.
    """

    title: str
    model: str
    input: str
    output: str
    tensor: Array
    expected: Array
    amount: float
    unit: str


class Contender(Protocol):
    """A client of the server."""

    @property
    def name(self) -> str:
        """What it is called in the table."""

    def prepare(self, workload: Workload) -> Callable[[], Array]:
        """Return the call."""

    def close(self) -> None:
        """Close the connection."""


class TritonFast:
    """Our client."""

    name = "triton_fast"

    def __init__(self, url: str) -> None:
        self._client = Client(url)

    def prepare(self, workload: Workload) -> Callable[[], Array]:
        """Return the call."""
        model = self._client.model(workload.model)
        return lambda: model({workload.input: workload.tensor})[workload.output]

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class TritonClient:
    """tritonclient, by gRPC or by HTTP: both of its modules are used in the same way."""

    def __init__(self, module: ModuleType, url: str) -> None:
        self.name = module.__name__
        self._module = module
        self._client = module.InferenceServerClient(url)

    def prepare(self, workload: Workload) -> Callable[[], Array]:
        """Return the call."""

        def call() -> Array:
            tensor = self._module.InferInput(workload.input, workload.tensor.shape, "FP32")
            tensor.set_data_from_numpy(workload.tensor)
            answer: Array = self._client.infer(workload.model, [tensor]).as_numpy(workload.output)
            return answer

        return call

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def compare(server: TritonServer, workloads: Sequence[Workload], seconds: float) -> None:
    """Time all contenders with all workloads, and print the table, row by row.

    Parameters
    ----------
    server : TritonServer
        Who answers.
    workloads : sequence of Workload
        What each contender must do.
    seconds : float
        How long each workload goes on.

    Raises
    ------
    WrongAnswer
        If an answer is not the expected one.
    """
    print(f"\nOne call at a time; client and server share {os.cpu_count()} cores.\n")
    print(f"{'':<20}{'':<18}{'p50 µs':>8}{'p99 µs':>9}{'throughput':>18}{'ratio':>7}")
    # Garbage collection stays on, as it would be, but need not look at all of scikit-learn.
    gc.collect()
    gc.freeze()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(contextlib.closing(each)) for each in _contenders(server)]
        for workload in workloads:
            _print_rows(workload, _measure(clients, workload, seconds))
    print("ratio: the p50 over that of tritonclient.grpc")
    print("The digits run in Triton's Python backend, which takes most of their time;")
    print("the identity is a C++ backend that only copies.")
    if len(clients) < _CONTENDERS:
        print("tritonclient is not all here: pip install 'tritonclient[grpc,http]'")


def _contenders(server: TritonServer) -> list[Contender]:
    """Return a client of each kind that is installed."""
    clients: list[Contender] = [TritonFast(server.grpc_url)]
    for name, url in (("grpc", server.grpc_url), ("http", server.http_url)):
        # Without its extras it is a RuntimeError.
        with contextlib.suppress(ImportError, RuntimeError):
            clients.append(TritonClient(importlib.import_module(f"tritonclient.{name}"), url))
    return clients


def _print_rows(workload: Workload, times: dict[str, list[float]]) -> None:
    title = workload.title
    for name, taken in times.items():
        p50, p99 = np.percentile(taken, [50, 99])
        throughput = f"{workload.amount / np.mean(taken):,.0f} {workload.unit}/s"
        ratio = f"{p50 / np.median(times[_BASELINE]):.2f}" if _BASELINE in times else "-"
        print(
            f"{title:<20}{name:<18}{p50 * 1e6:>8,.0f}{p99 * 1e6:>9,.0f}{throughput:>18}{ratio:>7}"
        )
        title = ""
    print()


def _measure(
    clients: Sequence[Contender], workload: Workload, seconds: float
) -> dict[str, list[float]]:
    """Return the seconds that each contender's calls took."""
    calls = {client.name: client.prepare(workload) for client in clients}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        _take_turn(name, call, workload)  # to warm up: connections, caches
    start = time.perf_counter()
    bar_format = f"  {workload.title}: {{percentage:.0f}} %|{{bar}}|"
    with tqdm(total=seconds, bar_format=bar_format, leave=False, disable=None) as bar:
        for order in itertools.cycle(itertools.permutations(calls.items())):
            for name, call in order:
                times[name] += _take_turn(name, call, workload)
            elapsed = time.perf_counter() - start
            bar.update(min(elapsed, seconds) - bar.n)
            if elapsed >= seconds:
                break
    return times


def _take_turn(name: str, call: Callable[[], Array], workload: Workload) -> list[float]:
    times = []
    for _ in range(_CALLS_IN_TURN):
        start = time.perf_counter()
        answer = call()
        times.append(time.perf_counter() - start)
    if not np.array_equal(answer, workload.expected):
        raise WrongAnswer(f"{workload.title}: {name} got a wrong answer from {workload.model!r}")
    return times
