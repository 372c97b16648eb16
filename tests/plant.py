"""Small faults, planted one after the other in a copy of the package: the tests must find each.

Usage: ``python tests/plant.py [NAME ...]``, with the Python of an environment that has the package
and what its tests need; without names, all faults are planted. Exits with 1 if a fault was not
found. pytest collects nothing here.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Fault:
    """A slip in one module of the package, and the tests that are quick to find it."""

    module: str
    what: str
    right: str
    wrong: str
    tests: str

    @property
    def name(self) -> str:
        return self.module.replace("/", ".")


FAULTS = [
    Fault(
        "channels/factory",
        "a greenlet that waits has the others wait",
        "    return are_patched()",
        "    return False",
        "tests/server/test_gevent.py::test_greenlets_wait_side_by_side",
    ),
    Fault(
        "channels/lifecycle",
        "one thing that fails at a fork takes the others' turns",
        "                        failures.append(error)",
        "                        raise",
        "tests/unit/test_lifecycle.py",
    ),
    Fault(
        "channels/lifecycle",
        "a process that multiprocessing has made ends like any other",
        "            util.Finalize(None, self.run, (_AT_EXIT,), exitpriority=0)\n",
        "",
        "tests/unit/test_lifecycle.py",
    ),
    Fault(
        "streaming/demux",
        "a server that does not say whether more comes is waited for",
        "result.parameters.get(_FINAL, bool(error) or not pending.alone)",
        "result.parameters.get(_FINAL, False)",
        "tests/unit/test_demux.py",
    ),
    Fault(
        "streaming/stream_state",
        "a stream goes on after a request of which a part may have been sent",
        "if isinstance(error, DeadlineExceeded):",
        "if isinstance(error, ResourceExhausted):",
        "tests/unit/test_stream_turns.py",
    ),
    Fault(
        "streaming/stream_state",
        "patience does not begin anew while others read",
        "if self.reading or room:\n            patience = None",
        "if self.reading or room:\n            pass",
        "tests/unit/test_stream_turns.py",
    ),
    Fault(
        "streaming/sequence_requests",
        "each request starts the sequence until one was answered",
        "starts = not self._answered and not self.made",
        "starts = not self._answered",
        "tests/unit/test_sequence_requests.py",
    ),
    Fault(
        "client/admission",
        "who gives up leaves those waiting that come after it",
        "self._waiting.remove(entry)\n            self._let_in()",
        "self._waiting.remove(entry)",
        "tests/unit/test_admission.py",
    ),
    Fault(
        "client/call_settings",
        "a call that passes None on has no limit",
        'self._timeout if timeout is None else seconds(timeout, "timeout")',
        'seconds(timeout, "timeout")',
        "tests/unit/test_call_timeouts.py",
    ),
    Fault(
        "options/headers",
        "headers that are none are shown",
        "got {type(headers).__name__}",
        "got {headers!r}",
        "tests/unit/test_secrets.py",
    ),
    Fault(
        "options/environment",
        "TLS that is switched off is on if a server's name is set",
        "if wanted is False or not given:",
        "if not given:",
        "tests/unit/test_environment.py",
    ),
    Fault(
        "management/health_check",
        "each question has a deadline of its own",
        "options = replace(options, deadline_ns=deadline_ns)\n        ",
        "",
        "tests/unit/test_health_rules.py",
    ),
    Fault(
        "channels/native/connection_async",
        "a connection that was closed has its turn all the same",
        "if self._descriptor >= 0:\n            self._in_turn(step)",
        "if step is not None:\n            self._in_turn(step)",
        "tests/unit/test_loop_budget.py",
    ),
    Fault(
        "channels/compression",
        "an answer may be as dense as it likes",
        "min(max(_ANY_RATIO_BYTES, _MOST_RATIO * len(message)), _MOST_BYTES)",
        "_MOST_BYTES",
        "tests/unit/test_compression.py::test_bounds",
    ),
    Fault(
        "channels/compression_async",
        "what nobody waits for is decompressed to its end",
        "check.stop()  # the thread may still be at it",
        "pass",
        "tests/adversity/test_bombs.py::test_a_task_is_cancelled_and_its_loop_goes_on_meanwhile",
    ),
    Fault(
        "channels/grpcio/common",
        "grpcio decompresses what comes",
        '    "grpc.per_message_decompression": 0,\n',
        "",
        "tests/adversity/test_bombs.py::test_a_bomb",
    ),
    Fault(
        "shared_memory/placement",
        "slots that the server may still write to are leased again",
        "self._pool.quarantine(placement.slots)\n            return False",
        "return False",
        "tests/server/test_shared_memory.py::test_a_call_that_is_given_up_never_shares_its_slots",
    ),
    Fault(
        "shared_memory/pool",
        "what the server has not let go of does not count",
        "return live + self._given_up.byte_size",
        "return live",
        "tests/unit/test_slot_pool.py",
    ),
    Fault(
        "shared_memory/several_servers",
        "a region that was unknown, and is known now, tells nothing",
        "if shown & missing or lost & known:",
        "if shown & missing:",
        "tests/unit/test_several_servers.py",
    ),
    Fault(
        "shared_memory/several_servers",
        "several servers are told of regions on one connection",
        "with registry.afresh() as one:",
        "for one in [registry]:",
        "tests/unit/test_several_servers.py",
    ),
    Fault(
        "shared_memory/pool",
        "regions that calls are on are taken back from several servers",
        "if region.name in busy:\n                continue",
        "",
        "tests/unit/test_several_servers.py",
    ),
    Fault(
        "shared_memory/placement",
        "a model with state may run twice",
        'answer is None or "sequence_id" in (prepared.settings["parameters"] or ())',
        "answer is None",
        "tests/unit/test_placement.py",
    ),
    Fault(
        "shared_memory/ownership",
        "files of other namespaces are taken for orphans",
        'found is None or int(found["space"]) != _namespace()',
        "found is None",
        "tests/unit/test_ownership.py",
    ),
    Fault(
        "management/server",
        "a server that refuses to say is taken for one that is not there",
        "isinstance(error, Unavailable) and not is_restricted(error)",
        "isinstance(error, Unavailable)",
        "tests/unit/test_management_questions.py",
    ),
    Fault(
        "inference/result",
        "an output that is larger than its slot is read",
        "if isinstance(room, int) and needed > room:",
        "if room is None:",
        "tests/unit/test_result.py",
    ),
    Fault(
        "client/split",
        "a last piece of one row is lost",
        "for first in range(0, rows, most)]",
        "for first in range(0, rows - 1, most)]",
        "tests/server/test_split.py::test_any_number_of_rows",
    ),
]


def fail(tests: list[str], package: Path) -> bool:
    """Run tests with a copy of the package; say whether one fails."""
    # A fault may make a test wait for ever; and bytecode is told by its source's second only.
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--timeout=120"]
    environment = {"PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=ROOT,
        env={**os.environ, "PYTHONSAFEPATH": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    # 1: tests failed. All else, as 4 for tests that are not there, says nothing of them.
    if done.returncode not in {0, 1}:
        sys.exit(f"pytest {tests} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.returncode == 1


def found(fault: Fault, package: Path) -> bool:
    """Plant a fault in a copy of the package, and say whether its tests fail."""
    path = package / f"{fault.module}.py"
    text = path.read_text("utf-8")
    if text.count(fault.right) != 1:
        sys.exit(f"{fault.module}.py has {fault.right!r} {text.count(fault.right)} times, not once")
    path.write_text(text.replace(fault.right, fault.wrong), "utf-8")
    try:
        return fail([fault.tests], package)
    finally:
        path.write_text(text, "utf-8")


def main() -> int:
    installed = importlib.util.find_spec("triton_fast")
    assert installed is not None
    assert installed.origin is not None
    unknown = set(sys.argv[1:]) - {fault.name for fault in FAULTS}
    if unknown:
        sys.exit(f"no such fault: {', '.join(sorted(unknown))}")
    wanted = [fault for fault in FAULTS if fault.name in sys.argv[1:] or not sys.argv[1:]]
    survived = 0
    with tempfile.TemporaryDirectory(prefix="triton_fast_planted_") as folder:
        package = Path(folder) / "triton_fast"
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(installed.origin).parent, package, ignore=unwanted)
        if fail(sorted({fault.tests for fault in wanted}), package):
            sys.exit("these tests fail without any fault: they say nothing of those planted here")
        for fault in wanted:
            began = time.monotonic()
            caught = found(fault, package)
            survived += not caught
            verdict = "caught" if caught else "NOT CAUGHT"
            seconds = time.monotonic() - began
            print(f"{verdict:10}  {fault.name:12} {fault.what} ({seconds:.0f} s)", flush=True)
    print(f"{len(wanted) - survived} of {len(wanted)} planted faults were caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
