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
# Names rather than modules: triton_fast loads what stands behind a name when it is asked for.
IMPORTS = {
    "triton_fast": "from triton_fast import Client",
    "tritonclient.grpc": "from tritonclient.grpc import InferenceServerClient",
}
_PROGRAM = """
import time, numpy
cpu = time.process_time(); start = time.perf_counter()
{statement}
print(start, time.perf_counter(), time.process_time() - cpu)
"""


@pytest.fixture(scope="session")
def imported(smoke: bool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Samples]:
    samples = {name: Samples() for name in IMPORTS}
    # The first round compiles everything to bytecode, whatever was there before.
    bytecode: Path = tmp_path_factory.mktemp("bytecode")
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(bytecode), "PYTHONDONTWRITEBYTECODE": ""}
    for number in range(2 if smoke else 16):
        for name, statement in IMPORTS.items():
            program = [sys.executable, "-c", _PROGRAM.format(statement=statement)]
            finished = subprocess.run(
                program, env=env, check=True, stdout=subprocess.PIPE, text=True
            )
            start, end, cpu = map(float, finished.stdout.split())
            if number:
                samples[name].readings.append((start, end))
                samples[name].cpu_seconds.append(cpu)
    return samples


@pytest.mark.parametrize("contender", IMPORTS)
def bench_import(contender: str, imported: dict[str, Samples], record: Callable[..., None]) -> None:
    record(GROUP, contender, imported[contender])
