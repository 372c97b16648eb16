"""Nothing is left of calls and streams that coroutines give up, here or on the server.

The short form is part of every test run. The long one has 10,000 of them, or what
``TRITON_FAST_SOAK_CANCELLED`` says, and is for ``make soak``. Triton 2.51 may crash when streams
are cancelled; it is started anew then, and the client goes on.
"""

from __future__ import annotations

import os
import threading

import pytest
from soak_checks import check, run, summary

pytestmark = pytest.mark.server

SHORT = 600
LONG = int(os.environ.get("TRITON_FAST_SOAK_CANCELLED", "10000"))


class Watched:
    """A server that is started anew when it dies."""

    def __init__(self, server) -> None:
        self.url = server.grpc_url
        self.crashes = 0
        self._server = server
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            if not self._server.is_alive:
                self.crashes += 1
                self._server.restart()

    def __enter__(self):
        self._watcher.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._watcher.join()


@pytest.fixture
def watched(triton_server_factory):
    models = ["identity_fp32", "repeat_int32", "cancellations"]
    with Watched(triton_server_factory(models=models)) as watched:
        yield watched


def check_all(measured):
    slope = check(measured)
    assert measured["tasks"].max() <= measured["tasks"][0], measured["tasks"].tolist()
    assert measured["running"][-1] == 0, "the server's model still runs requests that were given up"
    return slope


@pytest.mark.timeout(0)
def test_nothing_is_left(watched, channel):
    measured = run("soak_coroutines.py", watched.url, channel, str(SHORT))
    check_all(measured)
    # What a crash refuses is a small part.
    assert measured["refused"][-1] <= 20 * watched.crashes


# Not on the grpcio channel: grpc.aio keeps a kibibyte or two of every call that is cancelled, by
# itself too (grpcio 1.85).
@pytest.mark.soak
@pytest.mark.native
@pytest.mark.timeout(0)
def test_nothing_is_left_of_very_many(watched, capsys):
    measured = run("soak_coroutines.py", watched.url, "native", str(LONG))
    slope = check_all(measured)
    assert measured["refused"][-1] <= 20 * watched.crashes
    with capsys.disabled():
        print(f"\ngiven up: {summary(measured, slope)}; {watched.crashes} crashes of the server")


@pytest.mark.native
def test_what_is_left_is_seen(watched):
    measured = run("soak_coroutines.py", watched.url, "native", "200", "tasks")
    with pytest.raises(AssertionError):
        check_all(measured)
