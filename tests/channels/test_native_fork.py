"""The native channel around fork: children call, the parent's calls go on, nothing is shared."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from echo_server import EchoServer
from support.interpreter import environment, run_python
from support.waiting import until

pytestmark = pytest.mark.native

# Each script runs in an interpreter of its own. A child that hangs ends by itself after a while.
PRELUDE = """
    import gc, multiprocessing, os, signal, socket, sys, threading, time, warnings
    from support import process
    from support.channel_ends import Answer, Ending, Message
    from echo_server import Relay
    from support.waiting import until
    from support.forked_children import fork, join
    from triton_fast import errors
    from triton_fast.channels.base import CallOptions
    from triton_fast.channels.native.channel import NativeChannel

    # Python 3.12 and later warn of what is tested here.
    warnings.filterwarnings("ignore", "(?s).*fork.*", DeprecationWarning)
    target = sys.argv[1]

    def call(channel, method="Echo", message=b"x" * 1000, seconds=40):
        answer = Answer()
        options = CallOptions(deadline_ns=time.monotonic_ns() + int(seconds * 1e9))
        channel.call("/test.Echo/" + method, Message(message), answer, options)
        assert answer.bytes == {"Hold": b"held", "Saw": b"yes"}.get(method, message)

    def start(channel, method="Echo", message=b"y" * 1000):
        answer, ending = Answer(), Ending()
        running = channel.start("/test.Echo/" + method, Message(message), answer, CallOptions(),
                                ending)
        return running, ending

    def started(channel):
        error = start(channel)[1].wait(40)
        if error:
            raise error

    def child():
        for _ in range(2):
            mine = NativeChannel(target)
            for _ in range(3):
                call(mine)
                started(mine)
            mine.close()

    def descriptors():
        kinds = process.descriptors().values()
        return [kind for kind in kinds if "socket" in kind or "eventfd" in kind]

    before = descriptors()
    channel = NativeChannel(target)
    call(channel)
    started(channel)
"""


def run_fork(script: str, target: str) -> str:
    return run_python(PRELUDE + script, target, timeout=100)


def test_eight_children_call_at_once_while_the_parent_goes_on(echo_server):
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
    assert run_fork(script, echo_server.target).endswith("done\n")


def test_forking_while_other_threads_call(echo_server):
    """Short calls, calls that outlast the fork, new connections, new channels: nothing is held up
    for the fork, and none of it is disturbed by the children, nor they by it."""
    script = """
    stop, failed = threading.Event(), []

    def anew(_):
        fresh = NativeChannel(target)
        call(fresh)
        fresh.close()

    ways = (call, call, started, started, anew, anew,
            lambda c: call(c, message=bytes(3_000_000)))
    calls = [0] * len(ways)

    def hammer(number):
        try:
            while not stop.is_set():
                ways[number](channel)
                calls[number] += 1
        except BaseException as error:
            failed.append(error)

    # No fork waits for this one, which ends when all of them are over.
    long = threading.Thread(target=call, args=(channel, "Hold"), kwargs={"seconds": 90})
    threads = [threading.Thread(target=hammer, args=(n,)) for n in range(len(ways))]
    for thread in (long, *threads):
        thread.start()
    call(channel, "Saw", b"held 1")
    for _ in range(6):
        # They go on after each fork, all of them.
        before_it = list(calls)
        until(lambda: failed or all(now > then for now, then in zip(calls, before_it)))
        join([fork(child) for _ in range(8)])
    stop.set()
    assert long.is_alive()
    call(channel, "LetGo")
    for thread in (long, *threads):
        thread.join()
    assert failed == [], failed
    channel.close()
    print("done")
    """
    target = f"localhost:{echo_server.port}"  # a name: forks come while others look it up
    assert run_fork(script, target).endswith("done\n")


def test_a_child_keeps_nothing_of_the_parents_open(echo_server):
    script = """
    long = [start(channel, "Hold") for _ in range(3)]
    running = threading.Thread(target=call, args=(channel, "Hold"))
    running.start()
    call(channel, "Saw", b"held 4")
    assert len(descriptors()) >= 8 + len(before), descriptors()

    def look():
        assert descriptors() == before, descriptors()
        call(NativeChannel(target))
        pid = fork(lambda: None)  # its own child has nothing of it either
        join([pid])

    join([fork(look)])
    call(channel, "LetGo")
    running.join()
    for _, ending in long:
        assert ending.wait() is None
    call(channel)
    print("done")
    """
    assert run_fork(script, echo_server.target).endswith("done\n")


def test_the_server_sees_the_parent_close_while_a_child_lives(echo_server, relay):
    """The last descriptor of a connection closes it, so a child must not have one."""
    script = """
    long = start(channel, "Hold")
    assert sys.stdin.read(1)  # the server has it
    pid = os.fork()
    if not pid:
        signal.alarm(100)
        signal.pause()
    channel.close()
    assert isinstance(long[1].wait(), errors.ClosedError)
    print("closed", flush=True)
    sys.stdin.read(1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    """
    program = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PRELUDE + script), relay.target],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        bufsize=0,
        start_new_session=True,
    )
    try:
        assert echo_server.saw("held")
        program.stdin.write(b"h")
        assert program.stdout.readline() == b"closed\n"
        until(lambda: relay.ended >= relay.accepted)
        assert (relay.ended, relay.accepted) == (1, 1)
        program.communicate(b"\n", timeout=60)
        assert program.returncode == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)  # and the child
        program.communicate()


def test_a_child_that_touches_the_parents_calls_disturbs_none(echo_server):
    """It may cancel them, drop them, close the channel, and end as any Python ends."""
    script = """
    running = [start(channel, "Hold") for _ in range(4)]
    waiting = threading.Thread(target=call, args=(channel, "Hold"))
    waiting.start()
    call(channel, "Saw", b"held 5")
    for end in (os._exit, sys.exit):
        pid = os.fork()
        if not pid:
            signal.alarm(60)
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
    # A thread that was woken for nothing, and goes on being woken, would be busy.
    used = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - used < 0.2, time.process_time() - used
    call(channel, "LetGo")
    for _, ending in running:
        assert ending.wait() is None
    waiting.join()
    relayed = descriptors()
    call(channel)
    assert descriptors() == relayed  # over a connection that was there
    print("done")
    """
    assert run_fork(script, echo_server.target).endswith("done\n")


def test_a_lock_that_a_thread_of_the_parent_held(echo_server):
    script = """
    running, ending = start(channel, "Hold")
    crowd = [start(channel, "Hold") for _ in range(40)]
    call(channel, "Saw", b"held 32")  # and the others wait for a thread
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
    call(channel, "LetGo")
    call(channel, "Saw", b"held 41")
    call(channel, "LetGo")
    for ending in (ending, *(ending for _, ending in crowd)):
        assert ending.wait() is None
    print("done")
    """
    assert run_fork(script, echo_server.target).endswith("done\n")


def test_children_that_end_as_programs_end(relay):
    """Destructors, exit handlers and all: the parent's idle connection is still the same one."""
    script = """
    pids = []
    for _ in range(8):
        pid = os.fork()
        if not pid:
            signal.alarm(60)
            sys.exit(0)
        pids.append(pid)
    join(pids)
    for _ in range(10):
        call(channel)
    print("done")
    """
    assert run_fork(script, relay.target).endswith("done\n")
    assert relay.accepted == 1


def test_children_of_multiprocessing(echo_server):
    script = """
    def work(number):
        mine = NativeChannel(target)
        for _ in range(5):
            call(mine, message=bytes([number]) * 200_000)
        return number

    context = multiprocessing.get_context("fork")
    long = start(channel, "Hold")
    call(channel, "Saw", b"held 1")
    with context.Pool(4) as pool:
        assert pool.map(work, range(16)) == list(range(16))
    call(channel, "LetGo")
    assert long[1].wait() is None
    call(channel)
    print("done")
    """
    assert run_fork(script, echo_server.target).endswith("done\n")


def test_a_fork_in_the_middle_of_a_call(echo_server):
    """A signal's handler runs while the call waits, on its thread, and may fork."""
    script = """
    pids = []

    def signal_call(number):
        other = NativeChannel(target)
        call(other, "Saw", b"held %d" % number)
        os.kill(os.getpid(), signal.SIGUSR1)
        until(lambda: pids)
        call(other, "LetGo")

    def handler(number, frame):
        pid = os.fork()
        if pid:
            pids.append(pid)
        else:
            raise InterruptedError

    signal.signal(signal.SIGUSR1, handler)
    threading.Thread(target=signal_call, args=(1,)).start()
    try:
        call(channel, "Hold")
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
    threading.Thread(target=signal_call, args=(2,)).start()
    try:
        call(channel, "Hold")
    except errors.ClosedError:
        assert os.getpid() != mother
        os._exit(0)
    join(pids)
    assert len(pids) == 1
    call(channel)
    print("done")
    """
    assert run_fork(script, echo_server.target).endswith("done\n")


def test_children_of_children(echo_server):
    script = """
    def generation(left):
        mine = NativeChannel(target)
        call(mine)
        long = start(mine, "Hold")
        if left:
            join([fork(lambda: generation(left - 1)) for _ in range(2)])
        call(mine)
        until(lambda: call(mine, "LetGo") or long[1].errors)
        assert long[1].wait() is None
        mine.close()

    generation(3)
    call(channel)
    print("done")
    """
    assert run_fork(script, echo_server.target).endswith("done\n")


def test_children_that_call_over_a_unix_socket(tmp_path):
    target = f"unix:{tmp_path}/socket"
    server = EchoServer(target)
    script = """
    join([fork(child) for _ in range(8)])
    call(channel)
    print("done")
    """
    try:
        assert run_fork(script, target).endswith("done\n")
    finally:
        server.stop()
