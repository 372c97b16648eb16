"""Scripts that tests run in an interpreter of their own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap


def run_python(
    script: str, *arguments: str, timeout: float = 60, quiet: bool = False, **environment: str
):
    """Run a script that can import what tests can; return its output, or fail with it."""
    # Python 3.12 and later warn of every fork with threads; some of these scripts are about that.
    warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    process = subprocess.Popen(
        [sys.executable, *warnings, "-c", textwrap.dedent(script), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
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
    assert not quiet or complaints == ""
    return output
