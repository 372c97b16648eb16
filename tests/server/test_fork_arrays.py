"""Results and forks: what is on shared memory is each side's own after a fork, and stays so."""

from __future__ import annotations

from pathlib import Path

import pytest
from fork_array_programs import PROGRAMS
from support.interpreter import run_python

pytestmark = pytest.mark.server

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[3])
from fork_array_programs import run
run(*sys.argv[1:3])
"""


@pytest.mark.parametrize("name", PROGRAMS)
def test_arrays_after_a_fork(shared_server, name):
    url = shared_server(models=["identity_cpp", "slow"]).grpc_url
    said = run_python(SCRIPT, name, url, str(Path(__file__).parent), timeout=100)
    assert said.endswith("done\n"), said
