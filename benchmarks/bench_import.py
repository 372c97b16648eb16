"""What an import costs on top of numpy's, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sampling import Samples

GROUP = "import"
MODULES = {"triton_fast": "triton_fast", "tritonclient.grpc": "tritonclient.grpc"}
_PROGRAM = """
import time, numpy
cpu = time.process_time(); start = time.perf_counter()
import {module}
print(start, time.perf_counter(), time.process_time() - cpu)
"""


@pytest.fixture(scope="session")
def imported(smoke: bool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Samples]:
    samples = {name: Samples() for name in MODULES}
    # The first round compiles everything to bytecode, whatever was there before.
    bytecode: Path = tmp_path_factory.mktemp("bytecode")
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(bytecode), "PYTHONDONTWRITEBYTECODE": ""}
    for number in range(2 if smoke else 16):
        for name, module in MODULES.items():
            program = [sys.executable, "-c", _PROGRAM.format(module=module)]
            finished = subprocess.run(
                program, env=env, check=True, stdout=subprocess.PIPE, text=True
            )
            start, end, cpu = map(float, finished.stdout.split())
            if number:
                samples[name].readings.append((start, end))
                samples[name].cpu_seconds.append(cpu)
    return samples


@pytest.mark.parametrize("contender", MODULES)
def bench_import(contender: str, imported: dict[str, Samples], record: Callable[..., None]) -> None:
    record(GROUP, contender, imported[contender])
