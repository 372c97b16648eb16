"""What a process has of shared memory, as the system sees it; and processes to look at."""

from __future__ import annotations

import textwrap
from pathlib import Path

from support.interpreter import run_python
from support.process import descriptors

# A child that hangs is killed by its own alarm, so that a fault shows as its status.
PRELUDE = """
import errno, gc, os, resource, signal, sys, threading, time, warnings
import numpy as np
from shm_programs import descriptor_count, mapping_count
from support.process import segments
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


def run_program(script: str, *arguments: str) -> str:
    """Run a script after the prelude, and return what it prints; it must complain of nothing."""
    program = PRELUDE + textwrap.dedent(script)
    return run_python(program, *arguments, quiet=True, options=())


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
    return sum(Path(name).is_relative_to("/dev/shm") for name in descriptors().values())
