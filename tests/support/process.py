"""What the system says this process has: memory, descriptors, threads, and files of segments."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path


def resident() -> int:
    """Return how much memory this process has, in bytes; man 5 proc."""
    return _pages(1)


def resident_of_its_own() -> int:
    """Return the same without shared memory, and without the pages of files."""
    return _pages(1) - _pages(2)


def peak() -> int:
    """Return how much memory this process has had at most, since `reset_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def reset_peak() -> None:
    """Have `peak` begin with what there is now."""
    Path("/proc/self/clear_refs").write_text("5")


def _pages(field: int) -> int:
    statm = Path("/proc/self/statm").read_text()
    return int(statm.split()[field]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> dict[str, str]:
    """Return this process's descriptors, each with what it stands for."""
    found = {}
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own, or closed just now
            found[descriptor.name] = str(descriptor.readlink())
    return found


def sockets() -> set[str]:
    """Return the sockets among them, by what the system calls them."""
    return {name for name in descriptors().values() if name.startswith("socket:")}


def threads() -> set[threading.Thread]:
    """Return the threads, but those of pools: a server in this process has one that grows."""
    return {t for t in threading.enumerate() if not t.name.startswith("ThreadPoolExecutor")}


def held() -> int:
    """Return how many descriptors and `threads` there are."""
    return len(descriptors()) + len(threads())


def segments(*pids: int) -> set[str]:
    """Return the names of processes' segments; of this one's if no other is named."""
    return {
        path.name
        for pid in pids or (os.getpid(),)
        for path in Path("/dev/shm").glob(f"triton_fast-*-{pid}-*")
    }
