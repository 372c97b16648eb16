"""Streams and the process: signals, forks, threads, and the interpreter's end."""

from __future__ import annotations

import signal
import threading
import time

import numpy as np
import pytest
from support.interpreter import run_python
from support.interruptions import is_in_package
from support.model_calls import counts, outs, repeat, square
from support.waiting import until

from triton_fast import TritonFastError

pytestmark = [pytest.mark.server, pytest.mark.server_may_die]

# As in test_streams.py.
LONG = 90.0
SOON = 30.0

PRELUDE = """
import contextlib, gc, os, signal, sys, threading, time
import numpy as np
from support.model_calls import ENDLESS, outs, repeat, square
from triton_fast import Client, ClosedError

client = Client(sys.argv[1], channel=sys.argv[2])
"""


@pytest.fixture
def run_script(server, channel):
    """Run a script with a client of its own; it must end well, and complain of nothing."""

    def run(script, *, quiet=True):
        return run_python(PRELUDE + script, server.grpc_url, channel, timeout=60, quiet=quiet)

    return run


class Interrupt(Exception):
    """What the tests' signal handler raises."""


@pytest.fixture
def alarms():
    """Have a signal raise Interrupt in this thread after some seconds: once, or again and again.

    It may be late by any time on a busy machine: set it where an Interrupt is expected already.
    """

    main = threading.get_ident()
    timers = []
    armed = once = False

    def interrupt(_, frame):
        nonlocal armed
        # Not when it is late, nor in what a finalizer calls, where it would only be printed, nor in
        # pytest: there will be another.
        if armed and is_in_package(frame):
            armed = not once
            raise Interrupt

    def set_timer(first, interval=None):
        nonlocal armed, once
        armed, once = False, interval is None
        while timers:
            thread, stopped = timers.pop()
            stopped.set()
            thread.join()
        if not first:
            return

        stopped = threading.Event()

        def send():
            pause = first
            while not stopped.wait(pause):
                signal.pthread_kill(main, signal.SIGUSR1)
                pause = interval or first

        thread = threading.Thread(target=send)
        timers.append((thread, stopped))
        armed = True
        thread.start()

    # Not SIGALRM, which is pytest-timeout's.
    before = signal.signal(signal.SIGUSR1, interrupt)
    yield set_timer
    set_timer(0)
    signal.signal(signal.SIGUSR1, before)


def soon_interrupted(alarms, seconds, work):
    alarms(seconds)
    return work()


# The interpreter's end ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        """
stream = client.stream("repeat_int32", ENDLESS)
print(next(stream)["OUT"].item())
""",
        """
stream = client.stream("square_int32", square(5000))
print(next(stream)["OUT"].item() - 4999)
cycle = [stream, client]
cycle.append(cycle)
del stream, client
""",
        """
stream = client.open_stream()
mine = stream.stream("repeat_int32", ENDLESS)
stream.send("repeat_int32", ENDLESS)

def wait(work):
    with contextlib.suppress(ClosedError):
        while True:
            work()

for work in (lambda: next(mine), stream.receive, stream.receive):
    threading.Thread(target=wait, args=(work,), daemon=True).start()
time.sleep(0.2)  # until they wait, most likely; it is the same if they do not yet
print(1)
""",
        """
def generate():
    with client.open_stream() as stream:
        for answer in stream.stream("repeat_int32", ENDLESS):
            yield answer["OUT"].item()

answers = generate()
print(next(answers))
""",
        """
import atexit
stream = client.stream("repeat_int32", ENDLESS)
print(next(stream)["OUT"].item())
atexit.register(stream.close)
sys.exit(0)
""",
    ],
    ids=["iterator", "cycle", "threads", "generator", "atexit"],
)
def test_the_interpreter_ends_with_streams_open(run_script, script, stream_client):
    assert run_script(script) == "1\n"  # and does not wait for an answer that never comes
    until(lambda: counts(stream_client)[1] == 0)  # the server knows


# Signals ------------------------------------------------------------------------------------------


def read(answers, found):
    """Take down what comes, and an error at the end."""
    try:
        found.extend(outs(answers))
    except TritonFastError as error:
        found.append(error)


def test_ctrl_c_in_a_waiting_iterator(run_script):
    script = """
def interrupt_soon():
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

stream = client.stream("repeat_int32", repeat([1, 2], [0, 2500]))
print(next(stream)["OUT"].item())
try:
    interrupt_soon()
    next(stream)
except KeyboardInterrupt:
    print("interrupted")
# The answer was still to come.
print(next(stream)["OUT"].item(), list(stream))
try:
    with client.open_stream() as stream:
        stream.send("repeat_int32", ENDLESS)
        print(stream.receive()["OUT"].item())
        interrupt_soon()
        stream.receive()
except KeyboardInterrupt:
    print("again")
print(outs(client.stream("repeat_int32", repeat([3]))))
"""
    assert run_script(script).split("\n") == ["1", "interrupted", "2 []", "1", "again", "[3]", ""]


def test_a_signal_leaves_other_threads_alone(stream_client, alarms):
    with stream_client.open_stream() as stream:
        mine = stream.stream("repeat_int32", repeat([1, 2], [0, 2000]))
        others = stream.stream("repeat_int32", repeat([3, 4, 5], [0, 300, 300]))
        found = []
        thread = threading.Thread(target=read, args=(others, found))
        assert next(mine)["OUT"].item() == 1
        thread.start()
        with pytest.raises(Interrupt):
            soon_interrupted(alarms, 0.1, lambda: next(mine))
        thread.join(SOON)
        assert found == [3, 4, 5]
        assert outs(mine) == [2]


@pytest.mark.soak
def test_signals_at_any_moment_leave_nobody_waiting(stream_client, alarms):
    """Whatever handlers' exceptions cut short, again and again: no reader's turn is lost, and no
    answer unseen. One at a time, everywhere: test_interruptions.py."""
    ends = {"whole": 0, "failed": 0}
    finish = time.monotonic() + 2
    while time.monotonic() < finish:
        with stream_client.open_stream() as stream:
            mine = stream.stream("square_int32", square(400))
            others = stream.stream("square_int32", square(400))
            found = []
            thread = threading.Thread(target=read, args=(others, found))
            thread.start()
            taken = 0
            over = False
            while not over:
                try:
                    alarms(0.0003, 0.0007)
                    for _ in mine:
                        taken += 1
                    over = True
                except Interrupt:
                    pass
                except TritonFastError:
                    over = True
                finally:
                    alarms(0)
            thread.join(SOON)
            assert not thread.is_alive()
            whole = found == [400] * 400
            assert whole or isinstance(found[-1], TritonFastError)
            assert taken <= 400
            ends["whole" if whole else "failed"] += 1
    # Nearly always nothing is lost, and so nothing fails.
    assert ends["whole"] > ends["failed"]


def test_a_signal_while_sending(stream_client, alarms):
    """The request is withdrawn; whether the stream goes on is up to how far it had come."""
    x = np.zeros(20_000_000, np.float32)
    with stream_client.open_stream() as stream:

        def send():
            while True:
                stream.send("identity_fp32", {"INPUT0": x}, timeout=LONG)
                stream.receive(timeout=LONG)

        with pytest.raises(Interrupt):
            soon_interrupted(alarms, 0.01, send)
    assert stream_client.infer("identity_fp32", {"INPUT0": x[:1]})["OUTPUT0"].tolist() == [0]


# Forks --------------------------------------------------------------------------------------------


def test_a_child_has_no_part_in_its_parents_streams(run_script, channel):
    script = """
def refused(work):
    try:
        work()
    except ClosedError as error:
        return "parent" in str(error) or "closed" in str(error)
    return False

mine = client.stream("repeat_int32", ENDLESS)
shared = client.open_stream()
by_hand = shared.stream("repeat_int32", repeat([4, 5], [0, 600]))
shared.send("repeat_int32", ENDLESS)
assert next(mine)["OUT"].item() == 1
waiting = []
thread = threading.Thread(target=lambda: waiting.extend(outs(by_hand)))
thread.start()
children = []
for turn in range(12):
    pid = os.fork()
    if pid == 0:
        signal.alarm(45)
        right = [
            refused(lambda: list(mine)),
            refused(lambda: shared.send("repeat_int32", ENDLESS)),
            refused(lambda: shared.stream("repeat_int32", ENDLESS)),
            refused(lambda: [shared.receive() for _ in range(2)]),  # what had come may be read
            shared.half_close() is None,
            mine.close() is None,
        ]
        if turn % 2:
            shared.close()
        if turn % 3 == 0 and sys.argv[2] == "native":  # grpcio does not go on after such a fork
            right.append(outs(client.stream("repeat_int32", repeat([7]))) == [7])
        del mine, by_hand
        gc.collect()
        os._exit(0 if all(right) else 1)
    children.append(pid)
    time.sleep(0.005)
statuses = [os.waitpid(pid, 0)[1] for pid in children]
assert statuses == [0] * len(children), statuses
thread.join()
assert waiting == [4, 5]
assert shared.receive()["OUT"].item() == 1
shared.send("repeat_int32", repeat([6]))
assert shared.receive()["OUT"].item() == 6
mine.close()
shared.close()
print("done")
"""
    assert run_script(script, quiet=channel == "native") == "done\n"  # grpcio says what it skips
