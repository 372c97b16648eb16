"""Peak memory of one large inference, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from contenders import (
    Addresses,
    Contender,
    CppStub,
    GrpcioBytes,
    TritonclientGrpc,
    TritonclientHttp,
    TritonFast,
    TritonFastGrpcio,
    TritonFastOut,
    present,
)
from report import MEMORY
from sampling import Samples, Turn

MIB = 1 << 20
COMPETING = present(
    (
        TritonFast,
        TritonFastOut,
        TritonFastGrpcio,
        CppStub,
        TritonclientGrpc,
        TritonclientHttp,
        GrpcioBytes,
    )
)
Measure = Callable[[], dict[str, Samples]]


@pytest.fixture(scope="session")
def byte_size(smoke: bool) -> int:
    return (4 if smoke else 256) * MIB


@pytest.fixture(scope="session")
def measure(server: Addresses, byte_size: int, smoke: bool) -> Measure:
    results: dict[str, Samples] = {}

    def measured() -> dict[str, Samples]:
        if not results:
            results.update(_compete(server, byte_size, turns=1 if smoke else 2))
        return results

    return measured


def _compete(server: Addresses, byte_size: int, turns: int) -> dict[str, Samples]:
    results: dict[str, Samples] = {cls.name: Samples() for cls in COMPETING}
    for _ in range(turns):
        for name, samples in results.items():
            seen = _one_call(name, server, byte_size)
            reading = (seen["start"], seen["end"])
            samples.take(Turn([reading], seen["cpu_seconds"], {MEMORY: seen["peak"]}))
    return results


def _one_call(name: str, server: Addresses, byte_size: int) -> dict[str, float]:
    script = Path(__file__).with_name("one_call.py")
    finished = subprocess.run(
        [sys.executable, str(script), name, server.grpc, server.http, str(byte_size)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    figures: dict[str, float] = json.loads(finished.stdout)
    return figures


@pytest.mark.parametrize("cls", COMPETING, ids=lambda cls: cls.name)
def bench_memory(
    cls: type[Contender], byte_size: int, measure: Measure, record: Callable[..., None]
) -> None:
    group = f"peak memory, {byte_size // MIB} MiB"
    record(group, cls.name, measure()[cls.name], byte_size=byte_size)
