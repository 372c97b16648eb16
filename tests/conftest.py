"""What every test gets: the plugins of support/, and a header that names the versions.

Tests of the native channel (marker ``native``, or a parameter that names it) are skipped by a build
that has none, but fail in CI, where a skipped test proves nothing.
"""

from __future__ import annotations

import os
import signal
from importlib.metadata import PackageNotFoundError, version

import hypothesis
import pytest

from triton_fast.channels.native.channel import why_not_native

# What the tests take of it with three processes, about (389 MB was seen), in bytes.
SHARED_MEMORY = 400 << 20

pytest_plugins = [f"support.{name}" for name in ("event_loops", "leftovers", "mortal_servers")]

# How long an example takes says nothing on a busy machine.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

# A shell starts what it runs in the background (as CI may) with SIGINT ignored, and so would every
# process be that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The servers of tests are on this machine; those that are about a proxy name it themselves.
for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[name]


def pytest_sessionstart() -> None:
    """Say at once what else a hundred tests would say each in its own way."""
    shared = os.statvfs("/dev/shm")
    size = shared.f_frsize * shared.f_blocks
    if size < SHARED_MEMORY:
        pytest.exit(
            f"/dev/shm must have {SHARED_MEMORY >> 20} MiB for the tests, has {size >> 20} "
            "(Docker: --shm-size=1g)",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )


def pytest_report_header() -> str:
    names = ("triton-fast", "numpy", "grpcio", "protobuf", "tritonclient", "nvidia-pytriton")
    versions = [f"{name} {_version(name)}" for name in names]
    obstacle = why_not_native()
    if obstacle is None:
        from triton_fast._core import _http2

        built, loaded = _http2.versions()
        versions.append(f"nghttp2 {loaded}" + ("" if loaded == built else f" (built: {built})"))
    return "versions: " + ", ".join([*versions, *(["no native channel"] if obstacle else [])])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(none)"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = getattr(item, "callspec", None)
        if parameters and parameters.params.get("channel") == "native":
            item.add_marker(pytest.mark.native)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("native") and (obstacle := why_not_native()):
        if os.environ.get("CI", "").lower() not in {"", "0", "false"}:
            pytest.fail(f"the native channel is required here: {obstacle}", pytrace=False)
        pytest.skip(f"no native channel: {obstacle}")


@pytest.fixture(scope="session", params=["native", "grpc"])
def channel(request):
    """Each channel in turn: whatever a client does works over both."""
    return request.param


@pytest.fixture
def placements(monkeypatch):
    """Every call's placement in shared memory, as it was made."""
    from triton_fast.shared_memory.placement import Placement

    made = []
    original = Placement.__init__

    def record(self, *arguments):
        original(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Placement, "__init__", record)
    return made


@pytest.fixture(scope="session")
def mortal(triton_server_factory):
    """A server that tests kill or stop, and start again."""
    return triton_server_factory(models=["slow", "identity_fp32"], stop_timeout=60)
