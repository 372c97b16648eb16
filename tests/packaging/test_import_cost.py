"""What ``import triton_fast`` loads. How long that takes is measured by benchmarks/bench_import.py.

Modules are counted here, which no other program of a busy machine changes.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

FOREIGN = (
    *("gevent", "grpc", "google.protobuf", "google._upb"),
    *("tritonclient", "triton_fast.testing", "triton_fast.channels.greenlets"),
)
# How many modules an import may load that numpy has not. The first loads nothing yet; the second
# loads all that there is to a Client before its first call: 47 modules in 2026.
MOST = {"import triton_fast": 2, "from triton_fast import Client": 49}


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


@pytest.mark.parametrize("statement", MOST)
def test_little_is_loaded(statement):
    modules = loaded_by(statement)
    assert "triton_fast" in modules
    assert ("triton_fast.client.client" in modules) == ("Client" in statement)
    assert foreign(modules) == set()
    assert len(modules - loaded_by("import numpy")) <= MOST[statement]


def test_a_foreign_import_would_be_seen():
    found = foreign(loaded_by("import triton_fast, grpc, google.protobuf.message"))
    assert {"grpc", "google.protobuf.message"} <= found
