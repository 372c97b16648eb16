"""Commands that make environments, and say what they said when they fail."""

from __future__ import annotations

import subprocess
from pathlib import Path

_LIMIT_S = 900


def run(*command: str | Path) -> None:
    ran = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )
    assert ran.returncode == 0, f"{command} ended with {ran.returncode}:\n{ran.stdout}{ran.stderr}"
