"""Runs the benchmarks and writes the report.

python benchmarks [--output results] [--smoke] [-k EXPRESSION]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import pytest
import report

HERE = Path(__file__).parent
# In the order of the report.
FILES = (
    "bench_infer.py",
    "bench_threads.py",
    "bench_tasks.py",
    "bench_ticker.py",
    "bench_streams.py",
    "bench_strings.py",
    "bench_memory.py",
    "bench_import.py",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder to write to")
    parser.add_argument("--smoke", action="store_true", help="measure next to nothing, quickly")
    parser.add_argument("-k", default="", help="which benchmarks, as pytest's -k")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    json_path = options.output / "bench.json"
    json_path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as storage:
        status = pytest.main(
            [
                *(str(HERE / name) for name in FILES),
                "--override-ini=python_files=bench_*.py",
                "--override-ini=python_functions=bench_*",
                "--override-ini=addopts=-ra --strict-markers --strict-config",
                "--override-ini=timeout=600",
                # Said when every benchmark has failed; as an error it would hide why.
                "-Wdefault::pytest_benchmark.logger.PytestBenchmarkWarning",
                "-p",
                "no:cacheprovider",
                # In the file's order: what one leaves in the allocator is the next one's start.
                "-p",
                "no:randomly",
                f"--benchmark-json={json_path}",
                f"--benchmark-storage=file://{storage}",
                "--benchmark-quiet",
                *(["--smoke"] if options.smoke else []),
                *(["-k", options.k] if options.k else []),
            ]
        )
    if json_path.exists():
        report.write(json_path)
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
