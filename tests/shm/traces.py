"""What a process has of shared memory, as the system sees it; and processes to look at."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

# A child that hangs is killed by its own alarm, so that a fault shows as its status.
PRELUDE = """
import errno, gc, os, resource, signal, sys, threading, time, warnings
import numpy as np
from traces import descriptor_count, files, mapping_count
from triton_fast._core import _shm

# Python 3.12 and later warn of what is tested here.
warnings.filterwarnings("ignore", "(?s).*fork.*", DeprecationWarning)

def fork(work):
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(20)
            work()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
"""


def run_python(script: str, *arguments: str) -> str:
    """Run a script in an interpreter of its own, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [*sys.path, ""]))},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr or done
    return done.stdout


def files(pid: int | None = None) -> set[str]:
    """Return the names of a process's segments; of this one's if no other is named."""
    return {path.name for path in Path("/dev/shm").glob(f"triton_fast-*-{pid or os.getpid()}-*")}


def is_mapped(address: int) -> bool:
    """Return whether a mapping of this process begins at an address."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return any(int(line.partition("-")[0], 16) == address for line in lines)


def mapping_count() -> int:
    """Return how many mappings of ``/dev/shm`` this process has."""
    return Path("/proc/self/maps").read_text().count("/dev/shm/")


def descriptor_count() -> int:
    """Return how many descriptors of files in ``/dev/shm`` this process has open.

    Not of all files: what other tests have left in this process may open one at any time.
    """
    count = 0
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed just now, as the folder itself is
            count += path.readlink().is_relative_to("/dev/shm")
    return count
