"""pytest plugin: tests that a Triton server may not survive, on servers of their own.

Triton 2.51 crashes or hangs now and then when streams and calls are given up while it works, with
any client. Tests that give them up are marked ``server_may_die`` and take their server from the
fixture `shared_server`. When such a test fails and one of these servers has crashed, or no longer
answers, the failure is the server's: the test is done once more, with another one, at most
`ATTEMPTS` times in all. Never excused are a test whose server is well, a server that ended of
anything but a crash of its own, what a test leaves behind in this process (an assertion that fails
in its teardown, a warning of what was not closed) and one that waits until its limit: a client
notices that its server is gone. The summary counts the deaths, and says what failed with them.

All other tests leave their servers well. It crashes under them too, about once in a hundred
thousand tests: one such failure a session (of a worker, with pytest-xdist) is excused, by the same
rules, where the server was of `shared_server` and its log tells of the crash.

A server that hangs has crashed too, as far as we have seen: its memory is damaged, malloc aborts,
and Triton's handler of the signal waits for malloc's lock, which the same thread holds, when it
wants to write where that was. Then this thread hangs and whoever needs the lock after it, and the
others go on: health calls are answered, and often all others but streams. It can be one call that
is never answered, as one of the two threads that take calls is left. But "Signal (6) received." is
in the log by then, so that is where a crash is looked for first.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol

from triton_fast.testing import TritonServerFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from triton_fast.testing import TritonServer

ATTEMPTS = 4
# How many crashes of servers that were left well are excused.
CALM_CRASHES = 1
# How long a server may take over a health call before it counts as hung, on a busy machine too.
ANSWER_SECONDS = 15.0
# How long a server that has begun to crash may take until its process ends.
CRASH_SECONDS = 3.0
# How often a server is asked that is kept up: cheaply, and with calls.
LOOK_SECONDS = 0.2
ASK_SECONDS = 5.0

_CRASH = re.compile(r"\bSignal \((6|11)\) received")
_FRAME = re.compile(r"^ *\d+# (?:0x[0-9A-Fa-f]+ in )?(.*)$", re.MULTILINE)
_MOST_FRAMES = 8
UNEXPLAINED = "its process ended, and not of a crash"
_PROPERTY = "server died"
_SEEN = pytest.StashKey["Seen"]()
_SERVERS = pytest.StashKey["Servers"]()
_CALM = pytest.StashKey["Servers"]()


class Servers:
    """Servers that tests share: each is started once a session, when it is first asked for."""

    def __init__(self, start: Callable[..., TritonServer]) -> None:
        self._start = start
        self._servers: dict[str, TritonServer] = {}
        self._meanwhile: list[str] = []
        # By their names, those that the running test has asked for.
        self._asked_for: set[str] = set()

    def __call__(self, **options: object) -> TritonServer:
        """Return a running server with these options of `TritonServer`."""
        name = repr(sorted(options.items()))
        if name not in self._servers:
            try:
                server = self._start(**options)
            except TritonServerFailed as error:
                if not error.timed_out:
                    raise
                # Triton hangs as it starts, too, once in a few thousand times. Once more, counted.
                self._meanwhile.append(f"it hung as it started: {error}")
                server = self._start(**options)
            self._servers[name] = server
        self._asked_for.add(name)
        return self._servers[name]

    def next_test(self) -> None:
        """Forget what the test before has asked for."""
        self._asked_for.clear()

    def forget_the_dead(self, *, ask: bool) -> tuple[list[str], bool]:
        """Give up those that have died, or do not answer if asked; who asks next gets another.

        Not at once: the test's fixtures are about to say what is left in this process.

        Returns
        -------
        list of str
            How each ended; those that died while they were kept up too.
        bool
            Whether one of them was the running test's, and crashed or hangs.
        """
        found, self._meanwhile = self._meanwhile, []
        its_own = any(wrong != UNEXPLAINED for wrong in found)
        for name, server in list(self._servers.items()):
            asked = ask and name in self._asked_for
            wrong = what_is_wrong_with(server) if asked else how_it_crashed(server)
            if wrong:
                del self._servers[name]
                with contextlib.suppress(TritonServerFailed):  # it has lost its supervisor
                    server.kill()
                found.append(wrong)
                its_own |= name in self._asked_for and wrong != UNEXPLAINED
        return found, its_own

    @contextlib.contextmanager
    def kept_up(self, server: TritonServer) -> Iterator[list[str]]:
        """Start a server anew when it dies or hangs, at once, while a program makes its calls.

        Gives a list, in which it says how the server ended each time.
        """
        found: list[str] = []
        over = threading.Event()

        def look() -> None:
            asked = time.monotonic()
            while not over.wait(LOOK_SECONDS):
                wrong = how_it_crashed(server)
                if not wrong and time.monotonic() - asked > ASK_SECONDS:
                    wrong = what_is_wrong_with(server)
                    asked = time.monotonic()
                if wrong:
                    server.kill()
                    server.start()
                    found.append(wrong)

        with ThreadPoolExecutor(1) as threads:
            looking = threads.submit(look)
            try:
                yield found
            finally:
                over.set()
                looking.result()
                self._meanwhile += found


def how_it_crashed(server: TritonServer) -> str:
    """Say how a server has died, as far as is known without asking it; "" if it has not."""
    is_alive = server.is_alive
    crash = _CRASH.search(server.log())
    if is_alive and not crash:
        return ""
    end = time.monotonic() + CRASH_SECONDS
    while server.is_alive:
        if time.monotonic() > end:
            return f"it crashed, and hangs over that ({crash[0]})"
        time.sleep(0.05)
    return (
        f"its process ended ({crash[0]}{_frames(server.log()[crash.end() :])})"
        if crash
        else UNEXPLAINED
    )


def _frames(log: str) -> str:
    """Return where a server crashed, as its handler of the signal has written it."""
    frames = [frame.rpartition("/")[2][:60] for frame in _FRAME.findall(log)[:_MOST_FRAMES]]
    return f" in {' < '.join(frames)}" if frames else ""


def what_is_wrong_with(server: TritonServer) -> str:
    """Say how a server has died or that it hangs; "" if it is well.

    It is well if it answers, over HTTP and over gRPC, whether it is ready, and infers and streams,
    where it has the models to try that with. It is asked by the official client: what is wrong with
    ours is not the server's fault.
    """
    wrong = how_it_crashed(server)
    if wrong:
        return wrong
    try:
        url = f"http://{server.http_url}/v2/health/ready"
        directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with directly.open(url, timeout=ANSWER_SECONDS):
            pass
        _ask_over_grpc(server.grpc_url)
    except Exception as error:  # whichever way it fails, it is no answer
        # It may be about to end: its ports close a moment before it is known to have died.
        end = time.monotonic() + CRASH_SECONDS
        while time.monotonic() < end:
            if wrong := how_it_crashed(server):
                return wrong
            time.sleep(0.1)
        return f"it hangs ({type(error).__name__}: {error})"
    return ""


def _ask_over_grpc(url: str) -> None:
    import numpy as np
    import tritonclient.grpc as peer

    def tensor(name: str, array: np.ndarray, datatype: str) -> peer.InferInput:
        return peer.InferInput(name, array.shape, datatype).set_data_from_numpy(array)

    # What answers at once, of the models that such tests have.
    questions = {
        "identity_fp32": [tensor("INPUT0", np.ones(1, np.float32), "FP32")],
        "cancellations": [tensor("RESET", np.array([False]), "BOOL")],
    }
    streams = {
        "identity_fp32": questions["identity_fp32"],
        "repeat_int32": [
            tensor("IN", np.int32([1]), "INT32"),
            tensor("DELAY", np.uint32([0]), "UINT32"),
            tensor("WAIT", np.uint32([0]), "UINT32"),
        ],
    }
    limit = ANSWER_SECONDS
    with contextlib.closing(peer.InferenceServerClient(url)) as client:
        if not client.is_server_ready(client_timeout=limit):
            raise AssertionError("not ready")
        models = {
            model
            for model in questions | streams
            if client.is_model_ready(model, client_timeout=limit)
        }
        for model in models & questions.keys():
            client.infer(model, questions[model], client_timeout=limit)
        for model in models & streams.keys():
            _stream(client, model, streams[model])


def _stream(client, model: str, inputs: list[object]) -> None:
    import queue

    answers: queue.Queue[object] = queue.Queue()
    client.start_stream(
        lambda result, error: answers.put(error or result), stream_timeout=ANSWER_SECONDS
    )
    try:
        client.async_stream_infer(model, inputs)
        answer = answers.get(timeout=2 * ANSWER_SECONDS)
    except queue.Empty:
        raise AssertionError(f"{model} gives no answer on a stream") from None
    finally:
        client.stop_stream()
    if isinstance(answer, Exception):
        raise answer


@pytest.fixture(scope="session")
def calm_servers(
    triton_server_factory: Callable[..., TritonServer], request: pytest.FixtureRequest
) -> Iterator[Servers]:
    """Start servers for tests that leave them well: they wait for all answers, or are refused."""
    servers = request.config.stash[_CALM] = Servers(triton_server_factory)
    yield servers
    del request.config.stash[_CALM]


@pytest.fixture(scope="session")
def mortal_servers(
    triton_server_factory: Callable[..., TritonServer], request: pytest.FixtureRequest
) -> Iterator[Servers]:
    """Start servers for tests that are marked ``server_may_die``, and only for those."""
    servers = Servers(triton_server_factory)
    request.config.stash[_SERVERS] = servers
    yield servers
    del request.config.stash[_SERVERS]


@pytest.fixture
def shared_server(request: pytest.FixtureRequest) -> Servers:
    """Take a server to share, as in ``shared_server(models=[...])``: of the group that is right."""
    name = "mortal_servers" if _is_mortal(request.node) else "calm_servers"
    servers: Servers = request.getfixturevalue(name)
    return servers


# --- Once more, and the count ---------------------------------------------------------------------


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Deaths(), "triton_fast_deaths")


class Deaths:
    """Repeats tests whose server died, and counts."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self._calm_crashes = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if _is_mortal(item) and item.get_closest_marker("timeout") is None:
                # The limit is for all attempts together.
                item.add_marker(pytest.mark.timeout(120 * ATTEMPTS))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None):
        mortal = _is_mortal(item)
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        deaths: list[str] = []
        for attempt in range(1, ATTEMPTS + 1):
            seen = item.stash[_SEEN] = Seen()
            if servers := _servers_of(item):
                servers.next_test()
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
            failures = [report for report in reports if report.failed]
            deaths += [f"{how}{_first_line(failures)}" for how in seen.deaths]
            failed = bool(failures)
            excused = failed and seen.its_server_died and not seen.ours
            if not mortal:
                excused = excused and self._calm_crashes < CALM_CRASHES
                self._calm_crashes += excused
            if not excused or attempt == ATTEMPTS:
                break
        for report in reports:
            if report.when == "teardown":
                report.user_properties += [(_PROPERTY, death) for death in deaths]
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]):
        report = yield
        mortal = _is_mortal(item)
        if not (mortal or report.failed) or _SEEN not in item.stash:
            return report
        if report.failed:
            # pytest keeps it for debuggers, and with it all that the test's functions have.
            for name in ("last_type", "last_value", "last_traceback", "last_exc"):
                vars(sys).pop(name, None)
        seen = item.stash[_SEEN]
        if call.excinfo is not None:
            seen.ours |= _is_ours(call.excinfo.value, report.when)
        servers = _servers_of(item)
        if servers is not None and (report.failed or report.when != "setup"):
            try:
                deaths, its_own = servers.forget_the_dead(ask=mortal and report.failed)
            except (Exception, pytest.fail.Exception) as error:  # it is the test's limit, say
                seen.ours = True
                report.sections.append(("its servers could not be looked at", repr(error)))
                return report
            seen.its_server_died |= its_own
            if deaths:
                seen.deaths += deaths
                report.sections.append(("a server died", "\n".join(deaths)))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.told += [
            f"{report.nodeid}: {how}" for name, how in report.user_properties if name == _PROPERTY
        ]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.line(f"servers that died: {len(self.told)}")
        for line in self.told:
            terminalreporter.line(f"  {line}")


def _is_ours(error: BaseException, when: str) -> bool:
    """Tell whether an attempt ended in a way that no death of a server excuses."""
    if isinstance(error, BaseExceptionGroup):
        return any(_is_ours(one, when) for one in error.exceptions)
    if isinstance(error, Warning) or "from pytest-timeout" in str(error):
        return True
    return when == "teardown" and isinstance(error, AssertionError | pytest.fail.Exception)


def _first_line(failures: list[pytest.TestReport]) -> str:
    """Return what the first failure of an attempt says, to stand behind how the server died."""
    for report in failures:
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash else str(report.longrepr)
        return f"; {text.strip().splitlines()[0][:200]}"
    return ""


class Seen:
    """What was seen during one attempt."""

    def __init__(self) -> None:
        self.deaths: list[str] = []
        self.its_server_died = False
        # Something of this process's was left behind, which no death of a server excuses.
        self.ours = False


def _servers_of(item: pytest.Item) -> Servers | None:
    """Return the servers of a test's group, once there is one."""
    return item.config.stash.get(_SERVERS if _is_mortal(item) else _CALM, None)


def _is_mortal(item: pytest.Item) -> bool:
    return item.get_closest_marker("server_may_die") is not None
