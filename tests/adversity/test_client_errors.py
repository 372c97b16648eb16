"""Whatever goes wrong is a typed error, in time, and the client is usable afterwards."""

from __future__ import annotations

import mmap
import subprocess
import sys
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
from support.model_calls import ONE, assert_usable, slow
from support.process import held, resident
from support.waiting import until

from triton_fast import (
    Client,
    DeadlineExceeded,
    Internal,
    InvalidOption,
    InvalidTensor,
    NotFound,
    ServerError,
    Unavailable,
    WireError,
)
from triton_fast.channels.native.channel import why_not_native
from triton_fast.protocol.messages import message_class

# What takes no time takes less than this on a machine that is busy with other things.
SLACK = 10.0
LONG = 60.0


@pytest.fixture
def usable_client(shared_server, channel):
    with Client(shared_server().grpc_url, channel=channel) as client:
        yield client
        assert_usable(client)


# What the caller does wrong ----------------------------------------------------------------------


@pytest.mark.server
def test_what_the_server_refuses(usable_client):
    for inputs, message in (
        ({"WRONG": ONE["INPUT0"]}, "WRONG"),
        ({"INPUT0": np.ones(1, np.float64)}, "INPUT0.*FP64"),
        ({"INPUT0": np.ones((1, 1), np.float32)}, "INPUT0"),
        ({}, "INPUT0"),
    ):
        with pytest.raises(InvalidTensor, match=message):
            usable_client.infer("identity_fp32", inputs)
    with pytest.raises(NotFound, match="'nope'") as caught:
        usable_client.infer("nope", ONE)
    assert caught.value.call == "ModelInfer('nope')"
    assert caught.value.target in str(caught.value)
    with pytest.raises(NotFound, match="identity_fp32"):
        usable_client.infer("identity_fp32", ONE, model_version="7")
    with pytest.raises(InvalidTensor, match="NOPE"):
        usable_client.infer("identity_fp32", ONE, outputs=["NOPE"])


@pytest.mark.server
def test_known_metadata_refuses_before_sending(usable_client):
    usable_client.model_metadata("identity_fp32")
    for inputs, message in (
        ({"WRONG": ONE["INPUT0"]}, "no input 'WRONG'; it takes 'INPUT0'"),
        ({"INPUT0": np.ones(1, np.float64)}, "is FP32, and the tensor is FP64"),
        ({"INPUT0": np.ones((1, 1), np.float32)}, r"shape \[-1\].*has \[1, 1\]"),
    ):
        with pytest.raises(InvalidTensor, match=message):
            usable_client.infer("identity_fp32", inputs)


@pytest.mark.server
def test_a_model_that_fails(usable_client):
    with pytest.raises(Internal, match="it broke") as caught:
        usable_client.infer("failing", {"FAIL_MESSAGE": ["it broke"]})
    assert "it broke" in caught.value.message


@pytest.mark.server
def test_arguments_that_make_no_sense(usable_client):
    with pytest.raises(InvalidTensor, match="input 'INPUT0': element 0 is a int"):
        usable_client.infer("identity_bytes", {"INPUT0": np.array([1, 2], object)})
    with pytest.raises(InvalidOption, match="timeout must be zero or more seconds, got -1"):
        usable_client.infer("identity_fp32", ONE, timeout=-1)
    with pytest.raises(InvalidTensor, match="inputs must be a mapping of name to array, got list"):
        usable_client.infer("identity_fp32", [ONE["INPUT0"]])
    with pytest.raises(InvalidOption, match="request_id must be a str, got int"):
        usable_client.infer("identity_fp32", ONE, request_id=7)
    with pytest.raises(InvalidOption, match="an input's name must be a str, got int"):
        usable_client.infer("identity_fp32", {7: ONE["INPUT0"]})


@pytest.mark.server
def test_more_than_protobuf_can_carry(usable_client):
    # Mapped and never touched, so it takes no memory; nor may refusing it.
    with mmap.mmap(-1, (2 << 30) + 4096) as memory:
        values = np.frombuffer(memory, np.uint8)
        before = resident()
        with pytest.raises(InvalidTensor, match=r"input 'INPUT0' has 2147487744 bytes.*2147483647"):
            usable_client.infer("identity_uint8", {"INPUT0": values})
        assert resident() - before < 100 << 20
        del values


# What the network and the server do wrong --------------------------------------------------------


def test_nobody_is_there(channel):
    with Client("127.0.0.1:9", channel=channel) as client:
        started = time.monotonic()
        with pytest.raises(Unavailable, match=r"ModelInfer\('m'\) at 127.0.0.1:9"):
            client.infer("m", ONE, timeout=LONG)
        assert time.monotonic() - started < LONG / 2


@pytest.mark.server
@pytest.mark.server_may_die
def test_the_port_for_http(triton_server, channel):
    """Its server hangs up without a word."""
    with Client(triton_server.http_url, channel=channel, timeout=30) as client:
        assert client.is_live() is False
        with pytest.raises(Unavailable, match=r"gRPC port.*8001.*HTTP"):
            client.server_metadata()


def test_a_deadline_in_mid_call(usable_client):
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        usable_client.infer("slow", slow(20), timeout=0.001)
    assert time.monotonic() - started < SLACK
    assert isinstance(caught.value, TimeoutError)
    with pytest.raises(DeadlineExceeded):
        usable_client.infer("identity_fp32", ONE, timeout=0)
    future = usable_client.submit("slow", slow(20), timeout=0.05)
    assert isinstance(future.exception(LONG), DeadlineExceeded)
    with pytest.raises(DeadlineExceeded):
        usable_client.model("slow")(slow(20), timeout=0.2)


@pytest.mark.server
def test_a_server_killed_in_mid_call_and_started_again(mortal, channel):
    mortal.start()
    with Client(mortal.grpc_url, channel=channel, timeout=LONG) as client:
        assert_usable(client)
        killer = threading.Timer(0.3, mortal.kill)
        killer.start()
        started = time.monotonic()
        with pytest.raises(ServerError) as caught:
            client.infer("slow", slow(50))
        assert isinstance(caught.value, Unavailable)
        assert time.monotonic() - started < LONG / 2
        killer.join()
        with pytest.raises(Unavailable):
            client.infer("identity_fp32", ONE)
        mortal.start()
        until_ready(client)
        assert_usable(client)


def until_ready(client):
    until(lambda: client.is_ready(timeout=5), LONG)  # grpcio tries again once a second


class Impostor:
    """A gRPC server that answers every call with the same bytes."""

    def __init__(self, answer):
        self.answer = answer

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.answer)


@pytest.fixture
def impostor(channel):
    """Starts a server that answers as told, and gives a client of it."""
    pool = futures.ThreadPoolExecutor(2)
    server = grpc.server(pool)
    impostor = Impostor(b"")
    server.add_generic_rpc_handlers((impostor,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Client(f"127.0.0.1:{port}", channel=channel, timeout=30) as client:
        yield impostor, client
    server.stop(0).wait()
    pool.shutdown()


def good_answer():
    message = message_class("ModelInferResponse")(model_name="m")
    message.outputs.add(name="OUTPUT0", datatype="FP32", shape=[2])
    message.raw_output_contents.append(np.array([1, 2], np.float32).tobytes())
    return message.SerializeToString()


def test_bytes_that_are_no_answer(impostor):
    server, client = impostor
    good = good_answer()
    for answer in (b"garbage \xff\xff", b"\xff" * 100, good[:-1], good + b"\x0a", good[1:]):
        server.answer = answer
        with pytest.raises(WireError, match="ModelInferResponse"):
            client.infer("m", ONE)
        with pytest.raises(WireError, match="ModelInferResponse"):
            client.submit("m", ONE).result(30)
        server.answer = good
        assert client.infer("m", ONE)["OUTPUT0"].tolist() == [1, 2]
    server.answer = b"\xff" * 10
    with pytest.raises(WireError, match="ModelMetadataResponse"):
        client.model_metadata("m")


def test_an_answer_that_contradicts_itself(impostor):
    server, client = impostor
    message = message_class("ModelInferResponse").FromString(good_answer())
    message.outputs[0].shape[0] = 3
    server.answer = message.SerializeToString()
    with pytest.raises(WireError, match=r"outputs\[0\] \('OUTPUT0'\): FP32 \[3\] .* the 8 bytes"):
        client.infer("m", ONE)


def test_typed_contents_of_other_servers(impostor):
    server, client = impostor
    message = message_class("ModelInferResponse")(model_name="m")
    tensor = message.outputs.add(name="y", datatype="INT8", shape=[3])
    tensor.contents.int_contents.extend([-128, 0, 127])
    tensor = message.outputs.add(name="z", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend([b"a", b""])
    server.answer = message.SerializeToString()
    result = client.infer("m", ONE)
    assert result["y"].dtype == np.int8
    assert result["y"].tolist() == [-128, 0, 127]
    assert result["z"].tolist() == [b"a", b""]
    out = np.zeros(3, np.int8)
    assert client.infer("m", ONE, out={"y": out})["y"] is out
    assert out.tolist() == [-128, 0, 127]


def test_metadata_that_has_changed_refuses_nothing(impostor):
    """A model that was replaced by one of another shape: the client asks again, and sends."""
    server, client = impostor

    def metadata(shape):
        message = message_class("ModelMetadataResponse")(name="m")
        message.inputs.add(name="INPUT0", datatype="FP32", shape=shape)
        return message.SerializeToString()

    server.answer = metadata([5])
    client.model_metadata("m")
    with pytest.raises(InvalidTensor, match=r"shape \[5\]"):
        client.infer("m", ONE)
    answers = iter([metadata([1]), b"", good_answer()])
    server.service = lambda details: grpc.unary_unary_rpc_method_handler(
        lambda request, context: next(answers)
    )
    assert client.infer("m", ONE)["OUTPUT0"].tolist() == [1, 2]


# Processes ---------------------------------------------------------------------------------------


@pytest.mark.server
@pytest.mark.parametrize("order", ["tritonclient first", "triton_fast first"])
def test_tritonclient_in_the_same_process(triton_server, order):
    channels = ["grpc"] if why_not_native() else ["grpc", "native"]
    imports = ["import tritonclient.grpc as tc", "import triton_fast"]
    if order == "triton_fast first":
        imports.reverse()
    code = "\n".join(
        [
            *imports,
            "import numpy as np",
            f"url = {triton_server.grpc_url!r}",
            "x = np.arange(3, dtype=np.float32)",
            "given = tc.InferInput('INPUT0', [3], 'FP32').set_data_from_numpy(x)",
            f"for channel in {channels}:",
            "    with triton_fast.Client(url, channel=channel, timeout=60) as client:",
            "        assert client.is_ready()",
            "        ours = client.infer('identity_fp32', {'INPUT0': x})['OUTPUT0']",
            "    with tc.InferenceServerClient(url) as theirs:",
            "        result = theirs.infer('identity_fp32', [given]).as_numpy('OUTPUT0')",
            "    assert (ours == result).all()",
        ]
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


@pytest.mark.server
def test_a_forked_child_goes_on(triton_server, channel):
    code = f"""
import os, sys
import numpy as np
from triton_fast import Client
client = Client({triton_server.grpc_url!r}, channel={channel!r}, timeout=60)
def call(n):
    x = np.full(1000, n, np.float32)
    assert (client.infer("identity_fp32", {{"INPUT0": x}})["OUTPUT0"] == n).all()
call(0)
children = []
for n in range(8):
    pid = os.fork()
    if pid == 0:
        try:
            call(n)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    children.append(pid)
    call(n)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
call(9)
client.close()
sys.exit(str(codes) if any(codes) else 0)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=100)


@pytest.mark.server
@pytest.mark.server_may_die
def test_ctrl_c_ends_a_call_at_once(shared_server, channel):
    code = f"""
import os, signal, threading, time
import numpy as np
from triton_fast import Client
client = Client({shared_server().grpc_url!r}, channel={channel!r})
one = np.ones(1, np.float32)
client.infer("identity_fp32", {{"INPUT0": one}})
started = time.monotonic()
try:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    client.infer("slow", {{"INPUT0": one, "DELAY": 60 * one}})
except KeyboardInterrupt:
    assert time.monotonic() - started < 30
else:
    raise SystemExit("not interrupted")
assert client.infer("identity_fp32", {{"INPUT0": one}})["OUTPUT0"] == 1
client.close()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


@pytest.mark.server
def test_nothing_is_left_behind(triton_server, channel):
    def once():
        with Client(triton_server.grpc_url, channel=channel, timeout=60) as client:
            assert_usable(client)
            client.submit("identity_fp32", ONE).result()
            with pytest.raises(InvalidTensor):
                client.infer("identity_fp32", {"X": ONE["INPUT0"]})

    for _ in range(5):
        once()
    before = held()
    for _ in range(10):
        once()
    until(lambda: held() <= before, LONG)


@pytest.mark.server
def test_a_server_that_stops_need_not_wait_for_idle_clients(mortal, channel):
    """Before it goes, gRPC's server asks each connection whether it has heard, for up to 20 s."""
    mortal.start()
    with Client(mortal.grpc_url, channel=channel) as client:
        assert_usable(client)
        started = time.monotonic()
        mortal.stop()
        assert time.monotonic() - started < 18
        with pytest.raises(Unavailable):
            client.infer("identity_fp32", ONE)
        mortal.start()
        until_ready(client)
        assert_usable(client)
