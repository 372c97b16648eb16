"""Proxies and servers for the tests; a proxy that is not installed skips them, or fails in CI."""

from __future__ import annotations

import contextlib
import os

import pytest
from peer_proxies import PROXIES
from peer_server import PeerServer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave grpcio behind all proxies but one to CI: little of ours is in between."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        parameters = callspec.params if callspec else {}
        if parameters.get("channel") == "grpc" and parameters.get("program", "nginx") != "nginx":
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def start_proxy(tmp_path_factory):
    """Start a proxy: takes its program's name, the servers' addresses and the proxy's settings."""
    with contextlib.ExitStack() as running:

        def start(program: str, *upstreams: str, **settings):
            kind = PROXIES[program]
            if kind.executable() is None:
                missing = f"{program} is not installed; the package is {kind.package}"
                if os.environ.get("CI", "").lower() not in {"", "0", "false"}:
                    pytest.fail(missing, pytrace=False)
                pytest.skip(missing)
            proxy = kind(tmp_path_factory.mktemp(program), *upstreams, **settings)
            running.callback(proxy.stop)
            proxy.start()
            return proxy

        yield start


@pytest.fixture(scope="module", params=list(PROXIES))
def program(request):
    """Name each proxy in turn."""
    return request.param


@pytest.fixture(scope="session")
def start_server():
    """Start a server of grpcio's: takes its options; those who give the same share one."""
    servers = {}

    def start(**options):
        key = tuple(sorted(options.items()))
        if key not in servers:
            servers[key] = PeerServer(**options)
        return servers[key]

    yield start
    for server in servers.values():
        server.begin_to_stop()
    for server in servers.values():
        server.stop()
