"""Batches that are split, and a model whose answers do not go together: both faces."""

from __future__ import annotations

from concurrent import futures

import grpc
import numpy as np
import pytest
from support.blocking_face import BlockingFace
from support.event_loops import Runner

from triton_fast import AsyncClient, Client, InvalidTensor
from triton_fast.protocol.messages import message_class, method_path

MOST = 4  # rows that the model takes
METHODS = ("ModelMetadata", "ModelConfig", "ModelInfer")


class OddServer(grpc.GenericRpcHandler):
    """A model with the input "x" (FP32, ``[-1, 1]``), each call of which a function answers.

    It is given the number of the piece, for the rows hold their own numbers, and how many rows
    there are; and returns arrays by name.
    """

    def __init__(self, answers, **signature):
        self.answers = answers
        self.signature = signature  # of the outputs: datatype and shape by name
        self._server = grpc.server(futures.ThreadPoolExecutor(4))
        self._server.add_generic_rpc_handlers((self,))
        self.url = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self):
        self._server.start()
        return self

    def __exit__(self, *_):
        self._server.stop(None).wait()

    def service(self, details):
        name = details.method.rpartition("/")[2]
        if details.method != method_path(name) or name not in METHODS:
            return None
        return grpc.unary_unary_rpc_method_handler(
            getattr(self, name),
            request_deserializer=message_class(f"{name}Request").FromString,
            response_serializer=message_class(f"{name}Response").SerializeToString,
        )

    def ModelMetadata(self, request, context):
        answer = message_class("ModelMetadataResponse")(name=request.name, platform="odd")
        answer.inputs.add(name="x", datatype="FP32", shape=[-1, 1])
        for name, (datatype, shape) in self.signature.items():
            answer.outputs.add(name=name, datatype=datatype, shape=shape)
        return answer

    def ModelConfig(self, request, context):
        answer = message_class("ModelConfigResponse")()
        answer.config.name = request.name
        answer.config.max_batch_size = MOST
        return answer

    def ModelInfer(self, request, context):
        rows = np.frombuffer(request.raw_input_contents[0], np.float32)
        answer = message_class("ModelInferResponse")(model_name=request.model_name)
        for name, array in self.answers(int(rows[0]) // MOST, len(rows)).items():
            datatype = {"f": "FP32", "i": "INT32", "O": "BYTES"}[array.dtype.kind]
            answer.outputs.add(name=name, datatype=datatype, shape=array.shape)
            encoded = array.tobytes()
            if datatype == "BYTES":
                encoded = b"".join(len(text).to_bytes(4, "little") + text for text in array.flat)
            answer.raw_output_contents.append(encoded)
        return answer


@pytest.fixture(params=["blocking", "asyncio"])
def infer(request, channel):
    """Return a function that makes a call of an odd server, by a client of either face."""

    def call(server, rows=10, **more):
        inputs = {"x": np.arange(rows, dtype=np.float32).reshape(-1, 1)}
        kind = Client if request.param == "blocking" else BlockingFace
        with kind(server.url, channel=channel, shared_memory=False, timeout=60) as client:
            return client.infer("odd", inputs, split=True, **more)

    return call


def floats(rows, width):
    return np.full((rows, width), 7, np.float32)


ANY, FIXED = {"y": ("FP32", [-1, -1])}, {"y": ("FP32", [-1, 3])}
TEXT = {"y": ("BYTES", [-1, -1])}


@pytest.mark.parametrize(
    ("signature", "answers", "says"),
    [
        pytest.param(
            ANY,
            lambda piece, rows: {"y": floats(rows, 3 + (piece == 2))},
            r"piece 2 of 3 \(rows 8 to 9\): output 'y' is FP32 \[2, 4\], and that of piece 0 of 3 "
            r"\(rows 0 to 3\) is FP32 \[4, 3\]: they cannot be joined",
            id="width",
        ),
        pytest.param(
            ANY,
            lambda piece, rows: {"y": floats(rows, 3).astype("i4" if piece == 1 else "f4")},
            r"piece 1 of 3 \(rows 4 to 7\): output 'y' is INT32 \[4, 3\], and that of piece 0 .* "
            r"is FP32 \[4, 3\]",
            id="datatype",
        ),
        pytest.param(
            TEXT,
            lambda piece, rows: {"y": np.full((rows, 1 + (piece == 1)), b"a", object)},
            r"piece 1 of 3 .*: output 'y' is BYTES \[4, 2\], and that of piece 0 .* "
            r"is BYTES \[4, 1\]",
            id="strings",
        ),
        pytest.param(
            FIXED,
            lambda piece, rows: {"y": floats(rows, 3 + (piece == 0))},
            r"piece 0 of 3 \(rows 0 to 3\): output 'y' is FP32 \[4, 4\], and the model's signature "
            r"says FP32 \[-1, 3\]",
            id="signature",
        ),
        pytest.param(
            ANY,
            lambda piece, rows: {"y": floats(rows - (piece == 1), 3)},
            r"piece 1 of 3 .*: output 'y' is FP32 \[3, 3\], and that of piece 0 .* \[4, 3\]",
            id="rows",
        ),
        pytest.param(
            ANY,
            lambda piece, rows: {"y": floats(3, 3)},
            r"piece 0 of 3 .*: output 'y' has shape \[3, 3\] for 4 rows",
            id="no_rows",
        ),
        pytest.param(
            ANY,
            lambda piece, rows: {"y" if piece < 2 else "z": floats(rows, 3)},
            r"piece 2 of 3 .*: the answer has no output 'y', and that of piece 0 .* had one",
            id="missing",
        ),
        pytest.param(
            FIXED,
            lambda piece, rows: {"y": floats(rows, 3), **({"z": floats(rows, 1)} if piece else {})},
            r"piece \d of 3 .*: the answer has (an|no) output 'z', and that of piece \d .* had ",
            id="more",
        ),
    ],
)
def test_answers_that_cannot_be_joined(infer, signature, answers, says):
    """It is said which output, which pieces and which shapes; and nothing of arrays of our own."""
    with OddServer(answers, **signature) as server:
        with pytest.raises(InvalidTensor, match=says) as raised:
            infer(server)
        assert "out[" not in str(raised.value)


def test_an_array_that_was_given_is_told_of(infer):
    with OddServer(lambda piece, rows: {"y": floats(rows, 4)}, **FIXED) as server:
        with pytest.raises(InvalidTensor, match=r"piece 0 of 3 .*: out\['y'\] is FP32 \[4, 3\]"):
            infer(server, out={"y": np.zeros((10, 3), np.float32)})
    for signature in (ANY, FIXED):
        with OddServer(lambda piece, rows: {"y": floats(rows, 3)}, **signature) as server:
            for out, says in (
                ({"y": np.zeros((9, 3), np.float32)}, r"out\['y'\] is float32 \[9, 3\]"),
                ({"y": [0.0]}, r"out\['y'\] is a list; it must be a numpy array"),
                ({"z": floats(10, 1)}, r"out\['z'\]: model 'odd' gave no such output.* gave 'y'"),
            ):
                with pytest.raises(InvalidTensor, match=says):
                    infer(server, out=out)


def test_outputs_that_the_signature_has_and_the_answers_have_not(infer):
    """As without split: a model may leave some out; or give others."""
    signature = {**FIXED, "z": ("FP32", [-1, 2])}
    with OddServer(lambda piece, rows: {"y": floats(rows, 3)}, **signature) as server:
        result = infer(server)
        assert list(result) == ["y"]
        np.testing.assert_array_equal(result["y"], floats(10, 3))
    with OddServer(lambda piece, rows: {"w": floats(rows, 5)}, **signature) as server:
        result = infer(server)
        assert list(result) == ["w"]
        np.testing.assert_array_equal(result["w"], floats(10, 5))


def test_several_pieces_that_fail(channel):
    """The first one's error is told, and asyncio does not complain of the others."""

    def answers(piece, rows):
        return {"y": floats(rows, 3 + (piece > 0))}

    inputs = {"x": np.arange(20, dtype=np.float32).reshape(-1, 1)}

    async def work(server):
        async with AsyncClient(server.url, channel=channel, shared_memory=False) as client:
            for _ in range(5):
                with pytest.raises(InvalidTensor, match="piece 1 of 5"):
                    await client.infer("odd", inputs, split=True)

    with OddServer(answers, **ANY) as server:
        Runner("asyncio")(work(server))
