"""The program between a test and its server: starts it, watches both, cleans up after either.

Run as a script by `triton_fast.testing.server`, in a session of its own, with nothing but the
standard library; it imports nothing from the package and the package imports nothing from it.

Why a program and not code in the caller's process: whatever happens to the caller, SIGKILL
included, somebody must outlive it who knows the server, the Python backend's stub processes, their
shared memory and the temporary folder. And why not ``preexec_fn`` with PR_SET_PDEATHSIG in the
caller: code between fork and exec is unsafe in a process with threads, and the signal comes when
the *thread* that started the server ends. Here there is one thread, so both are sound, and the
server is tied to this program in that way.

Standard input and output are pipes to the caller, one line to a message:

======================================  ========================================================
from the caller                         to the caller
======================================  ========================================================
JSON: folder, shm_prefix                ``ready`` (the folder is made), or ``error TEXT``
JSON: argv, env                         ``pid N``, or ``error TEXT``
``stop SECONDS``: SIGTERM, then SIGKILL
``kill``: SIGKILL to the whole group
(end of file, or the caller is gone)    ``exit STATUS``, when everything is cleaned up
======================================  ========================================================

Standard error is the server's log.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# How long processes that were sent SIGKILL may take to be gone.
_REAP_SECONDS = 10.0


class Caller:
    """The process at the other end of standard input and output."""

    def __init__(self) -> None:
        self._number = os.getppid()
        self._received = b""
        self._at_end = False

    @property
    def is_there(self) -> bool:
        """Whether the caller lives and holds its end of the pipe."""
        return not self._at_end and os.getppid() == self._number

    def end_descriptor(self) -> int | None:
        """Return a descriptor that is readable when the caller has ended, if the system can.

        The end of standard input is not enough: a forked child of the caller may hold the pipe open
        when the caller itself is gone.
        """
        try:
            return os.pidfd_open(self._number)
        except (AttributeError, OSError):  # not Linux, before 5.3, or it has ended already
            return None

    def receive(self) -> list[str]:
        """Wait for bytes; return the lines that are complete."""
        piece = os.read(0, 65536)
        self._at_end = not piece
        *lines, self._received = (self._received + piece).split(b"\n")
        return [line.decode() for line in lines]

    def receive_json(self) -> dict[str, Any] | None:
        """Wait for an order in JSON; None if the caller is gone or has changed its mind."""
        lines: list[str] = []
        while not lines:
            if self._at_end:
                return None
            lines = self.receive()
        if not lines[0].startswith("{"):
            return None
        order: dict[str, Any] = json.loads(lines[0])
        return order

    @staticmethod
    def say(message: str) -> None:
        """Send a line; a caller that is gone hears nothing, and the work goes on."""
        with contextlib.suppress(BrokenPipeError):
            os.write(1, message.replace("\n", " ").encode() + b"\n")


class Supervisor:
    """One server's life.

    Parameters
    ----------
    folder : Path
        The server's temporary folder: made here, removed here.
    shm_prefix : str
        What the names of the Python backend's shared-memory files begin with.
    caller : Caller
        Who gives the orders.
    """

    def __init__(self, folder: Path, shm_prefix: str, caller: Caller) -> None:
        self._folder = folder
        self._shm_prefix = shm_prefix
        self._caller = caller
        self._server: subprocess.Popen[bytes] | None = None
        self._deadline: float | None = None
        # Signals become bytes on a pipe, so that one poll waits for everything.
        self._wake, wake_end = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(wake_end, False)
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _nothing)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._asked_to_end)

    def start(self, argv: list[str], env: dict[str, str]) -> int:
        """Start the server in a process group of its own; return its process id."""
        prctl = _prctl()
        prctl(_PR_SET_CHILD_SUBREAPER, 1)  # stubs whose server was killed become our children
        own_id = os.getpid()

        def tie_to_this_process() -> None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != own_id:
                os._exit(1)

        self._server = subprocess.Popen(
            argv,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            process_group=0,
            preexec_fn=tie_to_this_process,  # noqa: PLW1509 - one thread, see above
        )
        return self._server.pid

    def watch(self) -> int:
        """Wait until the server has ended, by itself or because it must; return its exit status."""
        server = self._server
        assert server is not None
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        caller_end = self._caller.end_descriptor()
        if caller_end is not None:
            poll.register(caller_end, select.POLLIN)
        while not self._ended(server.pid):
            # Without a descriptor for the caller's end, look at its id every second: a forked copy
            # of the caller may hold our standard input open when the caller itself is gone.
            limits = [1.0] if caller_end is None else []
            if self._deadline is not None:
                limits.append(max(0.0, self._deadline - time.monotonic()))
            ready = [number for number, _ in poll.poll(min(limits) * 1000 if limits else None)]
            if self._wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake, 4096)
            if 0 in ready:
                self._obey(self._caller.receive())
            if caller_end in ready or not self._caller.is_there:
                poll = select.poll()
                poll.register(self._wake, select.POLLIN)
                self._kill()
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._deadline = None
                self._kill()
        # While the server is not reaped, its id cannot become another process group's.
        self._kill()
        return server.wait()

    def clean_up(self) -> None:
        """Wait until the process group is gone, remove shared memory and the folder."""
        end = time.monotonic() + _REAP_SECONDS
        while time.monotonic() < end:
            try:
                reaped, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if reaped == 0:
                time.sleep(0.005)
        shared_memory = Path("/dev/shm")  # noqa: S108 - where Linux has POSIX shared memory
        if shared_memory.is_dir():
            for path in shared_memory.glob(self._shm_prefix + "*"):
                path.unlink(missing_ok=True)
        shutil.rmtree(self._folder)

    def _obey(self, commands: list[str]) -> None:
        for line in commands:
            command, _, argument = line.partition(" ")
            if command == "stop" and self._server is not None:
                self._server.terminate()
                self._deadline = time.monotonic() + float(argument)
            else:
                self._kill()

    @staticmethod
    def _ended(number: int) -> bool:
        return os.waitid(os.P_PID, number, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _kill(self) -> None:
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)

    def _asked_to_end(self, *_: object) -> None:
        self._kill()


def _nothing(*_: object) -> None:
    """Handle SIGCHLD: its coming is all that matters."""


def _prctl() -> Any:
    """Return the C function, or one that does nothing where there is none (not on Linux)."""
    try:
        return ctypes.CDLL(None, use_errno=True).prctl
    except AttributeError:
        return lambda *_: 0


def main() -> int:
    """Serve one caller."""
    caller = Caller()
    place = caller.receive_json()
    if place is None:
        return 1
    folder = Path(place["folder"])
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        caller.say(f"error {error}")
        return 1
    supervisor = Supervisor(folder, place["shm_prefix"], caller)
    status = 1
    try:
        caller.say("ready")
        command = caller.receive_json()
        if command is not None:
            try:
                number = supervisor.start(command["argv"], command["env"])
            except OSError as error:
                caller.say(f"error {error}")
            else:
                caller.say(f"pid {number}")
                status = supervisor.watch()
    finally:
        supervisor.clean_up()
    caller.say(f"exit {status}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
