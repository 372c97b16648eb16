"""Against Tritons of earlier years, out of earlier wheels of nvidia-pytriton."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from commands import run
from support.model_calls import outs, square
from support.waiting import until

from triton_fast import AsyncClient, Client, DeadlineExceeded
from triton_fast.testing import TritonServer

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1000)]

# By the wheel that has it.
VERSIONS = {"0.1.5": "2.28.0", "0.2.5": "2.33.0", "0.5.10": "2.48.0"}
MODELS = ["square_int32", "identity_cpp", "late", "cancellations"]
MIB = 1 << 18  # of FP32

# Our backends ask for what these Tritons do not have, and do without here.
STUBS = """
void *TRITONBACKEND_ResponseSetDoubleParameter() { return 0; }
void *TRITONBACKEND_ResponseFactoryIsCancelled() { return 0; }
void *TRITONBACKEND_RequestIsCancelled() { return 0; }
void *TRITONBACKEND_RequestParameterCount() { return 0; }
void *TRITONBACKEND_RequestParameter() { return 0; }
"""
PROGRAM = """#!/bin/bash
kept=()
for one in "$@"; do
  case "$one" in {unknown}) ;; *) kept+=("$one") ;; esac
done
LD_PRELOAD={stubs} exec {program} "${{kept[@]}}"
"""


def installed(matrix, wheel):
    """Return the program of an old server, which leaves out the options that it does not know."""
    folder = matrix / f"pytriton-{wheel}"
    shim = folder / "pytriton" / "tritonserver" / "bin" / "old_tritonserver"
    if not shim.exists():
        shutil.rmtree(folder, ignore_errors=True)
        requirement = f"nvidia-pytriton=={wheel}"
        run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, requirement)
        [archive] = folder.glob("*.whl")
        zipfile.ZipFile(archive).extractall(folder)
        program = shim.with_name("tritonserver")
        program.chmod(0o755)
        source, stubs = folder / "stubs.c", folder / "stubs.so"
        source.write_text(STUBS)
        run("cc", "-shared", "-fPIC", "-o", stubs, source)
        told = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
        known = told.stdout + told.stderr
        unknown = "--metrics-address=*" if "metrics-address" not in known else "--none"
        shim.write_text(PROGRAM.format(unknown=unknown, stubs=stubs, program=program))
        shim.chmod(0o755)
    return shim


@pytest.fixture(scope="module", params=VERSIONS)
def old_server(matrix, request):
    with TritonServer(models=MODELS, executable=installed(matrix, request.param)) as server:
        with Client(server.grpc_url, timeout=30) as client:
            assert client.server_metadata().version == VERSIONS[request.param]
        yield server


def test_all_answers_of_streams(old_server, channel):
    """Of servers that mark the last one, that do not, and that refuse to be asked for it."""
    with Client(old_server.grpc_url, channel=channel, timeout=30) as client:
        for count in (3, 1, 2):
            assert outs(client.stream("square_int32", square(count))) == [count] * count

    async def ask():
        async with AsyncClient(old_server.grpc_url, channel=channel, timeout=30) as client:
            return [
                [int(result["OUT"][0]) async for result in client.stream("square_int32", asked)]
                for asked in (square(3), square(2))
            ]

    assert asyncio.run(ask()) == [[3, 3, 3], [2, 2]]


def test_no_region_goes_that_a_call_is_at(old_server, channel):
    """These die of that, with signal 11."""
    late = {"INPUT0": np.full(MIB, 13, np.float32), "LATE": np.zeros(1, np.float32)}
    for _ in range(3):
        with Client(old_server.grpc_url, channel=channel, shared_memory=True, timeout=60) as client:
            client.infer("late", late)  # which tells how large its output is
            with pytest.raises(DeadlineExceeded):
                client.infer("late", {**late, "LATE": np.array([2], np.float32)}, timeout=0.5)

    with Client(old_server.grpc_url, channel=channel, shared_memory=False, timeout=60) as witness:

        def done():
            options = witness._endpoint.options("ModelStatistics")
            told = witness._endpoint.exchange("ModelStatistics", {"name": "late"}, options)
            counts = told.model_stats[0].inference_stats
            return (counts.success.count + counts.fail.count) % 6 == 0

        until(done, seconds=60)
        assert witness.is_live()
        np.testing.assert_array_equal(witness.infer("late", late)["OUTPUT0"], late["INPUT0"])
