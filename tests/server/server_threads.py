"""What the system says of a server's threads."""

from __future__ import annotations

import contextlib
from pathlib import Path


def of_threads(server, name) -> list[str]:
    """Return the contents of a file of each thread; man 5 proc. Threads may end meanwhile."""
    found = []
    for file in Path(f"/proc/{server.pid}/task").glob(f"*/{name}"):
        with contextlib.suppress(OSError):
            found.append(file.read_text())
    return found
