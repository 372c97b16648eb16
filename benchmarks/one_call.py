"""One inference in a process of its own: how long it takes and how much memory, as JSON.

python one_call.py CONTENDER GRPC_ADDRESS HTTP_ADDRESS BYTE_SIZE
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

from contenders import Addresses, contender_class, numbers, verify

_KIB = 1024


def _status(field: str) -> int:
    """Return a figure of this process's memory, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    match = re.search(rf"^{field}:\s+(\d+) kB$", text, re.MULTILINE)
    assert match is not None
    return int(match[1]) * _KIB


def main(name: str, grpc_address: str, http_address: str, byte_size: str) -> None:
    server = Addresses(grpc_address, http_address)
    cls = contender_class(name)
    # A small call first: libraries, connections and threads are there before the measured one.
    small = numbers(64, "64 B")
    contender = cls(server, small)
    verify(contender, small, contender.call())
    contender.close()

    case = numbers(int(byte_size), "large")
    contender = cls(server, case)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again
    before = _status("VmRSS")
    cpu_start = time.process_time()
    start = time.perf_counter()
    received = contender.call()
    end = time.perf_counter()
    cpu_seconds = time.process_time() - cpu_start
    peak = _status("VmHWM") - before
    verify(contender, case, received)
    contender.close()
    json.dump({"start": start, "end": end, "peak": peak, "cpu_seconds": cpu_seconds}, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
