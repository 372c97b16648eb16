"""Answers that say of shared memory what cannot be, or do what was not asked for: both faces."""

from __future__ import annotations

import gc
import mmap
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest
from support.blocking_face import BlockingFace
from support.sharing import array, figures, in_slot

from triton_fast import Client, InvalidTensor, RequestedOutput, WireError
from triton_fast.protocol.messages import message_class, method_path

REGION, OFFSET, SIZE = (f"shared_memory_{name}" for name in ("region", "offset", "byte_size"))


class SharingServer(grpc.GenericRpcHandler):
    """Gives the input "x" (FP32) back as "y", in shared memory where it is asked for there.

    Attributes
    ----------
    lie : callable
        Changes an answer before it is sent; given the answer and the parameters of the output that
        was asked for.
    """

    def __init__(self):
        self.lie = lambda answer, asked: None
        self.regions = {}
        options = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
        self._server = grpc.server(futures.ThreadPoolExecutor(4), options=options)
        self._server.add_generic_rpc_handlers((self,))
        self.url = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()
        self.regions.clear()

    def service(self, details):
        name = details.method.rpartition("/")[2]
        if not hasattr(SharingServer, name) or details.method != method_path(name):
            return None
        return grpc.unary_unary_rpc_method_handler(
            getattr(self, name),
            request_deserializer=message_class(f"{name}Request").FromString,
            response_serializer=message_class(f"{name}Response").SerializeToString,
        )

    def SystemSharedMemoryRegister(self, request, context):
        with Path("/dev/shm", request.key.lstrip("/")).open("r+b") as file:
            self.regions[request.name] = mmap.mmap(file.fileno(), request.byte_size)
        return message_class("SystemSharedMemoryRegisterResponse")()

    def SystemSharedMemoryUnregister(self, request, context):
        self.regions.pop(request.name, None)
        return message_class("SystemSharedMemoryUnregisterResponse")()

    def SystemSharedMemoryStatus(self, request, context):
        answer = message_class("SystemSharedMemoryStatusResponse")()
        for name in self.regions:
            answer.regions[name].name = name
        return answer

    def ModelInfer(self, request, context):
        (tensor,) = request.inputs
        if REGION in tensor.parameters:
            region, offset, size = place_of(tensor.parameters)
            data = self.regions[region][offset : offset + size]
        else:
            (data,) = request.raw_input_contents
        answer = message_class("ModelInferResponse")(model_name=request.model_name)
        answer.outputs.add(name="y", datatype="FP32", shape=tensor.shape)
        asked = request.outputs[0].parameters if request.outputs else {}
        if REGION in asked:
            region, offset, size = place_of(asked)
            assert len(data) <= size
            self.regions[region][offset : offset + len(data)] = data
            answer.raw_output_contents.append(b"")
            self.lie(answer, asked)
        else:
            answer.raw_output_contents.append(data)
        return answer


def place_of(parameters):
    return (
        parameters[REGION].string_param,
        parameters[OFFSET].int64_param if OFFSET in parameters else 0,
        parameters[SIZE].int64_param,
    )


@pytest.fixture
def lying_server():
    with SharingServer() as server:
        yield server


@pytest.fixture(params=["blocking", "asyncio"])
def lied_to(request, lying_server, channel):
    kind = Client if request.param == "blocking" else BlockingFace
    with kind(lying_server.url, channel=channel, shared_memory=True, timeout=60) as client:
        yield client


def pool_of(client):
    return getattr(client, "_client", client)


def echo(client, data, **more):
    return client.infer("m", {"x": data}, **more)["y"]


def place(answer, asked, region=None, offset=None, size=None):
    """Have an answer say where the output is: where it was asked for, unless told otherwise."""
    parameters = answer.outputs[0].parameters
    there, at, room = place_of(asked)
    parameters[REGION].string_param = there if region is None else region
    parameters[OFFSET].int64_param = at if offset is None else offset
    parameters[SIZE].int64_param = room if size is None else size


def offset_alone(answer, asked):
    answer.outputs[0].parameters[OFFSET].int64_param = place_of(asked)[1] + 64


def without_an_offset(answer, asked):
    """That is at 0, and the input lies there."""
    place(answer, asked)
    del answer.outputs[0].parameters[OFFSET]


def larger(answer, asked):
    answer.outputs[0].shape[0] += 2000


def text(answer, asked):
    answer.outputs[0].datatype = "BYTES"


BIG = 1 << 18
BYTES = 4 * BIG
LIES = {
    "region": (lambda a, asked: place(a, asked, region="x"), r"and the answer has .* region 'x'"),
    "offset": (lambda a, asked: place(a, asked, offset=64), "bytes at offset 64 of region"),
    "offset_alone": (offset_alone, "bytes at offset"),
    "no_offset": (without_an_offset, "bytes at offset 0 of region"),
    "fewer_bytes": (lambda a, asked: place(a, asked, size=BYTES - 4), f"has {BYTES - 4} bytes"),
    "more_bytes": (lambda a, asked: place(a, asked, size=2 * BYTES), f"has {2 * BYTES} bytes"),
    "larger": (larger, f"takes {BYTES + 8000} bytes, and it was to be written to {BYTES} bytes"),
    "text": (text, "is BYTES"),
}


@pytest.mark.parametrize("lie", LIES)
def test_answers_that_are_elsewhere(lied_to, lying_server, lie):
    """They are refused, and their slots are never leased again; the client stays usable."""
    lying_server.lie, says = LIES[lie]
    np.testing.assert_array_equal(echo(lied_to, array(0)), array(0))  # how large its answers are
    with pytest.raises(WireError, match=rf"^output 'y' .*{says}"):
        echo(lied_to, array(1))
    gc.collect()
    assert figures(pool_of(lied_to))["quarantined"] == 2
    lying_server.lie = lambda answer, asked: None
    for seed in range(3):
        answer = echo(lied_to, array(seed))
        np.testing.assert_array_equal(answer, array(seed))
    assert in_slot(pool_of(lied_to), answer)
    assert figures(pool_of(lied_to))["quarantined"] == 2


def test_a_submitted_call(lying_server, channel):
    with Client(lying_server.url, channel=channel, shared_memory=True, timeout=60) as client:
        echo(client, array(0))
        lying_server.lie = LIES["region"][0]
        with pytest.raises(WireError, match="region 'x'"):
            client.submit("m", {"x": array(1)}).result(60)
        assert figures(client)["quarantined"] == 2


def test_answers_that_are_where_they_were_asked_for(lied_to, lying_server):
    """Triton does not say so; others may, with the room or with what they have written."""
    for lie in (
        place,
        lambda a, asked: place(a, asked, size=4 * a.outputs[0].shape[0]),
        lambda a, asked: None,
    ):
        lying_server.lie = lie
        for seed in range(3):
            answer = echo(lied_to, array(seed))
            np.testing.assert_array_equal(answer, array(seed))
        smaller = echo(lied_to, array(5, BIG - 100))
        np.testing.assert_array_equal(smaller, array(5, BIG - 100))
        echo(lied_to, array(0))
    assert in_slot(pool_of(lied_to), answer)
    del answer, smaller
    assert figures(pool_of(lied_to))["quarantined"] == 0


def test_a_server_that_answers_on_the_wire_nevertheless(lying_server, channel):
    """What was given as out= is written to, wherever it lies."""

    def on_the_wire(answer, asked):
        region, offset, _ = place_of(asked)
        answer.raw_output_contents[0] = lying_server.regions[region][offset : offset + BYTES]
        lying_server.regions[region][offset : offset + BYTES] = bytes(BYTES)

    with Client(lying_server.url, channel=channel, shared_memory=True, timeout=60) as client:
        echo(client, array(0))
        lying_server.lie = on_the_wire
        for out in (None, np.empty(BIG, np.float32), client.empty(BIG, np.float32)):
            answer = echo(client, array(1), out=None if out is None else {"y": out})
            np.testing.assert_array_equal(answer, array(1))
            assert out is None or answer is out
        wrong = client.empty((2, BIG // 2), np.float32)
        with pytest.raises(InvalidTensor, match=r"out\['y'\] is float32"):
            echo(client, array(1), out={"y": wrong})


@pytest.mark.parametrize("lie", ["region", "offset", "fewer_bytes", "more_bytes", "larger"])
def test_outputs_in_memory_of_the_callers_own(lied_to, lying_server, lie):
    lying_server.regions["mine"] = mmap.mmap(-1, 3 * BYTES)
    there = {REGION: "mine", OFFSET: BYTES, SIZE: BYTES}
    lying_server.lie = lambda answer, asked: None

    def infer():
        return lied_to.infer("m", {"x": array(1)}, outputs=[RequestedOutput("y", there)])

    assert infer().shared_memory["y"].shape == (BIG,)
    lying_server.lie, says = LIES[lie]
    with pytest.raises(WireError, match=rf"^output 'y' .*{says}"):
        infer()
