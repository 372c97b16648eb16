"""Runs the tests again and again, in random order, and says what failed how often.

    steady.py [--runs N] [--hog] [--core FOLDER] [--no-python] [-- PYTEST_ARGUMENT...]

`make steady` calls it. With ``--hog`` an endless loop for each core runs beside the tests.
``--core`` names the build folder of the C++ core's tests, which each run begins with. What each run
printed is in build/steady/run-N/. The exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Iterator

RESULTS = Path(__file__).resolve().parents[1] / "build" / "steady"
# A run that takes so long hangs, for whatever reason; the tests have limits of their own.
RUN_SECONDS = 5400


@dataclass
class Run:
    """What came of a run; both programs write JUnit's XML."""

    number: int
    seed: int
    ran: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)
    died: int = 0
    seconds: float = 0.0

    def read(self, report: Path, program: str, status: int) -> None:
        """Add what a report says, and a failure of which it does not say whose it was."""
        before = len(self.failed)
        cases = ET.parse(report).findall(".//testcase") if report.is_file() else []
        for case in cases:
            failed = case.find("failure") is not None or case.find("error") is not None
            skipped = case.find("skipped") is not None or case.get("status") == "disabled"
            if skipped and not failed:  # what is skipped may fail in its teardown
                self.skipped += 1
                continue
            self.ran += 1
            self.died += sum(found.get("name") == "server died" for found in case.iter("property"))
            if failed:
                self.failed.append(
                    "::".join(filter(None, (case.get("classname"), case.get("name"))))
                )
        if status != 0 and len(self.failed) == before:
            self.failed.append(f"{program} itself (exit status {status})")


@contextlib.contextmanager
def hogs(count: int) -> Iterator[None]:
    """Keep that many cores busy."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def status_of(command: list[str], log: IO[bytes]) -> int:
    """Run a program and return its exit status; nothing of it is left, however this ends."""
    program = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    try:
        return program.wait(RUN_SECONDS)
    except subprocess.TimeoutExpired:
        return 124  # as of timeout(1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()


def run_once(number: int, options: argparse.Namespace) -> Run:
    """Run the core's tests and pytest's, in an order that the seed gives."""
    run = Run(number, random.SystemRandom().randrange(2**32))
    folder = RESULTS / f"run-{number}"
    folder.mkdir(parents=True)
    reports = {"ctest": folder / "core.xml", "pytest": folder / "pytest.xml"}
    commands = {}
    if options.core:
        commands["ctest"] = [
            *(options.ctest, "--test-dir", options.core, "--output-junit", reports["ctest"]),
            *("--schedule-random", "--parallel=2", "--output-on-failure", "--no-tests=error"),
        ]
    if options.python:
        commands["pytest"] = [
            *(sys.executable, "-m", "pytest", f"--randomly-seed={run.seed}"),
            *(f"--junit-xml={reports['pytest']}", *options.arguments),
        ]
    started = time.monotonic()
    for program, command in commands.items():
        with (folder / f"{program}.log").open("wb") as log:
            status = status_of(command, log)
        run.read(reports[program], program, status)
    run.seconds = time.monotonic() - started
    return run


def table(runs: list[Run]) -> str:
    """Say what failed how often, and with which seeds."""
    seeds = collections.defaultdict(list)
    for run in runs:
        for name in run.failed:
            seeds[name].append(run.seed)
    lines = [f"{'failed':>8}  test (seeds)"]
    for name, found in sorted(seeds.items(), key=lambda item: -len(item[1])):
        some = ", ".join(str(seed) for seed in found[:5])
        lines.append(f"{len(found):>4}/{len(runs):<3}  {name} ({some})")
    if not seeds:
        lines.append(f"{0:>4}/{len(runs):<3}  none")
    return "\n".join(lines)


def main() -> int:
    """Run them all; stop early when interrupted, and say what was seen until then."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--hog", action="store_true")
    parser.add_argument("--core", type=Path)
    parser.add_argument("--ctest", default="ctest")
    parser.add_argument("--no-python", dest="python", action="store_false")
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    shutil.rmtree(RESULTS, ignore_errors=True)
    runs: list[Run] = []
    beside = f"{os.cpu_count()} endless loops" if options.hog else "nothing"
    print(f"{options.runs} runs, {beside} beside them; their output: {RESULTS}", flush=True)
    print("  run        seed  seconds  passed  failed  skipped  servers that died", flush=True)
    with contextlib.suppress(KeyboardInterrupt), hogs((os.cpu_count() or 1) * options.hog):
        for number in range(1, options.runs + 1):
            run = run_once(number, options)
            runs.append(run)
            print(
                f"{number:5}  {run.seed:10}  {run.seconds:7.0f}  {run.ran - len(run.failed):6}  "
                f"{len(run.failed):6}  {run.skipped:7}  {run.died:17}",
                flush=True,
            )
    if not runs:
        print("not one run was finished")
        return 1
    print(table(runs))
    total = sum(run.ran for run in runs)
    print(
        f"{len(runs)} runs, {total} tests, {sum(len(run.failed) for run in runs)} failed; "
        f"median {median(run.seconds for run in runs):.0f} s, "
        f"the longest {max(run.seconds for run in runs):.0f} s; "
        f"servers that died: {sum(run.died for run in runs)}"
    )
    return 1 if any(run.failed for run in runs) or len(runs) < options.runs else 0


if __name__ == "__main__":
    sys.exit(main())
