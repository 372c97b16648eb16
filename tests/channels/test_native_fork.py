"""The native channel around fork: children call, the parent's calls go on, nothing is shared."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time

import pytest
from channel_peers import EchoServer
from interpreter import run_python
from test_grpc_channel import HERE

pytestmark = pytest.mark.native

# Each script runs in an interpreter of its own. A child that hangs is killed by its own alarm, so
# that a fault shows as its status and not as a test that takes forever.
PRELUDE = """
    import gc, multiprocessing, os, signal, socket, sys, threading, time, warnings
    from channel_peers import Answer, Ending, Message, Relay
    from triton_fast import errors
    from triton_fast.channels.base import CallOptions
    from triton_fast.channels.native.channel import NativeChannel

    # Python 3.12 and later warn of what is tested here.
    warnings.filterwarnings("ignore", "(?s).*fork.*", DeprecationWarning)
    target = sys.argv[1]

    def call(channel, method="Echo", message=b"x" * 1000, seconds=8):
        answer = Answer()
        options = CallOptions(deadline_ns=time.monotonic_ns() + int(seconds * 1e9))
        channel.call("/test.Echo/" + method, Message(message), answer, options)
        assert answer.bytes == (message if method == "Echo" else b"slept")

    def start(channel, method="Echo", message=b"y" * 1000):
        answer, ending = Answer(), Ending()
        running = channel.start("/test.Echo/" + method, Message(message), answer, CallOptions(),
                                ending)
        return running, ending

    def started(channel):
        error = start(channel)[1].wait(8)
        if error:
            raise error

    def fork(work):
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            signal.alarm(20)
            work()
            status = 0
        except BaseException as error:
            print(f"child: {type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(status)

    def join(pids):
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        assert statuses == [0] * len(pids), statuses

    def child():
        for _ in range(2):
            mine = NativeChannel(target)
            for _ in range(3):
                call(mine)
                started(mine)
            mine.close()

    def descriptors():
        found = []
        for name in os.listdir("/proc/self/fd"):
            try:
                kind = os.readlink("/proc/self/fd/" + name)
            except OSError:
                continue  # the listing's own
            if "socket" in kind or "eventfd" in kind:
                found.append(kind)
        return found

    before = descriptors()
    channel = NativeChannel(target)
    call(channel)
    started(channel)
"""


def run_fork(script: str, target: str) -> str:
    return run_python(PRELUDE + script, target)


def test_eight_children_call_at_once_while_the_parent_goes_on(server):
    script = """
    pids = []
    for _ in range(8):
        pids.append(fork(child))
        call(channel)
        started(channel)
    join(pids)
    call(channel)
    channel.close()
    print("done")
    """
    assert run_fork(script, server.target).endswith("done\n")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_forking_while_other_threads_call(server, host):
    """Short calls, calls that outlast the fork, new connections, new channels: nothing is held up
    for the fork, and none of it is disturbed by the children, nor they by it."""
    script = """
    stop, failed, calls = threading.Event(), [], [0]

    def hammer(way):
        try:
            while not stop.is_set():
                way(channel)
                calls[0] += 1
        except BaseException as error:
            failed.append(error)

    def anew(_):
        fresh = NativeChannel(target)
        call(fresh)
        fresh.close()

    ways = (call, call, started, started, anew, anew, lambda c: call(c, "Sleep", b"0.5"),
            lambda c: call(c, message=bytes(3_000_000)))
    threads = [threading.Thread(target=hammer, args=(way,)) for way in ways]
    for thread in threads:
        thread.start()
    longest = 0
    for _ in range(6):
        time.sleep(0.05)
        began = time.monotonic()
        pids = [fork(child) for _ in range(8)]
        longest = max(longest, time.monotonic() - began)
        join(pids)
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == [], failed
    assert calls[0] > 20
    assert longest < 5, longest
    channel.close()
    print("done")
    """
    target = f"{host}:{server.port}"
    assert run_fork(script, target).endswith("done\n")


def test_a_child_keeps_nothing_of_the_parents_open(server):
    script = """
    long = [start(channel, "Sleep", b"1.5") for _ in range(3)]
    running = threading.Thread(target=call, args=(channel, "Sleep", b"1.5"))
    running.start()
    time.sleep(0.3)
    assert len(descriptors()) >= 8 + len(before), descriptors()

    def look():
        assert descriptors() == before, descriptors()
        call(NativeChannel(target))
        pid = fork(lambda: None)  # its own child has nothing of it either
        join([pid])

    join([fork(look)])
    running.join()
    for _, ending in long:
        assert ending.wait(8) is None
    call(channel)
    print("done")
    """
    assert run_fork(script, server.target).endswith("done\n")


def test_the_server_sees_the_parent_close_while_a_child_lives(relay):
    """The last descriptor of a connection closes it, so a child must not have one."""
    script = """
    long = start(channel, "Sleep", b"30")
    time.sleep(0.3)
    pid = os.fork()
    if not pid:
        time.sleep(20)
        os._exit(0)
    channel.close()
    assert isinstance(long[1].wait(8), errors.ClosedError)
    print("closed", flush=True)
    sys.stdin.read(1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PRELUDE + script), relay.target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE), *sys.path))},
    ) as program:
        assert program.stdout.readline() == b"closed\n"
        deadline = time.monotonic() + 8
        while relay.ended < relay.accepted and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (relay.ended, relay.accepted) == (1, 1)
        program.communicate(b"\n", timeout=20)
    assert program.returncode == 0


def test_a_child_that_touches_the_parents_calls_disturbs_none(server):
    """It may cancel them, drop them, close the channel, and end as any Python ends."""
    script = """
    running = [start(channel, "Sleep", b"1.5") for _ in range(4)]
    waiting = threading.Thread(target=call, args=(channel, "Sleep", b"1.5"))
    waiting.start()
    time.sleep(0.3)
    used = time.process_time()
    for end in (os._exit, sys.exit):
        pid = os.fork()
        if not pid:
            signal.alarm(20)
            for native, _ in running[:2]:
                native.cancel()
            try:
                call(channel)
            except errors.ClosedError:
                pass
            else:
                end(9)
            del running, native
            gc.collect()
            channel.close()
            call(NativeChannel(target))
            del channel
            gc.collect()
            end(0)
        join([pid])
    time.sleep(0.5)
    # A thread that was woken for nothing, and goes on being woken, would have been busy.
    assert time.process_time() - used < 0.3, time.process_time() - used
    for _, ending in running:
        assert ending.wait(8) is None
    waiting.join()
    relayed = descriptors()
    call(channel)
    assert descriptors() == relayed  # over a connection that was there
    print("done")
    """
    assert run_fork(script, server.target).endswith("done\n")


def test_a_lock_that_a_thread_of_the_parent_held(server):
    script = """
    running, ending = start(channel, "Sleep", b"1")
    crowd = [start(channel, "Sleep", b"1") for _ in range(40)]
    time.sleep(0.2)
    # At the fork, as if a thread were in the middle of starting a call.
    channel._threads._lock.acquire()

    def child():
        running.cancel()
        crowd[-1][0].cancel()
        channel.close()
        call(NativeChannel(target))

    pid = fork(child)
    channel._threads._lock.release()
    join([pid])
    for _, ending in crowd:
        assert ending.wait(8) is None
    print("done")
    """
    assert run_fork(script, server.target).endswith("done\n")


def test_children_that_end_as_programs_end(relay):
    """Destructors, exit handlers and all: the parent's idle connection is still the same one."""
    script = """
    pids = []
    for _ in range(8):
        pid = os.fork()
        if not pid:
            signal.alarm(20)
            sys.exit(0)
        pids.append(pid)
    join(pids)
    for _ in range(10):
        call(channel)
    print("done")
    """
    assert run_fork(script, relay.target).endswith("done\n")
    assert relay.accepted == 1


def test_children_of_multiprocessing(server):
    script = """
    def work(number):
        mine = NativeChannel(target)
        for _ in range(5):
            call(mine, message=bytes([number]) * 200_000)
        return number

    context = multiprocessing.get_context("fork")
    long = start(channel, "Sleep", b"1")
    with context.Pool(4) as pool:
        assert pool.map(work, range(16)) == list(range(16))
    assert long[1].wait(8) is None
    call(channel)
    print("done")
    """
    assert run_fork(script, server.target).endswith("done\n")


def test_a_fork_in_the_middle_of_a_call(server):
    """A signal's handler runs while the call waits, on its thread, and may fork."""
    script = """
    pids = []

    def handler(number, frame):
        pid = os.fork()
        if pid:
            pids.append(pid)
        else:
            raise InterruptedError

    signal.signal(signal.SIGUSR1, handler)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    try:
        call(channel, "Sleep", b"1")
    except InterruptedError:
        call(NativeChannel(target))
        os._exit(0)
    join(pids)
    assert len(pids) == 1
    call(channel)

    # One that goes on with the call instead is told.
    def handler(number, frame):
        pid = os.fork()
        if pid:
            pids.append(pid)

    signal.signal(signal.SIGUSR1, handler)
    pids.clear()
    mother = os.getpid()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    try:
        call(channel, "Sleep", b"1")
    except errors.ClosedError:
        assert os.getpid() != mother
        os._exit(0)
    join(pids)
    assert len(pids) == 1
    call(channel)
    print("done")
    """
    assert run_fork(script, server.target).endswith("done\n")


def test_children_of_children(server):
    script = """
    def generation(left):
        mine = NativeChannel(target)
        call(mine)
        long = start(mine, "Sleep", b"0.3")
        if left:
            join([fork(lambda: generation(left - 1)) for _ in range(2)])
        call(mine)
        assert long[1].wait(8) is None
        mine.close()

    generation(3)
    call(channel)
    print("done")
    """
    assert run_fork(script, server.target).endswith("done\n")


def test_children_that_call_over_a_unix_socket(tmp_path):
    target = f"unix:{tmp_path}/socket"
    server = EchoServer(target)
    script = """
    join([fork(child) for _ in range(8)])
    call(channel)
    print("done")
    """
    assert run_fork(script, target).endswith("done\n")
    server.stop()
