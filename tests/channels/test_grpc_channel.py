"""The grpcio channel against servers of plain bytes: what it carries, and how it ends."""

from __future__ import annotations

import contextlib
import gc
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
from channel_calls import call, path, start
from echo_server import EchoServer
from support.channel_ends import Answer, Ending, Message
from support.interpreter import environment, run_python
from support.process import held
from support.waiting import until, within

from triton_fast import errors
from triton_fast.channels.base import CallOptions
from triton_fast.channels.grpcio import channel as grpc_channel
from triton_fast.channels.grpcio.channel import GrpcChannel, Keepalive
from triton_fast.options.tls import TLS

ECHO_SERVER = Path(__file__).with_name("echo_server.py")
LARGE = grpc_channel._LARGE_REQUEST
NO_OPTIONS = CallOptions()


def both_ways(channel, method: str, message: bytes = b"", **options) -> list[BaseException]:
    """Return the errors of a call that fails, from call and from start.

    They need not say the same where it is grpcio that describes them.
    """
    with pytest.raises(errors.TritonFastError) as raised:
        call(channel, method, message, **options)
    _, answer, ending = start(channel, method, message, **options)
    error = ending.wait()
    assert error is not None
    assert len(ending.errors) == 1
    assert answer.told == []
    return [raised.value, error]


# --- what is carried ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 16_384, LARGE - 1, LARGE])
def test_bytes_go_there_and_come_back(grpc_channel, size):
    message = bytes(range(251)) * (size // 251 + 1)
    message = message[:size]
    assert call(grpc_channel, "Echo", message) == message
    _, answer, ending = start(grpc_channel, "Echo", message)
    assert ending.wait() is None
    assert answer.bytes == message
    assert answer.told == ["begin", "feed", "finish"]


def test_answers_come_on_another_thread(grpc_channel, echo_server):
    _, _, ending = start(grpc_channel, "Hold")  # or it might be over before it can be watched
    assert echo_server.saw("held")
    echo_server.let_go()
    assert ending.wait() is None
    assert ending.thread != threading.get_ident()
    assert ending.errors == [None]


def holders(message: Message) -> int:
    """Count the references to a message's bytes, in a frame that adds always the same."""
    return sys.getrefcount(message.message)


@pytest.mark.parametrize("size", [100_000, LARGE])
def test_a_message_is_rendered_once_and_not_kept(grpc_channel, size):
    message = Message(b"x" * size)
    before = holders(message)
    for _ in range(2):
        grpc_channel.call(path("Echo"), message, Answer(), NO_OPTIONS)
        ending = Ending()
        grpc_channel.start(path("Echo"), message, Answer(), NO_OPTIONS, ending)
        ending.wait()
        until(lambda: holders(message) <= before)  # grpcio's thread is about to drop it
    assert message.rendered == 4


def test_an_error_that_is_kept_does_not_keep_the_request(grpc_channel):
    message = Message(b"5:" + b"x" * 500)
    before = holders(message)
    with pytest.raises(errors.NotFound) as raised:
        grpc_channel.call(path("Status"), message, Answer(), NO_OPTIONS)
    assert isinstance(raised.value.__cause__, grpc.RpcError)
    assert raised.value.__cause__.__traceback__ is None
    gc.collect()
    after = holders(message)
    assert after == before


def test_headers_arrive_as_given(grpc_channel):
    headers = (("authorization", "Bearer abc"), ("trace-bin", b"\x00\xff\n"), ("twice", "1"))
    headers += (("twice", "2"),)
    told = json.loads(call(grpc_channel, "Headers", headers=headers))
    wanted = [["authorization", "Bearer abc"], ["trace-bin", [0, 255, 10]]]
    wanted += [["twice", "1"], ["twice", "2"]]
    assert [entry for entry in told if entry in wanted] == wanted
    _, answer, ending = start(grpc_channel, "Headers", headers=headers)
    assert ending.wait() is None
    assert [entry for entry in json.loads(answer.bytes) if entry in wanted] == wanted


@pytest.mark.parametrize(
    "header", [("authorization", "secret\n"), ("Secret", "x"), ("authorization", 5), ("a-bin", "x")]
)
def test_a_header_that_cannot_be_sent_is_refused_without_its_value(grpc_channel, header):
    for error in both_ways(grpc_channel, "Echo", headers=(header,), call="ModelInfer"):
        assert type(error) is errors.InvalidOption
        assert "ModelInfer" in str(error)
        assert header[0] in str(error)
        assert "secret" not in f"{error!r} {error.__cause__!r}"
    assert call(grpc_channel, "Echo", b"still usable") == b"still usable"


@pytest.mark.parametrize(
    ("compression", "size"), [("gzip", 1 << 20), ("deflate", 1 << 20), ("gzip", LARGE)]
)
def test_compression_shrinks_what_is_sent(open_channel, relay, compression, size):
    channel = open_channel(relay.target)
    message = bytes(size)
    assert call(channel, "Echo", message, compression=compression) == message
    assert 0 < relay.bytes_up < size // 50
    _, answer, ending = start(channel, "Echo", message, compression=compression)
    assert ending.wait() is None
    assert answer.bytes == message
    assert 0 < relay.bytes_up < size // 25


def test_without_compression_everything_is_sent(open_channel, relay):
    assert call(open_channel(relay.target), "Echo", bytes(1 << 20)) == bytes(1 << 20)
    assert relay.bytes_up > 1 << 20


def test_many_threads_share_a_channel(grpc_channel):
    wrong = []

    def work(number: int) -> None:
        for n in range(40):
            message = f"{number}.{n}".encode() * (1 + n * 50)
            if n % 4:
                answer = call(grpc_channel, "Echo", message)
            else:
                _, incoming, ending = start(grpc_channel, "Echo", message)
                ending.wait()
                answer = incoming.bytes
            if answer != message:
                wrong.append((number, n))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_every_channel_has_a_connection_of_its_own(open_channel, relay):
    for _ in range(3):
        call(open_channel(relay.target), "Echo")
    assert relay.accepted == 3


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [code for code in errors.StatusCode if code])
def test_each_status_has_its_class(grpc_channel, number):
    message = f"{number}:what the server said".encode()
    for error in both_ways(grpc_channel, "Status", message, call="Model X"):
        assert type(error) is errors._BY_STATUS[number]
        assert error.status is number
        assert error.message == "what the server said"
        assert (error.call, error.target) == ("Model X", grpc_channel.target)
        assert (
            str(error) == f"Model X at {grpc_channel.target}: {number.name}: what the server said"
        )


def test_a_traceback_for_a_message_arrives_whole(grpc_channel):
    # 100 kB, where grpcio stops at 8 KiB; and not ASCII, which triples in a header.
    details = "Zeile 1\nÜbel: " + "ä" * 50_000
    for error in both_ways(grpc_channel, "Status", b"13:" + details.encode()):
        assert type(error) is errors.Internal
        assert error.message == details


@pytest.mark.parametrize("fail_in", ["begin", "feed", "finish"])
@pytest.mark.parametrize("kind", [errors.WireError, errors.InvalidTensor, MemoryError])
def test_what_the_parser_raises_passes_unchanged(grpc_channel, fail_in, kind):
    planted = kind("field 6 is torn")
    with pytest.raises(kind) as raised:
        grpc_channel.call(path("Echo"), Message(b"xy"), Answer(fail_in, planted), NO_OPTIONS)
    assert raised.value is planted
    ending = Ending()
    grpc_channel.start(path("Echo"), Message(b"xy"), Answer(fail_in, planted), NO_OPTIONS, ending)
    assert ending.wait() is planted
    assert ending.errors == [planted]
    assert call(grpc_channel, "Echo", b"still usable") == b"still usable"


def test_what_rendering_raises_passes_unchanged(grpc_channel):
    class Broken(Message):
        def render(self) -> bytes:
            raise planted

    planted = errors.InvalidTensor("no")
    ending = Ending()
    with pytest.raises(errors.InvalidTensor) as raised:
        grpc_channel.call(path("Echo"), Broken(), Answer(), NO_OPTIONS)
    assert raised.value is planted
    with pytest.raises(errors.InvalidTensor) as raised:
        grpc_channel.start(path("Echo"), Broken(), Answer(), NO_OPTIONS, ending)
    assert raised.value is planted
    assert ending.errors == []


def test_no_server_there(open_channel, nowhere):
    for error in both_ways(open_channel(nowhere), "Echo", call="ServerLive"):
        assert type(error) is errors.Unavailable
        assert str(error).startswith(f"ServerLive at {nowhere}: UNAVAILABLE: ")
        assert "check that the server runs" in error.message
        assert "8001" in error.message


def test_no_socket_there(open_channel, tmp_path):
    for error in both_ways(open_channel(f"unix:{tmp_path}/none.sock"), "Echo"):
        assert type(error) is errors.Unavailable
        assert "none.sock" in error.message
        assert "check that the server runs" in error.message
        assert "8001" not in error.message


def test_no_such_host(open_channel):
    # How long it takes to find that out, and what is said then, is the resolver's affair.
    channel = open_channel("no-such-host.invalid:8001")
    for error in both_ways(channel, "Echo", deadline_ns=within(30)):
        assert isinstance(error, errors.Unavailable | errors.DeadlineExceeded)
        assert "no-such-host.invalid" in str(error)


def test_the_advice_names_a_proxy(open_channel, monkeypatch, nowhere):
    monkeypatch.setenv("http_proxy", f"http://{nowhere}")
    channel = open_channel(nowhere.replace("127.0.0.1", "localhost"))
    with pytest.raises(errors.Unavailable, match="the proxy in http_proxy"):
        call(channel, "Echo")


def test_something_else_answers(open_channel):
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        try:
            while True:
                connection, _ = listener.accept()
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                connection.close()
        except OSError:
            return

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        channel = open_channel(f"127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(errors.Unavailable, match="8000 is HTTP"):
            call(channel, "Echo", deadline_ns=within(30))
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(30)


def answered_at_last(channel) -> None:
    """Call until there is an answer: how many calls it tells of a lost server is grpcio's affair.

    It may start some on a connection before it has seen the end of it, and fails those that come
    while it waits to connect again.
    """

    def answered() -> bool:
        with contextlib.suppress(errors.Unavailable):
            return call(channel, "Echo", b"again") == b"again"
        return False

    until(answered)


@pytest.mark.parametrize("size", [1000, LARGE])
def test_the_connection_breaks_during_a_call(open_channel, relay, echo_server, size):
    channel = open_channel(relay.target)
    call(channel, "Echo")
    _, answer, ending = start(channel, "Hold", bytes(size))
    cutting = threading.Thread(target=lambda: echo_server.saw("held", 2) and relay.cut())
    cutting.start()
    with pytest.raises(errors.Unavailable) as raised:
        call(channel, "Hold", bytes(size))
    error = ending.wait()
    assert type(error) is errors.Unavailable
    assert answer.told == []
    for message in (raised.value.message, error.message):
        assert "check that the server runs" not in message
    answered_at_last(channel)
    cutting.join()


def test_the_server_dies_during_a_call(open_channel):
    process = subprocess.Popen(
        [sys.executable, str(ECHO_SERVER), "127.0.0.1:0"],
        env=environment(),
        stdout=subprocess.PIPE,
    )
    try:
        port = int(process.stdout.readline())
        channel = open_channel(f"127.0.0.1:{port}")
        _, answer, ending = start(channel, "Hold")
        assert call(channel, "Saw", b"held 1") == b"yes"
        process.kill()
        assert type(ending.wait()) is errors.Unavailable
        assert answer.told == []
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_restarted_server_is_found_again(open_channel, tmp_path):
    target = f"unix:{tmp_path}/socket"  # a port might be another's by then
    first = EchoServer(target)
    channel = open_channel(target)
    call(channel, "Echo")
    first.stop()
    with pytest.raises(errors.Unavailable):
        call(channel, "Echo")
    second = EchoServer(target)
    try:
        answered_at_last(channel)
    finally:
        second.stop()
    # Soon, also after it was away for minutes; that it goes by this is grpcio's affair.
    assert dict(channel._endpoint.options)["grpc.max_reconnect_backoff_ms"] == 1000


# --- deadlines, cancellation, signals -------------------------------------------------------------


@pytest.mark.parametrize("size", [10, LARGE])
def test_a_deadline_ends_the_call_and_the_server_is_told(grpc_channel, echo_server, size):
    message = bytes(size)

    def blocking(deadline_ns: int) -> BaseException:
        with pytest.raises(errors.DeadlineExceeded) as raised:
            call(grpc_channel, "Hold", message, deadline_ns=deadline_ns, call="Model X")
        return raised.value

    def started(deadline_ns: int) -> BaseException:
        _, answer, ending = start(
            grpc_channel, "Hold", message, deadline_ns=deadline_ns, call="Model X"
        )
        error = ending.wait(60)
        assert answer.told == []
        return error

    for way in (blocking, started):
        echo_server.counts.clear()
        for seconds in (0.4, 4, 40):  # until one is long enough for the call to arrive
            error = way(within(seconds))
            assert type(error) is errors.DeadlineExceeded
            assert isinstance(error, TimeoutError)
            assert error.call == "Model X"
            if echo_server.counts["held"]:
                break
        assert echo_server.saw("given up")


def test_a_deadline_that_has_passed_sends_nothing(grpc_channel, echo_server):
    call(grpc_channel, "Echo")
    late = time.monotonic_ns() - 1
    for error in both_ways(grpc_channel, "Size", b"1", deadline_ns=late, call="Model X"):
        assert type(error) is errors.DeadlineExceeded
        assert error.call == "Model X"
        assert error.target == grpc_channel.target
    call(grpc_channel, "Echo")
    assert echo_server.calls == ["Echo", "Echo"]


def test_a_deadline_while_nobody_answers(open_channel):
    # A listener that never speaks HTTP/2: the connection is there, and is not.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        channel = open_channel(f"127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(errors.DeadlineExceeded):
            call(channel, "Echo", deadline_ns=within(0.2))


@pytest.mark.parametrize("size", [10, LARGE])
def test_cancelling_a_call(grpc_channel, echo_server, size):
    started, answer, ending = start(grpc_channel, "Hold", bytes(size))
    assert echo_server.saw("held")
    started.cancel()
    error = ending.wait()
    assert type(error) is errors.Cancelled
    assert echo_server.saw("given up")
    started.cancel()
    call(grpc_channel, "Echo")  # by then it would have been told again
    assert ending.errors == [error]
    assert answer.told == []


def test_cancelling_a_call_that_is_over(grpc_channel):
    started, answer, ending = start(grpc_channel, "Echo", b"x")
    assert ending.wait() is None
    started.cancel()
    assert ending.errors == [None]
    assert answer.bytes == b"x"


INTERRUPTED = """
    import os, signal, sys, threading
    from support.channel_ends import Answer, Message
    from support.waiting import until
    from triton_fast.channels.base import CallOptions
    from triton_fast.channels.grpcio.channel import GrpcChannel

    channel = GrpcChannel(sys.argv[1])
    message = bytes(int(sys.argv[2]))

    def saw(what):
        told = Answer()
        channel.call("/test.Echo/Saw", Message(what), told, CallOptions())
        return told.bytes.decode()

    def interrupt():
        saw(b"held 1")
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    try:
        interrupting.start()
        channel.call("/test.Echo/Hold", Message(message), Answer(), CallOptions())
    except KeyboardInterrupt as kept:
        error = kept
    interrupting.join()
    print("told:", saw(b"given up 1"), isinstance(error, KeyboardInterrupt))
    channel.close()
    until(lambda: threading.active_count() == 1)  # none of grpcio's stays, with the message
"""


@pytest.mark.parametrize("size", [10, LARGE])
def test_ctrl_c_ends_a_call_and_the_server_is_told(echo_server, size):
    """Though nobody answers it."""
    output = run_python(INTERRUPTED, echo_server.target, str(size))
    assert output == "told: yes True\n"


# --- closing --------------------------------------------------------------------------------------


def test_a_closed_channel_refuses_calls(open_channel):
    for used in (False, True):
        channel = open_channel()
        if used:
            call(channel, "Echo")
        channel.close()
        channel.close()
        for way in (call, start):
            with pytest.raises(errors.ClosedError, match=channel.target):
                way(channel, "Echo")
            with pytest.raises(errors.ClosedError):
                way(channel, "NeverCalledBefore")


@pytest.mark.parametrize("size", [10, LARGE])
def test_closing_ends_running_calls(open_channel, echo_server, size):
    channel = open_channel()
    message = bytes(size)
    raised = []

    def blocked() -> None:
        try:
            call(channel, "Hold", message)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=blocked) for _ in range(2)]
    for thread in threads:
        thread.start()
    _, answer, ending = start(channel, "Hold", message)
    cancelled, _, cancelled_ending = start(channel, "Hold", message)
    assert echo_server.saw("held", 4)
    cancelled.cancel()
    channel.close()
    for thread in threads:
        thread.join(30)
    assert [type(error) for error in raised] == [errors.ClosedError] * 2
    assert type(ending.wait()) is errors.ClosedError
    assert type(cancelled_ending.wait()) is errors.Cancelled
    assert answer.told == []
    assert echo_server.saw("given up", 4)


def test_closing_races_with_calls(open_channel):
    for _ in range(20):
        channel = open_channel()
        outcomes = []

        def hammer(channel=channel, outcomes=outcomes) -> None:
            try:
                while True:
                    call(channel, "Echo", b"x")
                    _, _, ending = start(channel, "Echo", b"x")
                    if error := ending.wait():
                        raise error
            except BaseException as error:
                outcomes.append(error)

        threads = [threading.Thread(target=hammer) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        channel.close()
        for thread in threads:
            thread.join(30)
        assert [type(error) for error in outcomes] == [errors.ClosedError] * 3


def test_closing_from_on_done(open_channel):
    channel = open_channel()
    _, _, other = start(channel, "Hold")
    closed = threading.Event()

    def close(error: BaseException | None) -> None:
        channel.close()
        closed.set()

    channel.start(path("Echo"), Message(), Answer(), NO_OPTIONS, close)
    assert closed.wait(30)
    assert type(other.wait()) is errors.ClosedError


def test_closing_beside_an_on_done_that_does_not_return(open_channel, monkeypatch):
    """As grpcio's own close would wait for it, for ever."""
    monkeypatch.setattr(grpc_channel, "_CLOSE_S", 0.5)
    channel = open_channel()
    _, _, other = start(channel, "Hold")
    told, returns = threading.Event(), threading.Event()

    def stay(error: BaseException | None) -> None:
        told.set()
        assert returns.wait(60)

    channel.start(path("Echo"), Message(), Answer(), NO_OPTIONS, stay)
    assert told.wait(30)
    closing = threading.Thread(target=channel.close)
    closing.start()
    closing.join(30)
    returned = not closing.is_alive()
    returns.set()
    assert returned
    assert type(other.wait()) is errors.ClosedError
    with pytest.raises(errors.ClosedError):
        call(channel, "Echo", b"x")


def test_calling_from_on_done(grpc_channel):
    seen, over = [], threading.Event()

    def chain(error: BaseException | None) -> None:
        seen.append(error)
        call(grpc_channel, "Echo", b"from on_done")
        if len(seen) < 5:
            grpc_channel.start(path("Echo"), Message(), Answer(), NO_OPTIONS, chain)
        else:
            over.set()

    grpc_channel.start(path("Echo"), Message(), Answer(), NO_OPTIONS, chain)
    assert over.wait(30)
    assert seen == [None] * 5


def test_closing_in_a_signal_handler_during_a_call(echo_server):
    script = """
        import signal, sys, os, threading
        from support.channel_ends import Answer, Message
        from triton_fast import errors
        from triton_fast.channels.base import CallOptions
        from triton_fast.channels.grpcio.channel import GrpcChannel

        channel = GrpcChannel(sys.argv[1])
        signal.signal(signal.SIGTERM, lambda *_: channel.close())

        def terminate():
            other = GrpcChannel(sys.argv[1])
            other.call("/test.Echo/Saw", Message(b"held 1"), Answer(), CallOptions())
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=terminate).start()
        try:
            channel.call("/test.Echo/Hold", Message(), Answer(), CallOptions())
        except errors.ClosedError:
            print("closed")
    """
    assert run_python(script, echo_server.target) == "closed\n"
    assert echo_server.saw("given up")


def test_nothing_is_left_open(echo_server):
    def cycle() -> None:
        channel = GrpcChannel(echo_server.target)
        call(channel, "Echo", b"x")
        _, _, ending = start(channel, "Echo", b"y")
        ending.wait()
        channel.close()

    for _ in range(3):
        cycle()
    before = held()
    for _ in range(50):
        cycle()
    # grpcio closes in the background, and may have made itself a thread or two.
    until(lambda: held() < before + 10)


def test_dropping_a_channel_closes_it(echo_server):
    channel = GrpcChannel(echo_server.target)
    call(channel, "Echo")
    _, _, ending = start(channel, "Echo")
    ending.wait()
    inner = channel._channel
    del channel
    gc.collect()
    # What is left is this test's own reference, once grpcio's thread has left the call.
    until(lambda: all(_is_frame(holder) for holder in gc.get_referrers(inner)))


def _is_frame(thing: object) -> bool:
    return type(thing).__name__ in ("frame", "cell", "list_iterator")


@pytest.mark.parametrize("way", ["idle", "future", "thread"])
def test_a_program_may_end_without_closing(echo_server, way):
    """Also during a call; and says nothing about it."""
    script = """
        import sys, threading, time
        from support.channel_ends import Answer, Ending, Message
        from triton_fast.channels.base import CallOptions
        from triton_fast.channels.grpcio.channel import GrpcChannel

        channel = GrpcChannel(sys.argv[1])
        call = ("/test.Echo/Hold", Message(), Answer(), CallOptions())
        channel.call("/test.Echo/Echo", *call[1:])
        if sys.argv[2] == "future":
            channel.start(*call, Ending())
        elif sys.argv[2] == "thread":
            threading.Thread(target=channel.call, args=call, daemon=True).start()
        if sys.argv[2] != "idle":
            channel.call("/test.Echo/Saw", Message(b"held 1"), Answer(), CallOptions())
        print("over")
    """
    assert run_python(script, echo_server.target, way, quiet=True) == "over\n"


def test_peak_memory_of_a_large_call(echo_server):
    """The request is gone from memory by the time its answer is put together."""
    script = """
        import sys
        from pathlib import Path
        from support.channel_ends import FreshMessage
        from triton_fast.channels.base import CallOptions
        from triton_fast.channels.grpcio.channel import GrpcChannel

        class Sink:
            def begin(self, byte_size): assert byte_size == size
            def feed(self, data): pass
            def finish(self): pass

        def peak():
            status = Path("/proc/self/status").read_text()
            return int(status.split("VmHWM:")[1].split()[0]) << 10

        size = 64 << 20
        channel = GrpcChannel(sys.argv[1])
        channel.call("/test.Echo/Echo", FreshMessage(size >> 6), type(
            "Ignore", (Sink,), {"begin": lambda self, n: None})(), CallOptions())
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        channel.call("/test.Echo/Echo", FreshMessage(size), Sink(), CallOptions())
        print((peak() - before) / size)
    """
    assert float(run_python(script, echo_server.target)) < 3.3


# --- options --------------------------------------------------------------------------------------


def test_options_replace_ours_one_by_one(open_channel):
    channel = open_channel(options={"grpc.max_receive_message_length": 1000})
    assert call(channel, "Size", b"900") == bytes(900)
    with pytest.raises(errors.ResourceExhausted):
        call(channel, "Size", b"1100")
    # ... and the others stay.
    assert len(call(channel, "Echo", b"x" * 500)) == 500
    kept = dict(channel._endpoint.options)
    assert kept["grpc.max_send_message_length"] == -1
    assert kept["grpc.use_local_subchannel_pool"] == 1


def test_none_leaves_an_option_to_grpcio(open_channel):
    channel = open_channel(options=[("grpc.max_receive_message_length", None)])
    with pytest.raises(errors.ResourceExhausted):
        call(channel, "Size", b"5000000")


def test_the_last_of_equal_options_counts(open_channel):
    options = [("grpc.max_receive_message_length", 10), ("grpc.max_receive_message_length", -1)]
    assert len(call(open_channel(options=options), "Size", b"5000000")) == 5_000_000


def test_keepalive_is_given_to_grpcio_in_milliseconds(open_channel):
    keepalive = Keepalive(2.5, 0.75)
    options = dict(open_channel(keepalive=keepalive)._endpoint.options)
    assert options["grpc.keepalive_time_ms"] == 2500
    assert options["grpc.keepalive_timeout_ms"] == 750
    assert options["grpc.http2.ping_timeout_ms"] == 750
    assert options["grpc.http2.max_pings_without_data"] == 0
    plain = dict(open_channel()._endpoint.options)
    assert not any("keepalive" in name or "pings" in name for name in plain)
    over = open_channel(keepalive=keepalive, options={"grpc.keepalive_time_ms": 9000})
    assert dict(over._endpoint.options)["grpc.keepalive_time_ms"] == 9000
    assert call(over, "Echo", b"x") == b"x"


def test_keepalive_notices_a_dead_peer(open_channel, relay):
    """A peer that is there but silent: only pings can tell."""
    channel = open_channel(relay.target, keepalive=Keepalive(1.0, 1.0))
    call(channel, "Echo")
    relay.frozen = True
    with pytest.raises(errors.Unavailable):
        call(channel, "Echo", deadline_ns=within(30))


@pytest.mark.parametrize(
    "settings",
    [
        {"time": 0},
        {"time": -1.0},
        {"time": float("nan")},
        {"time": float("inf")},
        {"time": 3_000_000},
        {"time": True},
        {"time": "10"},
        {"time": 10, "timeout": 0},
    ],
)
def test_keepalive_that_makes_no_sense(settings):
    with pytest.raises(errors.InvalidOption, match="keepalive"):
        Keepalive(**settings)


@pytest.mark.parametrize(
    "options",
    [
        ["grpc.enable_retries"],
        [("a", 1, 2)],
        {1: 2},
        {"": 2},
        {"grpc.x": 1.5},
        {"grpc.x": 2**31},
        5,
    ],
)
def test_options_that_grpcio_would_choke_on(options):
    with pytest.raises(errors.InvalidOption, match="channel.option"):
        GrpcChannel("localhost:8001", options=options)


def test_targets_are_checked():
    assert GrpcChannel("unix:triton.sock").target == "unix:triton.sock"
    with pytest.raises(errors.InvalidOption, match="has no port"):
        GrpcChannel("localhost")


@pytest.mark.parametrize(
    "form", ["ipv4:127.0.0.1:{dead},127.0.0.1:{port}", "dns:///localhost:{port}"]
)
def test_other_ways_to_write_a_target(open_channel, echo_server, nowhere, form):
    channel = open_channel(form.format(port=echo_server.port, dead=nowhere.rpartition(":")[2]))
    assert call(channel, "Echo", b"x") == b"x"


def test_ipv6(open_channel):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = EchoServer("[::1]:0")
    try:
        for target in (f"[::1]:{server.port}", f"ipv6:[::1]:{server.port}"):
            assert call(open_channel(target), "Echo", b"x") == b"x"
    finally:
        server.stop()


@pytest.mark.parametrize("name", ["triton.sock:8001", "a b%20c#d?e=ü"])
def test_unix_sockets(open_channel, tmp_path, monkeypatch, name):
    # The server's own reading of such names is none of our business: give it a plain one.
    (tmp_path / "plain").mkdir()
    server = EchoServer(f"unix:{tmp_path}/plain/s")
    (tmp_path / name).symlink_to(tmp_path / "plain" / "s")
    monkeypatch.chdir(tmp_path)
    try:
        for target in (f"unix:{tmp_path}/{name}", f"unix://{tmp_path}/{name}", f"unix:{name}"):
            assert call(open_channel(target), "Echo", b"x") == b"x"
    finally:
        server.stop()


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mtls_server(authority):
    root, sign = authority
    own = sign("server", "localhost")
    server = EchoServer(
        credentials=grpc.ssl_server_credentials(
            [(own.key, own.certificate)], root_certificates=root, require_client_auth=True
        ),
    )
    yield server
    server.stop()


def test_tls(open_channel, authority, tls_server, tmp_path):
    root, _ = authority
    file = tmp_path / "root.pem"
    file.write_bytes(root)
    for source in (root, file, str(file)):
        channel = open_channel(tls_server.target, tls=TLS(source))
        assert call(channel, "Echo", b"x") == b"x"
    assert call(channel, "Echo", bytes(LARGE)) == bytes(LARGE)


def test_tls_with_the_authorities_of_the_system(open_channel, tls_server):
    channel = open_channel(tls_server.target, tls=True)
    for error in both_ways(channel, "Echo", deadline_ns=within(30)):
        assert type(error) is errors.Unavailable
        assert "agree on TLS and certificates" in error.message


def test_tls_under_another_name(open_channel, authority, tls_server):
    root, _ = authority
    for name, fits in (("triton.internal", True), ("elsewhere.internal", False)):
        channel = open_channel(tls_server.target, tls=TLS(root, server_name=name))
        if fits:
            assert call(channel, "Echo", b"x") == b"x"
        else:
            with pytest.raises(errors.Unavailable):
                call(channel, "Echo", deadline_ns=within(30))


def test_mutual_tls(open_channel, authority, mtls_server, tmp_path):
    root, sign = authority
    own = sign("our client", "client")
    (tmp_path / "key.pem").write_bytes(own.key)
    (tmp_path / "chain.pem").write_bytes(own.certificate)
    for key, chain in (
        (own.key, own.certificate),
        (tmp_path / "key.pem", tmp_path / "chain.pem"),
    ):
        channel = open_channel(mtls_server.target, tls=TLS(root, key, chain))
        told = json.loads(call(channel, "Who"))
        assert told["x509_common_name"] == ["our client"]


def test_mutual_tls_without_a_certificate(open_channel, authority, mtls_server):
    root, _ = authority
    with pytest.raises(errors.Unavailable):
        call(open_channel(mtls_server.target, tls=TLS(root)), "Echo", deadline_ns=within(30))


def test_plain_text_to_a_tls_server_and_the_other_way_round(
    open_channel, authority, echo_server, tls_server
):
    root, _ = authority
    with pytest.raises(errors.Unavailable, match="TLS"):
        call(open_channel(tls_server.target), "Echo", deadline_ns=within(30))
    with pytest.raises(errors.Unavailable, match="TLS"):
        call(open_channel(echo_server.target, tls=TLS(root)), "Echo", deadline_ns=within(30))


def test_tls_is_checked(tmp_path):
    with pytest.raises(errors.InvalidOption, match="tls must be a TLS"):
        GrpcChannel("localhost:8001", tls="yes")
    with pytest.raises(errors.InvalidOption, match="cannot read root_certificates from .*none"):
        GrpcChannel("localhost:8001", tls=TLS(root_certificates=tmp_path / "none.pem"))


def test_renewed_certificates_are_read_by_the_next_connection(authority, tls_server, tmp_path):
    root, sign = authority
    file = tmp_path / "root.pem"
    file.write_bytes(sign("not the authority").certificate)
    tls = TLS(file)
    first = GrpcChannel(tls_server.target, tls=tls)
    second = GrpcChannel(tls_server.target, tls=tls)
    with pytest.raises(errors.Unavailable):
        call(first, "Echo", deadline_ns=within(30))
    file.write_bytes(root)
    assert call(second, "Echo", b"x") == b"x"
    first.close()
    second.close()


# --- imports --------------------------------------------------------------------------------------


def test_grpcio_is_imported_by_the_first_call(echo_server):
    script = """
        import sys
        from triton_fast.channels.base import CallOptions
        from triton_fast.channels.grpcio.channel import GrpcChannel, Keepalive
        from triton_fast.options.tls import TLS

        GrpcChannel(sys.argv[1], tls=TLS(), keepalive=Keepalive(10)).close()
        channel = GrpcChannel(sys.argv[1])
        assert "grpc" not in sys.modules
        from types import SimpleNamespace as S
        nothing = lambda *_: None
        channel.call("/test.Echo/Echo", S(render=lambda: b"", byte_size=0),
                     S(begin=nothing, feed=nothing, finish=nothing), CallOptions())
        print("grpc" in sys.modules, "google.protobuf" in sys.modules)
    """
    assert run_python(script, echo_server.target) == "True False\n"


@pytest.mark.parametrize(
    ("planted", "says"),
    [
        ("sys.modules['grpc'] = None", "is not installed"),
        ("sys.modules['grpc._cython'] = None", "cannot be imported"),
    ],
)
def test_without_grpcio(planted, says):
    script = f"""
        import sys
        {planted}
        from triton_fast import errors
        from triton_fast.channels.base import CallOptions
        from triton_fast.channels.grpcio.channel import GrpcChannel
        from types import SimpleNamespace as S

        for way in ("call", "start"):
            arguments = ["/a/B", S(render=lambda: b"", byte_size=0), None, CallOptions()]
            arguments += [print] if way == "start" else []
            try:
                getattr(GrpcChannel("localhost:1"), way)(*arguments)
            except errors.MissingDependency as error:
                assert isinstance(error, ImportError)
                print(error)
    """
    output = run_python(script)
    assert output.count("pip install grpcio") == 2
    assert output.count(says) == 2
