"""What ``import triton_fast`` loads, and what that costs on top of numpy."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIMIT = 0.015  # seconds
ATTEMPTS = 20
FOREIGN = ("grpc", "google.protobuf", "google._upb", "tritonclient", "triton_fast.testing")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


def loaded_by(statement: str) -> set[str]:
    """Return the modules that ``-X importtime`` sees, and those that are there in the end.

    The two differ: it does not see what importlib.import_module() loads.
    """
    done = python("-X", "importtime", "-c", f"{statement}\nimport sys; print(*sys.modules)")
    lines = done.stderr.splitlines()
    seen = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    return seen | set(done.stdout.split())


def foreign(modules: set[str]) -> set[str]:
    return {name for name in modules for top in FOREIGN if f"{name}.".startswith(f"{top}.")}


def cost_of(statement: str, attempts: int = ATTEMPTS) -> float:
    """Return the seconds of CPU that a statement costs after numpy was imported; the least of many.

    CPU time and the least of many, because other programs of a busy machine add to all else; and
    since they slow down the processor itself, in seconds of a machine on which numpy takes 0.075.
    """
    program = f"""
import time
start = time.process_time()
import numpy
middle = time.process_time()
{statement}
end = time.process_time()
print((end - middle) * min(1, 0.075 / (middle - start)))
"""
    best = float("inf")
    for _ in range(attempts):
        best = min(best, float(python("-c", program).stdout))
        if best < LIMIT:
            break
    return best


# The first loads nothing yet; the second loads all that there is to a Client before its first call.
STATEMENTS = ("import triton_fast", "from triton_fast import Client")


@pytest.mark.parametrize("statement", STATEMENTS)
def test_neither_grpc_nor_protobuf(statement):
    modules = loaded_by(statement)
    assert "triton_fast" in modules
    assert ("triton_fast.client.client" in modules) == ("Client" in statement)
    assert foreign(modules) == set()


def test_a_foreign_import_would_be_seen():
    assert "grpc" in foreign(loaded_by("import triton_fast, grpc"))
    assert "google.protobuf.message" in foreign(loaded_by("import google.protobuf.message"))


@pytest.mark.parametrize("statement", STATEMENTS)
def test_own_share(statement):
    assert cost_of(statement) < LIMIT


def test_a_slow_import_would_be_seen():
    slow = "while time.process_time() - middle < 0.1: pass\nimport triton_fast"
    assert cost_of(slow, attempts=3) > LIMIT
