"""The grpcio channel around fork: children call, parents are not disturbed, and nothing hangs."""

from __future__ import annotations

import contextlib
import socket
import threading

import grpc
import pytest
from echo_server import EchoServer
from support.forked_children import run_forking
from support.interpreter import run_and_hear, run_python

# Each script runs in an interpreter of its own. A child that hangs ends by itself after a while.
PRELUDE = """
    import multiprocessing, os, signal, sys, threading, time
    from support.channel_ends import Answer, Ending, Message
    from support.waiting import until
    from support.forked_children import fork, join
    from triton_fast import errors
    from triton_fast.channels.grpcio import fork as grpc_fork
    from triton_fast.channels.base import CallOptions
    from triton_fast.channels.grpcio.channel import GrpcChannel
    from triton_fast.options.tls import TLS

    assert grpc_fork._FORK_PATIENCE_S == 1.0  # as it is documented
    # Which is enough for calls that are over soon, unless the machine is busy.
    grpc_fork._FORK_PATIENCE_S = 1000
    target = sys.argv[1]

    def call(channel, method="Echo", message=b"x" * 1000, seconds=40):
        answer = Answer()
        options = CallOptions(deadline_ns=time.monotonic_ns() + int(seconds * 1e9))
        channel.call("/test.Echo/" + method, Message(message), answer, options)
        assert answer.bytes == {"Hold": b"held", "Saw": b"yes"}.get(method, message)

    def started(channel, message=b"y" * 1000):
        answer, ending = Answer(), Ending()
        channel.start("/test.Echo/Echo", Message(message), answer, CallOptions(), ending)
        error = ending.wait(40)
        if error:
            raise error
        assert answer.bytes == message

    def child():
        for _ in range(2):
            mine = GrpcChannel(target)
            for _ in range(3):
                call(mine)
                started(mine)
            mine.close()

    channel = GrpcChannel(target)
    call(channel)
    started(channel)
"""


def run_forks(script: str, *arguments: str, **environment: str) -> str:
    output, _ = run_forking(lambda: run_and_hear(script, *arguments, timeout=100, **environment))
    return output


def run_fork(script: str, target: str, *arguments: str, **environment: str) -> str:
    return run_forks(PRELUDE + script, target, *arguments, **environment)


def test_eight_children_call_while_the_parent_goes_on(echo_server):
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


@pytest.mark.parametrize("switch", ["", "1"])
def test_forking_while_other_threads_call(echo_server, switch):
    script = """
    stop, failed = threading.Event(), []
    ways = (call, call, started, started, lambda c: call(c, message=bytes(3_000_000)))
    calls = [0] * len(ways)

    def hammer(number):
        try:
            while not stop.is_set():
                ways[number](channel)
                calls[number] += 1
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=hammer, args=(n,), daemon=True) for n in range(len(ways))]
    for thread in threads:
        thread.start()
    for _ in range(4):
        # They go on after each fork, all of them.
        before = list(calls)
        until(lambda: failed or all(now > then for now, then in zip(calls, before)))
        join([fork(child) for _ in range(8)])
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == [], failed
    channel.close()
    print("done")
    """
    environment = {"GRPC_ENABLE_FORK_SUPPORT": switch} if switch else {}
    assert run_fork(script, echo_server.target, **environment).endswith("done\n")


def test_a_call_that_outlasts_the_fork_costs_the_child_its_channel(echo_server):
    script = """
    long = threading.Thread(target=call, args=(channel, "Hold"))
    long.start()
    call(channel, "Saw", b"held 1")

    def child():
        mine = GrpcChannel(target)
        for way in (call, started):
            try:
                way(mine)
            except errors.FailedPrecondition as error:
                assert "1 call was running" in str(error) and "spawn" in str(error), error
            else:
                raise AssertionError("called")
        mine.close()
        join([fork(grandchild)])

    def grandchild():
        try:
            call(GrpcChannel(target))
        except errors.FailedPrecondition:
            return
        raise AssertionError("called")

    grpc_fork._FORK_PATIENCE_S = 0.5
    began = time.monotonic()
    pids = [fork(child)]
    assert time.monotonic() - began > 0.49
    # Once is enough: the same call does not hold up the next forks.
    grpc_fork._FORK_PATIENCE_S = 1000
    pids += [fork(child) for _ in range(7)]
    join(pids)
    call(channel, "LetGo")
    long.join()
    # ... and it is no matter any more once it is over.
    def usable():
        call(GrpcChannel(target))
    join([fork(usable)])
    print("done")
    """
    assert run_fork(script, echo_server.target).endswith("done\n")


@pytest.mark.parametrize("switch", ["0", "False"])
def test_without_fork_support_the_child_says_so(echo_server, switch):
    script = """
    def child():
        try:
            call(GrpcChannel(target))
        except errors.FailedPrecondition as error:
            assert "GRPC_ENABLE_FORK_SUPPORT" in str(error), error
        else:
            raise AssertionError("called")
    join([fork(child)])
    call(channel)
    print("done")
    """
    assert run_fork(script, echo_server.target, GRPC_ENABLE_FORK_SUPPORT=switch).endswith("done\n")


def test_an_inherited_channel_is_left_alone(echo_server):
    script = """
    def child():
        for way in (call, started):
            try:
                way(channel)
            except errors.ClosedError as error:
                assert "forked" in str(error), error
            else:
                raise AssertionError("called")
        channel.close()
        globals().pop("channel")
        import gc; gc.collect()
        call(GrpcChannel(target))
    join([fork(child) for _ in range(8)])
    call(channel)
    channel.close()
    print("done")
    """
    assert run_fork(script, echo_server.target).endswith("done\n")


def test_a_channel_that_was_not_opened_belongs_to_whoever_opens_it(echo_server):
    script = """
    closed = GrpcChannel(target)
    closed.close()
    unopened = GrpcChannel(target)

    def child():
        call(unopened)
        try:
            call(closed)
        except errors.ClosedError:
            return
        raise AssertionError("called")

    join([fork(child) for _ in range(2)])
    call(unopened)
    print("done")
    """
    assert run_fork(script, echo_server.target).endswith("done\n")


def test_forking_after_a_large_call(echo_server):
    script = """
    call(channel, message=bytes(33 << 20))
    started(channel, message=bytes(33 << 20))
    join([fork(child)])  # there is nothing to wait for
    print("done")
    """
    assert run_fork(script, echo_server.target).endswith("done\n")


def test_a_fork_handler_that_calls(echo_server):
    """Registered before the channel's own, so that it runs while that one has not yet."""
    prelude, first_use, _ = PRELUDE.partition("    channel = GrpcChannel(target)\n")
    script = """
    failed = []
    def in_child():
        try:
            call(GrpcChannel(target))
        except BaseException as error:
            failed.append(error)
    os.register_at_fork(after_in_child=in_child)
    channel = GrpcChannel(target)
    call(channel)
    def check():
        assert failed == [], failed
    join([fork(check) for _ in range(4)])
    call(channel)
    print("done")
    """
    assert first_use
    assert run_forks(prelude + script, echo_server.target).endswith("done\n")


def test_multiprocessing(echo_server):
    script = """
    def work(n):
        child()
        return n

    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        call(channel)
        assert pool.map(work, range(16)) == list(range(16))
    started(channel)
    processes = [context.Process(target=child) for _ in range(4)]
    for process in processes:
        process.start()
        call(channel)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    print("done")
    """
    assert run_fork(script, echo_server.target).endswith("done\n")


@pytest.mark.parametrize("busy", [False, True])
def test_children_that_leave_by_sys_exit(echo_server, busy):
    """The interpreter's own end, with all that was inherited, neither hangs nor crashes."""
    script = """
    if sys.argv[2] == "True":
        long = threading.Thread(target=call, args=(channel, "Hold"))
        long.start()
        call(channel, "Saw", b"held 1")
        grpc_fork._FORK_PATIENCE_S = 0.2
    pids = []
    for _ in range(8):
        pid = os.fork()
        if not pid:
            signal.alarm(60)
            if sys.argv[2] == "False":
                child()
            sys.exit(0)
        pids.append(pid)
    join(pids)
    call(channel, "LetGo")
    print("done")
    """
    assert run_fork(script, echo_server.target, str(busy)).endswith("done\n")


def test_deadlines_and_large_messages_in_a_child(echo_server):
    script = """
    def child():
        mine = GrpcChannel(target)
        call(mine, message=bytes(range(256)) * 4096)
        call(mine, message=bytes(33 << 20))
        try:
            call(mine, "Hold", seconds=0.3)
        except errors.DeadlineExceeded:
            return
        raise AssertionError("answered")
    join([fork(child) for _ in range(2)])
    print("done")
    """
    assert run_fork(script, echo_server.target).endswith("done\n")


def test_a_call_waits_for_a_fork_no_longer_than_its_deadline(echo_server):
    """The fork waits for a call that this test lets go when the script says so."""
    script = """
    long = threading.Thread(target=call, args=(channel, "Hold"))
    long.start()
    call(channel, "Saw", b"held 1")
    forking = threading.Thread(target=lambda: join([fork(lambda: None)]))
    forking.start()
    until(lambda: grpc_fork.gate.forks)
    for way in ("call", "start"):
        try:
            if way == "call":
                call(channel, seconds=0.5)
            else:
                ending = Ending()
                deadline = time.monotonic_ns() + 500_000_000
                channel.start("/test.Echo/Echo", Message(), Answer(),
                              CallOptions(deadline_ns=deadline), ending)
                raise ending.wait()
        except errors.DeadlineExceeded as error:
            assert "forked" in str(error), error
        else:
            raise AssertionError("called")
    held_up = threading.Thread(target=call, args=(channel,))
    held_up.start()
    socket.create_connection(("127.0.0.1", int(sys.argv[2]))).close()
    for thread in (held_up, forking, long):
        thread.join()
    print("done")
    """
    with socket.create_server(("127.0.0.1", 0)) as bell:

        def let_go():
            with contextlib.suppress(OSError):  # nobody rang
                bell.accept()[0].close()
            echo_server.let_go()

        bell.settimeout(100)
        letting_go = threading.Thread(target=let_go)
        letting_go.start()
        port = str(bell.getsockname()[1])
        try:
            assert run_fork("    import socket\n" + script, echo_server.target, port).endswith(
                "done\n"
            )
        finally:
            with contextlib.suppress(OSError):
                bell.shutdown(socket.SHUT_RDWR)
            letting_go.join()


def test_children_under_tls(authority, tmp_path):
    root, sign = authority
    own = sign("server", "localhost")
    (tmp_path / "root.pem").write_bytes(root)
    server = EchoServer(credentials=grpc.ssl_server_credentials([(own.key, own.certificate)]))
    prelude = PRELUDE.replace("GrpcChannel(target)", "GrpcChannel(target, tls=TLS(sys.argv[2]))")
    script = """
    join([fork(child) for _ in range(8)])
    call(channel)
    print("done")
    """
    try:
        root_file = str(tmp_path / "root.pem")
        output = run_forks(prelude + script, server.target, root_file)
        assert output.endswith("done\n")
    finally:
        server.stop()


def test_whose_doing_it_is_that_a_child_hangs():
    """A child that waits in grpcio's code is told apart from one that waits in ours."""
    script = """
    import sys
    from support.forked_children import fork, join
    too_late = "import signal\\nsignal.raise_signal(signal.SIGALRM)"
    work = compile(too_late, sys.argv[1], "exec")
    join([fork(lambda: exec(work))])
    """
    assert run_python(script, "/lib/grpc/_channel.py") == "a child is stuck in grpcio\n"
    with pytest.raises(AssertionError, match="/triton_fast/channel.py"):
        run_python(script, "/triton_fast/channel.py")
    with pytest.raises(AssertionError, match="each time"):
        run_forks(script, "/lib/grpc/_channel.py")
