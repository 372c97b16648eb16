"""What ``import triton_fast`` loads, and what that costs on top of numpy."""

from __future__ import annotations

import subprocess
import sys

LIMIT = 0.015  # seconds
ATTEMPTS = 20
FOREIGN = ("grpc", "google.protobuf", "google._upb", "tritonclient", "triton_fast.testing")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


def loaded_by(statement: str) -> set[str]:
    """Return the modules that ``-X importtime`` sees."""
    lines = python("-X", "importtime", "-c", statement).stderr.splitlines()
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


def foreign(modules: set[str]) -> set[str]:
    return {name for name in modules for top in FOREIGN if f"{name}.".startswith(f"{top}.")}


def cost_of(statement: str) -> float:
    """Return the seconds of CPU that a statement costs after numpy was imported; the least of many.

    CPU time and the least of many, because other programs of a busy machine add to all else. Stops
    at the first that is within the limit.
    """
    program = f"""
import time, numpy
t = time.process_time()
{statement}
print(time.process_time() - t)
"""
    best = float("inf")
    for _ in range(ATTEMPTS):
        best = min(best, float(python("-c", program).stdout))
        if best < LIMIT:
            break
    return best


def test_neither_grpc_nor_protobuf():
    modules = loaded_by("import triton_fast")
    assert {"triton_fast", "triton_fast.client", "numpy"} <= modules
    assert foreign(modules) == set()


def test_a_foreign_import_would_be_seen():
    assert "grpc" in foreign(loaded_by("import triton_fast, grpc"))
    assert "google.protobuf.message" in foreign(loaded_by("import google.protobuf.message"))


def test_own_share():
    assert cost_of("import triton_fast") < LIMIT


def test_a_slow_import_would_be_seen():
    slow = "while time.process_time() - t < 0.016: pass\nimport triton_fast"
    assert cost_of(slow) > LIMIT
