"""Children that the scripts of the fork tests fork: what they come to, and whose doing it is.

Whatever is done before a fork, a thread of grpcio's core may hold one of its locks just then, and
the child waits for that for ever, where it makes a channel, say (grpcio 1.85: one of 200 children
with three programs a core, none of 2,400 on a quiet machine). Where the child stands tells that
apart from what is ours: such a script is run again, a few times, and no other is.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterable
from typing import IO

# How long a child may take on a busy machine, in seconds.
_LONG = 60
_STUCK = "a child is stuck in grpcio\n"
_ATTEMPTS = 3

_traces: dict[int, IO[str]] = {}


def fork(work: Callable[[], object]) -> int:
    """Fork a child that does a work and ends; return its id, for `join`."""
    trace = tempfile.TemporaryFile("w+")  # noqa: SIM115 - the parent reads it in join
    pid = os.fork()
    if pid:
        _traces[pid] = trace
        return pid
    status = 1
    try:
        # By a signal and not by a thread, which this child's own children would not have.
        faulthandler.register(signal.SIGALRM, file=trace, chain=True)
        signal.alarm(_LONG)
        work()
        status = 0
    except BaseException as error:
        print(f"child: {type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(status)


def join(pids: Iterable[int]) -> None:
    """Wait for children, which must have ended well; end the script if grpcio keeps one."""
    statuses = {pid: os.waitpid(pid, 0)[1] for pid in pids}
    for pid, status in statuses.items():
        frames = ""
        if trace := _traces.pop(pid, None):
            with trace:
                trace.seek(0)
                frames = trace.read()
        if status and is_in_grpcio(frames):
            print(_STUCK, end="", flush=True)
            os._exit(0)
        assert status == 0, f"child {pid}: status {status}\n{frames}"


def is_in_grpcio(frames: str) -> bool:
    """Tell whether the thread that forked stands in a call of grpcio's; it is the last one told."""
    innermost = re.findall(r'most recent call first\):\n  File "([^"]*)"', frames)
    return bool(innermost) and "/grpc/" in innermost[-1]


def run_forking(run: Callable[[], tuple[str, str]]) -> tuple[str, str]:
    """Return what a script says; run it again if grpcio kept a child, but not each time."""
    for _ in range(_ATTEMPTS):
        output, complaints = run()
        if not output.endswith(_STUCK):
            return output, complaints
    raise AssertionError(f"a child was stuck in grpcio each time:\n{output}")
