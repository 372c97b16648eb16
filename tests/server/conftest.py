"""The servers that these tests share: each is started once a session, where it is needed."""

from __future__ import annotations

import pytest
from served_models import HASTY, IN_PYTHON, PATIENT, SERVED
from support.model_calls import outs, repeat, reset

from triton_fast import Client
from triton_fast.testing import write_test_models


@pytest.fixture
def server(shared_server):
    """All test models but those in Python."""
    return shared_server(models=SERVED)


@pytest.fixture
def python_server(shared_server):
    """Those in Python too, which are a process each. ``add_sub_python`` is for its own tests."""
    return shared_server(models=[*SERVED, *IN_PYTHON])


@pytest.fixture(scope="session")
def sequence_models(tmp_path_factory):
    """Models of sequences that may be idle for other times than the 3 s that they have else."""
    folder = write_test_models(tmp_path_factory.mktemp("sequences"), [PATIENT, HASTY])
    for model, microseconds in ((PATIENT, 60_000_000), (HASTY, 500_000)):
        config = folder / model / "config.pbtxt"
        text = config.read_text()
        assert text.count("max_sequence_idle_microseconds: 3000000\n") == 1
        config.write_text(text.replace(": 3000000\n", f": {microseconds}\n"))
    return folder


@pytest.fixture
def sequence_server(shared_server, sequence_models):
    """Serve sequences that keep their places for a minute, and others that lose theirs at once."""
    return shared_server(
        model_repository=str(sequence_models), extra_args=["--disable-auto-complete-config"]
    )


@pytest.fixture(scope="module")
def client(triton_server, channel):
    """One of the server that all tests share."""
    with Client(triton_server.grpc_url, channel=channel, timeout=60) as client:
        yield client


@pytest.fixture
def stream_client(server, channel):
    """One for streams: the models have nothing to do before, and it is usable afterwards."""
    with Client(server.grpc_url, channel=channel, timeout=90) as client:
        reset(client)
        yield client
        assert outs(client.stream("repeat_int32", repeat([1, 2]))) == [1, 2]
