"""Names of regions that tell who made them, and which of those are of processes that are gone.

Names that others gave, at a server or in /dev/shm, are input: a number from one is used only if it
is one that the system gives, and nothing that is done about them fails the call it is done for.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .registration import RegisteredRegion

__all__ = ["StaleRegion", "region_name", "remove_orphans", "stale_region", "stale_regions"]

# Which process made a region is in its name, for whoever finds it when the process is gone. A
# number of a process means something only in its namespace (pid_namespaces(7)).
_OURS = re.compile(
    r"triton_fast-(?P<space>[0-9]{1,20})-(?P<pid>[0-9]{1,10})-(?P<made>[0-9]{1,12})-[0-9a-f]{1,32}"
)
# The largest that a process may have (PID_MAX_LIMIT is 2**22; pid_t has 32 bits).
_MAX_PID = 2**31 - 1


def region_name() -> str:
    """Return a name for a region that says who made it, and when, and that nobody else has."""
    return f"triton_fast-{_namespace()}-{os.getpid()}-{int(time.time())}-{os.urandom(8).hex()}"


@dataclass(frozen=True, slots=True)
class StaleRegion:
    """A region that was registered by a triton_fast client whose process is gone.

    Parameters
    ----------
    name : str
        What the server calls it.
    byte_size : int, bytes
        How much memory the server keeps for it.
    pid : int
        The process that registered it.
    age : float, seconds
        How long ago.
    """

    name: str
    byte_size: int
    pid: int
    age: float


def stale_region(region: RegisteredRegion) -> StaleRegion | None:
    """Return a region as a stale one, if that is what it is.

    Regions of other libraries are never stale, nor those of another machine's or container's
    processes: nothing can be said of them from here.
    """
    ours = _OURS.fullmatch(region.name)
    if ours is None or int(ours["space"]) != _namespace():
        return None
    pid, made = int(ours["pid"]), int(ours["made"])
    if not 0 < pid <= _MAX_PID or _runs_since(pid, made):
        return None
    return StaleRegion(region.name, region.byte_size, pid, max(time.time() - made, 0.0))


def stale_regions(regions: Iterable[RegisteredRegion]) -> list[StaleRegion]:
    """Return those of clients that were killed on this machine, oldest first."""
    stale = (stale_region(region) for region in regions)
    return sorted((region for region in stale if region), key=lambda region: -region.age)


# As csrc/src/shm/segment.cpp names them.
_FILES = Path("/dev/shm")  # noqa: S108 - where shm_open(3) puts them
_FILE = re.compile(r"triton_fast-(?P<space>[0-9]{1,20})-(?P<pid>[0-9]{1,10})-[0-9a-f]{1,32}")


def remove_orphans() -> None:
    """Remove the files of clients that were killed while the server was about to open one.

    They are there for that moment only; but SIGKILL can come in it, and asks nobody.
    """
    try:
        files = list(_FILES.iterdir())
    except OSError:
        return  # no Linux: shared memory is in no folder
    for file in files:
        found = _FILE.fullmatch(file.name)
        if found is None or int(found["space"]) != _namespace():
            continue
        pid = int(found["pid"])
        if 0 < pid <= _MAX_PID and not _runs_since(pid, 2**62):
            with contextlib.suppress(OSError):  # another's, or another was faster
                file.unlink()


def _namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0  # no Linux


def _runs_since(pid: int, moment: int) -> bool:
    """Whether a process exists that was there at that time; another may have got its number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        # proc_pid_stat(5), field 22, in clock ticks since the start of the machine; the name in
        # field 2 may have blanks and brackets in it.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8")
        ticks = int(fields.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return True
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age <= moment + 2
