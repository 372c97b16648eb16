"""The client through the proxies that people put in front of Triton, over both channels."""

from __future__ import annotations

import asyncio
import base64
import threading
import time

import numpy as np
import pytest
from peer_calls import SLACK, Caller, give_up_by_deadline, told
from support.model_calls import assert_usable, slow

from triton_fast import (
    AsyncClient,
    Client,
    DeadlineExceeded,
    Internal,
    ServerError,
    TritonFastError,
    Unavailable,
    Unknown,
)

pytestmark = pytest.mark.server


def tensor(byte_size, seed=0):
    values = np.random.default_rng(seed).random(byte_size // 4, np.float32)
    return {"INPUT0": values}


@pytest.fixture(scope="module")
def proxy(start_proxy, program, triton_server):
    return start_proxy(program, triton_server.grpc_url)


@pytest.fixture
def proxied_client(proxy, channel):
    with Client(proxy.target, shared_memory=False, channel=channel, timeout=60) as client:
        yield client
        assert_usable(client)


# What is carried ----------------------------------------------------------------------------------


@pytest.mark.parametrize("byte_size", [0, 64, 602_112, 8 << 20])
def test_tensors_there_and_back(proxied_client, byte_size):
    inputs = tensor(byte_size)
    result = proxied_client.infer("identity_fp32", inputs)["OUTPUT0"]
    assert result.tobytes() == inputs["INPUT0"].tobytes()
    futures = [
        proxied_client.submit("identity_fp32", tensor(byte_size, seed)) for seed in range(1, 3)
    ]
    for seed, future in enumerate(futures, 1):
        expected = tensor(byte_size, seed)["INPUT0"]
        assert future.result(60)["OUTPUT0"].tobytes() == expected.tobytes()


def test_straight_into_an_array(proxied_client):
    inputs = tensor(602_112)
    out = np.zeros_like(inputs["INPUT0"])
    assert proxied_client.infer("identity_fp32", inputs, out={"OUTPUT0": out})["OUTPUT0"] is out
    assert out.tobytes() == inputs["INPUT0"].tobytes()


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compressed(proxied_client, compression):
    values = np.zeros(1 << 20, np.float32)
    values[::1000] = np.arange(len(values[::1000]))
    result = proxied_client.infer("identity_fp32", {"INPUT0": values}, compression=compression)
    assert result["OUTPUT0"].tobytes() == values.tobytes()


def test_what_the_server_is_and_has(proxied_client):
    assert proxied_client.is_live()
    assert proxied_client.is_ready()
    assert proxied_client.server_metadata().name == "triton"
    assert proxied_client.is_model_ready("identity_fp32")
    assert not proxied_client.is_model_ready("nope")
    assert proxied_client.model_metadata("identity_fp32").inputs[0].name == "INPUT0"


@pytest.mark.parametrize("message", ["it broke", "größer als 5 €: 𝄞", "50 % of %41\nof it", " x "])
def test_the_servers_own_words(proxied_client, message):
    for _ in range(2):  # the second on the same connection
        with pytest.raises(Internal) as caught:
            proxied_client.infer("failing", {"FAIL_MESSAGE": [message]})
        assert caught.value.message == message


def test_an_error_too_long_for_the_proxy(proxied_client):
    """They hold headers in buffers of a few pages, and refuse more in their own ways."""
    # HAProxy says of what the server has answered that it was not seen, each time that it is asked.
    with pytest.raises((Unavailable, Internal, DeadlineExceeded)) as caught:
        proxied_client.infer("failing", {"FAIL_MESSAGE": ["y" * 300_000]}, timeout=3)
    assert len(caught.value.message) < 1000
    assert_usable(proxied_client)


def test_many_threads(proxied_client):
    wrong = []

    def work(number):
        try:
            for turn in range(30):
                inputs = tensor(602_112 if turn % 10 == 0 else 64, 1000 * number + turn)
                result = proxied_client.infer("identity_fp32", inputs)["OUTPUT0"]
                if result.tobytes() != inputs["INPUT0"].tobytes():
                    wrong.append((number, turn))
        except TritonFastError as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_a_server_of_another_make_is_told(start_proxy, program, start_server, channel):
    server = start_server()
    proxy = start_proxy(program, server.target)
    call = Caller(proxy.target, channel)
    sent = {"x-text": "a b", "x-all-bin": bytes(range(256)), "x-long": "l" * 3000}
    received = told(call, headers=sent, timeout=20)
    headers = {
        name: base64.b64decode(value["base64"]) if isinstance(value, dict) else value
        for name, value in received["headers"]
    }
    assert {name: headers[name] for name in sent} == sent
    assert 20 - SLACK < received["time_left"] <= 20
    for compression in (None, "gzip"):
        message = bytes(range(256)) * 4000
        assert call("Echo", message, compression=compression) == message
    give_up_by_deadline(call)
    call.channel.close()
    proxy.stop()


# How it ends --------------------------------------------------------------------------------------


def test_deadlines(proxied_client):
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            proxied_client.infer("slow", slow(20), timeout=0.2)
        assert 0.19 < time.monotonic() - started < SLACK
        assert isinstance(
            proxied_client.submit("slow", slow(20), timeout=0.1).exception(60), TimeoutError
        )


def test_cancelling(proxied_client):
    started = time.monotonic()
    for _ in range(10):  # more than the model's instances: they must be let go
        future = proxied_client.submit("slow", slow(20))
        time.sleep(0.02)
        assert future.cancel()
    assert proxied_client.infer("slow", slow(0.01))["OUTPUT0"].tolist() == [1]
    assert time.monotonic() - started < 15


def test_a_server_that_is_not_there_and_comes(start_proxy, program, mortal, channel):
    mortal.start()
    proxy = start_proxy(program, mortal.grpc_url)
    with Client(proxy.target, shared_memory=False, channel=channel, timeout=60) as client:
        assert_usable(client)
        killer = threading.Timer(0.3, mortal.kill)
        killer.start()
        started = time.monotonic()
        with pytest.raises(ServerError) as caught:
            client.infer("slow", slow(50))
        # A connection cut in mid-call is HAProxy's and nginx's 502, and Envoy's own status.
        assert isinstance(caught.value, Unavailable)
        killer.join()
        for _ in range(3):
            with pytest.raises(Unavailable):
                client.infer("identity_fp32", tensor(602_112))
        assert not client.is_live()
        assert time.monotonic() - started < 30
        mortal.start()
        end = time.monotonic() + 60
        while not client.is_ready():
            assert time.monotonic() < end
            time.sleep(0.05)
        assert_usable(client)
    proxy.stop()


def test_a_server_that_is_slower_than_the_proxy_likes(start_proxy, program, triton_server, channel):
    proxy = start_proxy(program, triton_server.grpc_url, answer_seconds=1)
    with Client(proxy.target, shared_memory=False, channel=channel, timeout=60) as client:
        started = time.monotonic()
        with pytest.raises(Unavailable, match=r"504|timeout"):
            client.infer("slow", slow(50))
        assert time.monotonic() - started < 1 + SLACK
        assert_usable(client)
    proxy.stop()


def test_a_request_too_large_for_nginx(start_proxy, triton_server, channel):
    """It answers 413 in the middle of the request, which is the default at 1 MiB."""
    proxy = start_proxy("nginx", triton_server.grpc_url, largest_request=1 << 20)
    with Client(proxy.target, shared_memory=False, channel=channel, timeout=30) as client:
        for byte_size in (1_048_000, 2 << 20, 16 << 20):
            inputs = tensor(byte_size)
            if byte_size < 1 << 20:
                result = client.infer("identity_fp32", inputs)["OUTPUT0"]
                assert result.tobytes() == inputs["INPUT0"].tobytes()
                continue
            with pytest.raises(Unknown, match="413"):
                client.infer("identity_fp32", inputs)
            assert_usable(client)
    proxy.stop()


@pytest.mark.parametrize("name", ["triton.example", "triton.example:8001"])
def test_a_proxy_that_routes_by_name(start_proxy, triton_server, channel, name):
    proxy = start_proxy("nginx", triton_server.grpc_url, name=name)
    options = {"shared_memory": False, "channel": channel, "timeout": 30}
    with Client(proxy.target, authority=name, **options) as client:
        assert_usable(client)
        assert len(list(client.stream("identity_fp32", tensor(64)))) == 1

    async def ask():
        async with AsyncClient(proxy.target, authority=name, **options) as client:
            return await client.is_ready()

    assert asyncio.run(ask())
    with Client(proxy.target, **options) as client, pytest.raises(ServerError, match="404"):
        client.server_metadata()
    proxy.stop()


# Connections that the proxy closes ----------------------------------------------------------------
#
# A proxy says GOAWAY and which request was the last; one that came later is safe to send again.
# grpcio reports some of those as Unavailable, so these are the native channel's.


class Traffic:
    """Threads that call without a pause, or with one, and keep what went wrong."""

    def __init__(self, client, threads, pause=lambda: 0.0):
        self.client = client
        self.calls = 0
        self.failures = []
        self.pause = pause
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(n,)) for n in range(threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def go_on(self, calls):
        """Return when so many more calls have ended."""
        end = time.monotonic() + 60
        calls += self.calls
        while self.calls < calls:
            assert time.monotonic() < end, f"only {self.calls} calls: {self.failures}"
            time.sleep(0.01)

    def _work(self, number):
        turn = 0
        while not self._stopping.wait(self.pause()):
            turn += 1
            inputs = tensor(64 if turn % 8 else 602_112, 10_000 * number + turn)
            try:
                result = self.client.infer("identity_fp32", inputs)["OUTPUT0"]
                assert result.tobytes() == inputs["INPUT0"].tobytes()
            except Exception as error:
                self.failures.append(error)
            self.calls += 1


@pytest.mark.native
@pytest.mark.parametrize("program", ["nginx", "envoy"])  # HAProxy does not count them
def test_connections_of_seven_requests(start_proxy, program, triton_server):
    proxy = start_proxy(program, triton_server.grpc_url, requests=7)
    with Client(proxy.target, shared_memory=False, channel="native", timeout=30) as client:
        with Traffic(client, threads=8) as traffic:
            traffic.go_on(300)
        for _ in range(30):
            assert_usable(client)
    assert traffic.failures == []
    proxy.stop()


@pytest.mark.native
def test_connections_that_idle_as_long_as_the_proxy_likes(start_proxy, program, triton_server):
    proxy = start_proxy(program, triton_server.grpc_url, idle_seconds=1)
    random = np.random.default_rng(3)
    with Client(proxy.target, shared_memory=False, channel="native", timeout=30) as client:
        # About when it closes them: sometimes before the request, sometimes after, sometimes as
        # it is on its way.
        with Traffic(client, 16, pause=lambda: 1 + random.normal(0, 0.003)) as traffic:
            traffic.go_on(16 * 3)
    assert traffic.failures == []
    proxy.stop()


@pytest.mark.native
@pytest.mark.parametrize("program", ["nginx", "haproxy"])
def test_a_proxy_that_is_reloaded(start_proxy, program, triton_server):
    proxy = start_proxy(program, triton_server.grpc_url)
    with Client(proxy.target, shared_memory=False, channel="native", timeout=30) as client:
        with Traffic(client, threads=8) as traffic:
            for _ in range(3):
                traffic.go_on(100)
                proxy.reload()
            traffic.go_on(100)
        assert_usable(client)
    assert traffic.failures == []
    proxy.stop()
