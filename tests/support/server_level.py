"""pytest plugin: where a Triton server is required, a run that did not test against it fails.

A skipped test proves nothing and looks well. With ``--require-server``, which .ci/run gives, a run
fails in which a test of the real-server level was skipped, or in which none ran. The level is every
test that is marked ``server`` or asks for a fixture that gives a server. It is counted from the
reports, so those of pytest-xdist's workers count.
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
    if config.getoption("--require-server") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(ServerLevel(), "triton_fast_server_level")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Its reports name the marks of a test, but not its fixtures.
    for item in items:
        if not _FIXTURES.isdisjoint(getattr(item, "fixturenames", ())):
            item.add_marker("server")


class ServerLevel:
    """Counts the tests of the level, and remembers those that were skipped."""

    def __init__(self) -> None:
        self.ran = 0
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "server" in report.keywords:
            if report.skipped and not hasattr(report, "wasxfail"):
                self.skipped.append(f"{report.nodeid}: {_reason(report)}")
            elif report.when == "call":
                self.ran += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        # A whole file that is skipped: its marks were never seen, so its text has to do.
        if report.skipped and any(name in _text(report) for name in ("mark.server", *_FIXTURES)):
            self.skipped.append(f"{report.nodeid}: {_reason(report)}")

    @property
    def complaint(self) -> str:
        if self.skipped:
            return f"{len(self.skipped)} tests of the real-server level were skipped"
        return "" if self.ran else "not one test of the real-server level ran"

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        otherwise_well = exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}
        if self.complaint and otherwise_well:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.complaint:
            terminalreporter.section("a Triton server is required here", red=True, bold=True)
            terminalreporter.line(self.complaint)
            for line in self.skipped:
                terminalreporter.line(f"  {line}")
        else:
            terminalreporter.line(f"real-server level: {self.ran} tests ran, none was skipped")


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)


def _text(report: pytest.CollectReport) -> str:
    # xdist's reports have no path that is absolute, but the name of the node is the file's.
    return Path(report.nodeid).read_text(encoding="utf-8")
