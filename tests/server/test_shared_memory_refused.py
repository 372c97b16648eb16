"""Servers that take no shared memory: a stand-in in front of the real one, for Triton 2.51 does."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from triton_fast import Client, FailedPrecondition, Unavailable

pytestmark = pytest.mark.server

BIG = 1 << 18
REGISTER = "/inference.GRPCInferenceService/SystemSharedMemoryRegister"

# As Triton 2.69 says it, and as a server does that cannot open the memory.
DISABLED = (
    grpc.StatusCode.UNIMPLEMENTED,
    "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable.",
)
ELSEWHERE = (grpc.StatusCode.INTERNAL, "Unable to open shared memory region: '/key'")
AWAY = (grpc.StatusCode.UNAVAILABLE, "try again")


class Front(grpc.GenericRpcHandler):
    """Passes every call on to a server, but for registrations, which it refuses."""

    def __init__(self, target, refusal):
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(target, unlimited)
        self._refusal = refusal
        self.methods = []
        self._server = grpc.server(ThreadPoolExecutor(4), options=unlimited)
        self._server.add_generic_rpc_handlers([self])
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def service(self, call):
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._answer(call.method, request, context)
        )

    def _answer(self, method, request, context):
        self.methods.append(method)
        if method == REGISTER and self._refusal is not None:
            context.abort(*self._refusal)
        try:
            return self._channel.unary_unary(method)(request)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())

    def close(self):
        self._server.stop(0).wait()
        self._channel.close()


@pytest.fixture
def front(triton_server):
    fronts = []

    def start(refusal):
        fronts.append(Front(triton_server.grpc_url, refusal))
        return fronts[-1]

    yield start
    for one in fronts:
        one.close()


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [(DISABLED, "--allow-client-shm=true"), (ELSEWHERE, "--ipc=host")],
    ids=["disabled", "elsewhere"],
)
def test_a_server_that_refuses(front, channel, caplog, refusal, advice):
    """One probe, one line in the log, right answers."""
    caplog.set_level(logging.INFO, "triton_fast")
    server = front(refusal)
    with Client(f"127.0.0.1:{server.port}", channel=channel, timeout=60) as client:
        for seed in range(5):
            data = np.full(BIG, seed, np.float32)
            answer = client.infer("identity_cpp", {"INPUT0": data})["OUTPUT0"]
            np.testing.assert_array_equal(answer, data)
        assert client.empty((3, 4), np.int8).shape == (3, 4)
    assert server.methods.count(REGISTER) == 1
    (record,) = caplog.records
    assert advice in record.getMessage()
    assert "over the wire" in record.getMessage()


@pytest.mark.parametrize(
    ("refusal", "advice"),
    [(DISABLED, "--allow-client-shm=true"), (ELSEWHERE, "--ipc=host")],
    ids=["disabled", "elsewhere"],
)
def test_a_server_that_refuses_what_is_required(front, channel, refusal, advice):
    server = front(refusal)
    with Client(
        f"127.0.0.1:{server.port}", channel=channel, shared_memory=True, timeout=60
    ) as client:
        small = np.ones(4, np.float32)
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match=advice):
                client.infer("identity_cpp", {"INPUT0": np.ones(BIG, np.float32)})
            with pytest.raises(FailedPrecondition, match=advice):
                client.empty(10, np.float32)
            assert client.infer("identity_cpp", {"INPUT0": small})["OUTPUT0"].tolist() == [1] * 4


def test_a_server_that_is_away_for_a_moment_is_asked_again(front, channel):
    server = front(AWAY)
    data = np.ones(BIG, np.float32)
    with Client(f"127.0.0.1:{server.port}", channel=channel, timeout=60) as client:
        client.infer("identity_cpp", {"INPUT0": data})
        client.infer("identity_cpp", {"INPUT0": data})
        assert server.methods.count(REGISTER) >= 2
        server._refusal = None
        client.infer("identity_cpp", {"INPUT0": data})
        assert client.shared_memory.registered()
    server._refusal = AWAY
    with (
        Client(f"127.0.0.1:{server.port}", channel=channel, shared_memory=True) as client,
        pytest.raises(Unavailable),
    ):
        client.infer("identity_cpp", {"INPUT0": data})


def test_without_shared_memory_nothing_is_asked(front, channel):
    server = front(None)
    data = np.ones(BIG, np.float32)
    for setting in ({"shared_memory": False}, {"shared_memory_limit": 0}):
        with Client(f"127.0.0.1:{server.port}", channel=channel, timeout=60, **setting) as client:
            for _ in range(2):
                client.infer("identity_cpp", {"INPUT0": data})
            client.empty(10, np.float32)[:] = 1
    assert not any("SharedMemory" in method for method in server.methods)
