"""What every test gets: the ledger of native objects, and a header that names the versions.

Tests of the native channel (marker ``native``, or a parameter that names it) are skipped by a build
that has none, but fail in CI, where a skipped test proves nothing.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import hypothesis
import pytest

from triton_fast.channels.native.channel import why_not_native

# What the tests take of it with three processes, about (389 MB was seen), in bytes.
SHARED_MEMORY = 400 << 20

pytest_plugins = ["event_loops", "mortal_servers", "server_level"]

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


@pytest.fixture(autouse=True)
def ledger():
    """No test may leave a payload or a held buffer behind."""
    from triton_fast._core import _wire

    # Collecting takes longer than most tests; it is for what an exception's traceback keeps.
    if any(_wire.live_counts().values()):
        gc.collect()
    before = _wire.live_counts()

    def more() -> dict[str, int]:
        now = _wire.live_counts()
        return {kind: now[kind] - before[kind] for kind in now if now[kind] > before[kind]}

    yield
    if more():
        gc.collect()
    # Fewer there may be: what an earlier test that failed had kept is gone.
    assert not more()


def open_now() -> set[object]:
    """Return this process's descriptors, each with what it stands for, and its threads."""
    found: set[object] = set(threading.enumerate())
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the listing's own
            found.add((descriptor.name, str(descriptor.readlink())))
    return found


class NothingIsLeft:
    """Which descriptors and threads there are, to be held against those that there are later.

    Which there are is compared, not how many: what goes of earlier tests hides nothing.
    """

    def __init__(self) -> None:
        self._before = open_now()

    def from_now_on(self) -> None:
        """Look again: what there is by now, as what is made once, may stay."""
        self._before = open_now()

    def check(self) -> None:
        """Fail if there are others; some threads end, and close what they have, a moment later."""
        end = time.monotonic() + 30
        while left := open_now() - self._before:
            assert time.monotonic() < end, left
            gc.collect()  # takes longer than most tests, and is for what a traceback keeps
            time.sleep(0.01)


@pytest.fixture
def nothing_is_left():
    """No descriptor and no thread may be left, whatever happened."""
    seen = NothingIsLeft()
    yield seen
    seen.check()
