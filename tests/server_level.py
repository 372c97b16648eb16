"""pytest plugin: where a Triton server is required, a run that did not test against it fails.

A skipped test proves nothing and looks well. With ``--require-server``, which .ci/run gives, a run
fails in which a test of the real-server level was skipped, or in which none ran. The level is every
test that is marked ``server`` or asks for a fixture of `triton_fast.testing`. It is counted in this
process: with pytest-xdist's workers, none runs.
"""

from __future__ import annotations

from pathlib import Path

import pytest

_FIXTURES = {"triton_server", "triton_server_factory", "shared_server"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-server",
        action="store_true",
        help="fail if a test that needs a Triton server was skipped, or if there was none",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--require-server"):
        config.pluginmanager.register(ServerLevel(), "triton_fast_server_level")


class ServerLevel:
    """Counts the tests of the level, and remembers those that were skipped."""

    def __init__(self) -> None:
        self.ran = 0
        self.skipped: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if _is_of_the_level(item):
            if report.skipped and not hasattr(report, "wasxfail"):
                self.skipped.append(f"{item.nodeid}: {_reason(report)}")
            elif report.when == "call":
                self.ran += 1
        return report

    def pytest_collectreport(self, report):
        # A whole file that is skipped: its marks were never seen, so its text has to do.
        if report.skipped and any(name in _text(report) for name in ("mark.server", *_FIXTURES)):
            self.skipped.append(f"{report.nodeid}: {_reason(report)}")

    @property
    def complaint(self) -> str:
        if self.skipped:
            return f"{len(self.skipped)} tests of the real-server level were skipped"
        return "" if self.ran else "not one test of the real-server level ran"

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session, exitstatus):
        otherwise_well = exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}
        if self.complaint and otherwise_well:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        if self.complaint:
            terminalreporter.section("a Triton server is required here", red=True, bold=True)
            terminalreporter.line(self.complaint)
            for line in self.skipped:
                terminalreporter.line(f"  {line}")
        else:
            terminalreporter.line(f"real-server level: {self.ran} tests ran, none was skipped")


def _is_of_the_level(item: pytest.Item) -> bool:
    fixtures = getattr(item, "fixturenames", ())
    return item.get_closest_marker("server") is not None or not _FIXTURES.isdisjoint(fixtures)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)


def _text(report: pytest.CollectReport) -> str:
    return Path(report.fspath).read_text(encoding="utf-8")
