"""``.ci/run``: the exit status and the last line say what happened. A make of our own stands in."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPORT = """<?xml version="1.0" encoding="utf-8"?><testsuites name="pytest tests"><testsuite \
name="pytest" errors="{errors}" failures="{failures}" skipped="{skipped}" tests="{tests}" \
time="1.5"><testcase classname="a" name="b" time="0.1" /></testsuite></testsuites>"""


def run(folder: Path, status: int, **counts: int) -> tuple[int, str]:
    """Run .ci/run with a make that leaves a report with these counts (or none) and this status."""
    (folder / ".ci").mkdir()
    shutil.copy2(ROOT / ".ci" / "run", folder / ".ci" / "run")
    report = folder / "report.xml"
    if counts:
        zeros = dict.fromkeys(("errors", "failures", "skipped", "tests"), 0)
        report.write_text(REPORT.format(**zeros | counts))
    programs = folder / "bin"
    programs.mkdir()
    make = programs / "make"
    make.write_text(f"""#!/bin/sh
echo "make: $*, $CI, $TRITON_FAST_REQUIRE_SERVER"
[ -z "$(cat)" ] || exit 99
[ ! -e {report} ] || cp {report} build/ci/pytest.xml
exit {status}
""")
    make.chmod(0o755)
    result = subprocess.run(
        [folder / ".ci" / "run"],
        cwd="/",
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        input="what a terminal would say",
        capture_output=True,
        text=True,
        check=False,
    )
    assert not result.stderr
    lines = result.stdout.splitlines()
    goals = "check-planted planted check-benchmarks test"
    variables = "TESTS=not soak and not matrix"
    arguments = "PYTEST_ARGS=--junit-xml=build/ci/pytest.xml"
    assert lines[0] == f"make: --keep-going {goals} {variables} {arguments}, true, 1"
    return result.returncode, lines[-1]


@pytest.mark.parametrize(
    ("make", "counts", "expected"),
    [
        (0, {"tests": 12, "skipped": 2}, (0, "10 passed, 0 failed")),
        (2, {"tests": 12, "failures": 2, "errors": 1}, (2, "9 passed, 3 failed")),
        # lint, the core's tests, fuzzing
        (2, {"tests": 12}, (2, "12 passed, 1 failed")),
        # set-up
        (2, {}, (2, "0 passed, 1 failed")),
        # a make that swallows a failure, or runs nothing
        (0, {"tests": 12, "failures": 1}, (1, "11 passed, 2 failed")),
        (0, {}, (1, "0 passed, 1 failed")),
        (0, {"tests": 1, "skipped": 1}, (1, "0 passed, 1 failed")),
    ],
)
def test_status_and_last_line(tmp_path, make, counts, expected):
    assert run(tmp_path, make, **counts) == expected


def test_a_report_of_an_earlier_run_does_not_count(tmp_path):
    earlier = tmp_path / "build" / "ci" / "pytest.xml"
    earlier.parent.mkdir(parents=True)
    earlier.write_text(REPORT.format(errors=0, failures=0, skipped=0, tests=12))
    assert run(tmp_path, 0) == (1, "0 passed, 1 failed")
