"""What the system says of a server's threads, and the server of requests that wait."""

from __future__ import annotations

import contextlib
import re
import urllib.request
from pathlib import Path


def of_threads(server, name) -> list[str]:
    """Return the contents of a file of each thread; man 5 proc. Threads may end meanwhile."""
    found = []
    for file in Path(f"/proc/{server.pid}/task").glob(f"*/{name}"):
        with contextlib.suppress(OSError):
            found.append(file.read_text())
    return found


def waiting(server, model) -> int:
    """Return how many requests the server has got that the model has not begun with."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    pattern = rf'^nv_inference_pending_request_count{{model="{model}",.*}} (\d+)$'
    (count,) = re.findall(pattern, text, re.MULTILINE)
    return int(count)
