"""What every test gets: the ledger of native objects, and a header that names the versions."""

from __future__ import annotations

import gc
import signal
from importlib.metadata import PackageNotFoundError, version

import pytest

pytest_plugins = ["server_level"]

# A shell starts what it runs in the background (as CI may) with SIGINT ignored, and so would every
# process be that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    names = ("triton-fast", "numpy", "grpcio", "protobuf", "tritonclient", "nvidia-pytriton")
    return "versions: " + ", ".join(f"{name} {_version(name)}" for name in names)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(none)"


@pytest.fixture(scope="session", params=["native", "grpc"])
def channel(request):
    """Each channel in turn: whatever a client does works over both."""
    return request.param


@pytest.fixture(autouse=True)
def ledger():
    """No test may leave a payload or a held buffer behind."""
    from triton_fast._core import _wire

    gc.collect()
    before = _wire.live_counts()
    yield
    gc.collect()
    assert _wire.live_counts() == before
