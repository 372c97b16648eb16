"""What the benchmarks share: the server, the record that pytest-benchmark gets, the environment."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import cpp_stub
import pytest
from contenders import CONTENDERS, SPLIT, Addresses
from sampling import Plan, ReplayClock, Samples

from triton_fast import Client
from triton_fast.testing import TritonServer

_PACKAGES = (
    "triton-fast",
    "numpy",
    "grpcio",
    "protobuf",
    "tritonclient",
    "uvloop",
    "pytest-benchmark",
)
_CLOCK = ReplayClock()
_server_version = pytest.StashKey[str]()
_load_average = pytest.StashKey[tuple[float, float, float]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--smoke",
        action="store_true",
        help="measure next to nothing: show that the benchmarks work, not how fast anything is",
    )


def pytest_report_header() -> list[str]:
    reasons = {cls.name: cls.missing() for cls in (*CONTENDERS, *SPLIT)}
    return [f"without {name}: {reason}" for name, reason in reasons.items() if reason]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_load_average] = os.getloadavg()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=_CLOCK))


@pytest.fixture(scope="session")
def smoke(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--smoke"))


@pytest.fixture(scope="session")
def plan_of(smoke: bool) -> Callable[[Plan], Plan]:
    """Turns a plan into the one to follow."""
    return lambda plan: Plan(rounds=2, block=1, warmup=0) if smoke else plan


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Iterator[Addresses]:
    models = [
        "identity_cpp",
        "identity_cpp_bytes",
        "identity_batched",
        "identity_optional",
        "square_int32",
    ]
    with TritonServer(models=models) as process:
        with Client(process.grpc_url) as client:
            metadata = client.server_metadata()
        pytestconfig.stash[_server_version] = f"{metadata.name} {metadata.version}"
        yield Addresses(process.grpc_url, process.http_url)
        process.kill()  # now and then it takes ten seconds to stop


@pytest.fixture
def record(benchmark: Any) -> Callable[..., None]:
    """Hands samples to pytest-benchmark, under the name and in the group that the report knows."""

    def hand_over(group: str, contender: str, samples: Samples, **facts: Any) -> None:
        benchmark.group = group
        benchmark.extra_info.update(
            contender=contender,
            block=samples.block,
            cpu_seconds=samples.cpu_seconds,
            figures=samples.figures,
            **facts,
        )
        _CLOCK.load(samples.readings)
        benchmark.pedantic(lambda: None, rounds=len(samples.readings))
        assert _CLOCK.exhausted

    return hand_over


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    del machine_info["node"]
    machine_info["cores"] = len(os.sched_getaffinity(0))
    machine_info["kernel"] = platform.release()
    machine_info["load_average_before"] = config.stash[_load_average]
    machine_info["load_average_after"] = os.getloadavg()
    machine_info["server"] = config.stash.get(_server_version, "none")
    machine_info["packages"] = {name: _version(name) for name in _PACKAGES}
    machine_info["packages"]["gRPC for C++"] = cpp_stub.version()
    machine_info["smoke"] = bool(config.getoption("--smoke"))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
