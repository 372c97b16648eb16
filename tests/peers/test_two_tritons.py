"""Two Tritons behind one address: calls, and what is left registered at them."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.blocking_face import BlockingFace
from support.process import segments
from support.waiting import until

from triton_fast import Client, FailedPrecondition, NotFound, SharedMemoryRegion

pytestmark = pytest.mark.server

BIG = 1 << 18  # elements: a mebibyte of FP32


@pytest.fixture(scope="module")
def tritons(triton_server_factory):
    return [triton_server_factory(models=["identity_cpp"]) for _ in range(2)]


@pytest.fixture(scope="module")
def by_calls(start_proxy, tritons):
    """Gives each call to the other server."""
    return start_proxy("nginx", *[triton.grpc_url for triton in tritons])


@pytest.fixture(scope="module")
def by_connections(start_proxy, tritons):
    """Gives each connection to the other server, as the kernel does with a port they share."""
    addresses = [triton.grpc_url for triton in tritons]
    return start_proxy("haproxy", *addresses, per_connection=True)


@pytest.fixture(params=["blocking", "coroutines"])
def open_shared_face(request, channel, tritons):
    def open_one(proxy, **settings):
        kind = Client if request.param == "blocking" else BlockingFace
        return kind(proxy.target, channel=channel, timeout=60, **settings)

    yield open_one
    assert left(tritons) == []
    assert not segments()


def left(tritons):
    """Return the regions of all servers, asked at their own doors."""
    found = []
    for triton in tritons:
        url = f"http://{triton.http_url}/v2/systemsharedmemory/status"
        with urllib.request.urlopen(url, timeout=30) as answer:
            found += [region["name"] for region in json.load(answer)]
    return found


def echo(client, seed):
    data = np.random.default_rng(seed).standard_normal(BIG, np.float32)
    answer = client.infer("identity_cpp", {"INPUT0": data})["OUTPUT0"]
    np.testing.assert_array_equal(answer, data)


@pytest.mark.parametrize("way", ["by_calls", "by_connections"])
def test_no_call_fails_and_nothing_is_left(request, open_shared_face, tritons, caplog, way):
    with open_shared_face(request.getfixturevalue(way)) as client:
        for seed in range(4):
            echo(client, seed)
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(echo, [client] * 12, range(12)))
        if caplog.records:  # of two connections, both may be with one server
            assert "several servers answer at this address" in caplog.text
            until(lambda: echo(client, 0) or left(tritons) == [])
    assert len(caplog.records) == 1 or (way == "by_connections" and not caplog.records)


def test_where_it_is_required(open_shared_face, by_calls):
    with open_shared_face(by_calls, shared_memory=True) as client:
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match="address of one server"):
                echo(client, 0)


def twice(client, tensor):
    for _ in range(2):
        client.infer("identity_cpp", {"INPUT0": tensor})


def test_a_region_of_the_callers_own(by_calls, channel, tritons):
    with (
        Client(by_calls.target, channel=channel, timeout=60) as client,
        SharedMemoryRegion.create(4 * BIG) as region,
    ):
        region.register(client)
        try:
            with pytest.raises(NotFound, match=region.name) as caught:
                twice(client, region.tensor((BIG,), np.float32))
            assert "several servers answer at this address" in caught.value.__notes__[0]
        finally:
            for triton in tritons:
                with Client(triton.grpc_url) as one:
                    region.unregister(one)
