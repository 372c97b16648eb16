"""Scripts that tests run in an interpreter of their own, where they can import what tests can."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap

# Python 3.12 and later warn of every fork with threads; some of these scripts are about that.
STRICT = ("-W", "error", "-W", "ignore:This process:DeprecationWarning")


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a program that can import what tests can."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **variables}


def run_python(
    script: str,
    *arguments: str,
    timeout: float = 60,
    quiet: bool = False,
    options: tuple[str, ...] = STRICT,
    **variables: str,
) -> str:
    """Run a script; return its output, or fail with it. If quiet, it must complain of nothing."""
    output, complaints = run_and_hear(
        script, *arguments, timeout=timeout, options=options, **variables
    )
    assert not quiet or complaints == "", complaints
    return output


def run_and_hear(
    script: str,
    *arguments: str,
    timeout: float = 60,
    options: tuple[str, ...] = STRICT,
    **variables: str,
) -> tuple[str, str]:
    """Run a script, which must end well; return its output, and what it complained of."""
    command = (*options, "-c", textwrap.dedent(script), *arguments)
    return run_interpreter(*command, timeout=timeout, **variables)


def run_interpreter(*arguments: str, timeout: float = 60, **variables: str) -> tuple[str, str]:
    """Run an interpreter with any arguments; return its output, and what it complained of."""
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, complaints = process.communicate(timeout=timeout)
    finally:
        # And with it the children that it forked, which hang where a test fails.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == 0, output + complaints
    return output, complaints
