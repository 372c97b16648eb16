"""Inference through a real Triton: every datatype, every kind of input, every way to call."""

from __future__ import annotations

import math
import threading
from concurrent.futures import CancelledError, wait
from itertools import combinations

import ml_dtypes
import numpy as np
import pytest
from support.model_calls import counts, reset, slow
from support.waiting import until

from triton_fast import (
    DATATYPES,
    Client,
    ClosedError,
    InvalidOption,
    InvalidTensor,
    RequestedOutput,
    ServerError,
    Tensor,
)
from triton_fast.protocol.datatypes import dtype_of

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def wire_client(triton_server, channel):
    with Client(triton_server.grpc_url, channel=channel, timeout=60, shared_memory=False) as client:
        yield client


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


def samples(datatype):
    """Values at the edges of a datatype, as one array."""
    if datatype == "BYTES":
        return np.array([b"", b"a", "é€𝄞".encode(), b"nul\0inside\0", bytes(range(256))], object)
    dtype = dtype_of(datatype)
    if datatype == "BOOL":
        return np.array([True, False, True])
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return np.array([info.min, info.max, 0, 1], dtype)
    # Every bit pattern counts: signalling NaNs, NaNs with payloads, subnormals, both zeros.
    width = dtype.itemsize
    patterns = [0, 1, 1 << (8 * width - 1), (1 << (8 * width)) - 1, 0x7F << (8 * width - 8)]
    unsigned = np.dtype(f"u{width}")
    random = (
        np.random.default_rng(7).integers(0, 1 << (8 * width), 50, np.uint64, endpoint=False)
        if width < 8
        else np.random.default_rng(7).integers(0, 2**64 - 1, 50, np.uint64)
    )
    return np.concatenate([np.array(patterns, unsigned), random.astype(unsigned)]).view(dtype)


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype_comes_back_bit_for_bit(wire_client, datatype):
    values = samples(datatype)
    result = wire_client.infer(f"identity_{datatype.lower()}", {"INPUT0": values})
    received = result["OUTPUT0"]
    assert received.dtype == values.dtype
    assert received.shape == values.shape
    if datatype == "BYTES":
        assert received.tolist() == values.tolist()
    else:
        assert (bits(received) == bits(values)).all()
        assert received.flags.writeable
        assert received.flags.c_contiguous
        assert received.flags.aligned


@pytest.mark.parametrize("datatype", DATATYPES)
def test_empty_tensors(wire_client, datatype):
    values = np.empty(0, dtype_of(datatype))
    received = wire_client.infer(f"identity_{datatype.lower()}", {"INPUT0": values})["OUTPUT0"]
    assert received.shape == (0,)
    assert received.dtype == values.dtype


def test_a_tensor_without_dimensions_is_the_servers_to_refuse(wire_client):
    # Triton wants the model's one dimension; the client sends what it is given.
    with pytest.raises(InvalidTensor, match="shape"):
        wire_client.infer("identity_fp32", {"INPUT0": np.float32(3)})


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 0, 5), (7, 1, 1)])
def test_shapes_and_orders(wire_client, shape):
    values = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    for sent in (values, np.asfortranarray(values), values.astype(">f4"), values[::-1], values.T):
        received = wire_client.infer("identity_rank3", {"INPUT0": sent})["OUTPUT0"]
        assert (received == sent).all()
        assert received.shape == sent.shape
        assert received.dtype == np.float32


def test_strings_in_every_form(wire_client):
    words = ["", "plain", "é€𝄞", "nul\0inside"]
    expected = [word.encode() for word in words]
    for sent in (words, expected, np.array(words, object), np.array(words), np.array(expected)):
        received = wire_client.infer("identity_bytes", {"INPUT0": sent})["OUTPUT0"]
        assert received.tolist() == expected
    upper = wire_client.infer("strings", {"TEXT": ["triton", ""]})
    assert upper.text("UPPER").tolist() == ["TRITON", ""]
    with pytest.raises(InvalidOption, match=r"output 'LENGTH' is int32 \[2\] and no text"):
        upper.text("LENGTH")
    latin = wire_client.infer("identity_bytes", {"INPUT0": ["ok", b"caf\xe9"]})
    with pytest.raises(InvalidTensor, match=r"output 'OUTPUT0', element \[1\]: b'caf\\xe9' is no"):
        latin.text("OUTPUT0")
    assert upper["LENGTH"].tolist() == [6, 0]


def test_raw_memory(wire_client):
    values = np.array([1.5, -2], ml_dtypes.bfloat16)
    raw = Tensor(values.view(np.uint16), "BF16", [2])
    assert (wire_client.infer("identity_bf16", {"INPUT0": raw})["OUTPUT0"] == values).all()


def test_raw_memory_in_another_byte_order(wire_client):
    values = np.array([1.5, -2], np.float32)
    raw = Tensor(values.astype(">f4"), "FP32", [2])
    assert (wire_client.infer("identity_fp32", {"INPUT0": raw})["OUTPUT0"] == values).all()


def test_parameters_beside_an_input(wire_client):
    """Triton takes them, and the tensor is what it is without."""
    beside = {"language": "en", "number": 7, "flag": True}
    inputs = {
        "INPUT0": Tensor(np.arange(5, dtype=np.float32)[::2], parameters=beside),
        "INPUT1": np.arange(3, dtype=np.int32),
        "INPUT2": Tensor(["x", "yy"], parameters=beside),
    }
    result = wire_client.infer("identity_mixed", inputs)
    assert result["OUTPUT0"].tolist() == [0, 2, 4]
    assert result["OUTPUT1"].tolist() == [0, 1, 2]
    assert result.text("OUTPUT2").tolist() == ["x", "yy"]


def test_several_tensors(wire_client):
    inputs = {
        "INPUT0": np.arange(5, dtype=np.float32),
        "INPUT1": np.arange(3, dtype=np.int32),
        "INPUT2": ["x", "yy"],
    }
    result = wire_client.infer("identity_mixed", inputs)
    assert set(result) == {"OUTPUT0", "OUTPUT1", "OUTPUT2"}
    assert len(result) == 3
    for index in range(3):
        assert (
            result[f"OUTPUT{index}"].tolist()
            == np.asarray(inputs[f"INPUT{index}"]).astype("S" if index == 2 else None).tolist()
        )
    only = wire_client.infer("identity_mixed", inputs, outputs=["OUTPUT1"])
    assert list(only) == ["OUTPUT1"]
    with pytest.raises(KeyError, match="no output 'OUTPUT0' in the answer.*'OUTPUT1'"):
        only["OUTPUT0"]


def test_the_answer_says_where_it_is_from(wire_client):
    parameters = {"flag": True, "count": -(2**63), "text": "é", "ratio": 0.1}
    result = wire_client.infer(
        "identity_fp32",
        {"INPUT0": np.zeros(1, np.float32)},
        request_id="request 7",
        parameters=parameters,
        model_version="1",
    )
    assert (result.model_name, result.model_version) == ("identity_fp32", "1")
    assert result.id == "request 7"
    assert {key: result.parameters[key] for key in parameters} == parameters
    assert "identity_fp32" in repr(result)
    assert "OUTPUT0: float32[1]" in repr(result)


def test_a_batched_model(wire_client):
    left = np.random.default_rng(2).normal(size=(3, 16)).astype(np.float32)
    right = np.ones((3, 16), np.float32)
    result = wire_client.infer("add_sub", {"INPUT0": left, "INPUT1": right})
    assert (result["OUTPUT0"] == left + right).all()
    assert (result["OUTPUT1"] == left - right).all()


def test_shapes_that_only_the_answer_knows(wire_client):
    row = np.arange(4, dtype=np.float32)
    result = wire_client.infer("variable", {"ROW": row, "COUNT": np.array([3], np.int32)})
    assert (result["TWICE"] == np.concatenate([row, row])).all()
    assert (result["TILED"] == np.tile(row, (3, 1))).all()


def test_classification(wire_client):
    result = wire_client.infer(
        "identity_fp32",
        {"INPUT0": np.array([0.5, 3, 1], np.float32)},
        outputs=[RequestedOutput("OUTPUT0", {"classification": 2})],
    )
    assert [value.split(b":")[1] for value in result["OUTPUT0"]] == [b"1", b"2"]


# Receiving into the caller's arrays -------------------------------------------------------------


def test_out_receives(wire_client):
    values = np.random.default_rng(3).normal(size=1000).astype(np.float32)
    out = np.zeros_like(values)
    result = wire_client.infer("identity_fp32", {"INPUT0": values}, out={"OUTPUT0": out})
    assert result["OUTPUT0"] is out
    assert (out == values).all()
    # The very memory that is sent may receive.
    wire_client.infer("identity_fp32", {"INPUT0": values}, out={"OUTPUT0": values})
    assert (values == out).all()


def test_out_of_any_layout(wire_client):
    values = np.arange(12, dtype=np.float32)
    strided = np.zeros(24, np.float32)[::2]
    assert wire_client.infer("identity_fp32", {"INPUT0": values}, out={"OUTPUT0": strided})
    assert (strided == values).all()
    swapped = np.zeros(12, ">f4")
    wire_client.infer("identity_fp32", {"INPUT0": values}, out={"OUTPUT0": swapped})
    assert (swapped == values).all()
    words = np.empty(2, object)
    wire_client.infer("identity_bytes", {"INPUT0": ["a", "b"]}, out={"OUTPUT0": words})
    assert words.tolist() == [b"a", b"b"]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ({"OUTPUT0": np.zeros(4, np.float32)}, r"out\['OUTPUT0'\] is FP32 \[4\].*FP32 \[3\]"),
        ({"OUTPUT0": np.zeros(3, np.int32)}, r"out\['OUTPUT0'\] is INT32 \[3\].*FP32 \[3\]"),
        (
            {"OUTPUT0": np.zeros(8, np.float32)[::2]},
            r"is float32 \[4\]; the answer is float32 \[3\]",
        ),
        ({"OUTPUT0": np.zeros(3, np.complex64)}, "dtype complex64, which no output can have"),
        ({"OUTPUT0": np.frombuffer(bytes(12), np.float32)}, "read-only"),
        ({"OUTPUT0": [0.0]}, "is a list; it must be a numpy array"),
        ({"WRONG": np.zeros(3, np.float32)}, r"out\['WRONG'\].*gave 'OUTPUT0'"),
    ],
)
def test_out_that_cannot_take_the_answer(wire_client, out, message):
    with pytest.raises(InvalidTensor, match=message):
        wire_client.infer("identity_fp32", {"INPUT0": np.zeros(3, np.float32)}, out=out)
    # and the client is as good as new
    test_out_receives(wire_client)


# Handles and futures -----------------------------------------------------------------------------


def test_a_model_handle(wire_client):
    model = wire_client.model("add_sub", outputs=["OUTPUT0"])
    assert model.name == "add_sub"
    assert model.signature.inputs["INPUT0"].shape == (-1, 16)
    assert model.signature.max_batch_size == 8
    left = np.ones((2, 16), np.float32)
    for result in (
        model({"INPUT0": left, "INPUT1": left}),
        model(INPUT0=left, INPUT1=left),
        model({"INPUT0": left}, INPUT1=left, request_id="1"),
        model.submit(INPUT0=left, INPUT1=left).result(),
    ):
        assert list(result) == ["OUTPUT0"]
        assert (result["OUTPUT0"] == 2).all()
    assert model(INPUT0=left[:1], INPUT1=left[:1])["OUTPUT0"].shape == (1, 16)
    with pytest.raises(InvalidOption, match="input 'INPUT0' was given twice"):
        model({"INPUT0": left}, INPUT0=left)


def test_a_model_handle_refuses_before_sending(wire_client):
    model = wire_client.model("add_sub")
    fits = np.ones((2, 16), np.float32)
    before = inferences(wire_client, "add_sub")
    for inputs, message in (
        ({"INPUT0": fits}, "also takes 'INPUT1'"),
        ({"INPUT0": fits, "INPUT2": fits}, "no input 'INPUT2'; it takes 'INPUT0', 'INPUT1'"),
        ({"INPUT0": fits, "INPUT1": fits.astype(np.float64)}, "is FP32, and the tensor is FP64"),
        ({"INPUT0": fits, "INPUT1": fits[:, 1:]}, r"shape \[-1, 16\].*has \[2, 15\]"),
        ({"INPUT0": np.ones((9, 16), np.float32), "INPUT1": fits}, "batches of up to 8"),
    ):
        with pytest.raises(InvalidTensor, match=message):
            model(inputs)
    with pytest.raises(InvalidTensor, match="no output 'Z'; it gives 'OUTPUT0', 'OUTPUT1'"):
        wire_client.model("add_sub", outputs=["Z"])(INPUT0=fits, INPUT1=fits)
    # What the handle learned, infer() holds calls against too.
    with pytest.raises(InvalidTensor, match="no input 'X'"):
        wire_client.infer("add_sub", {"X": fits})
    assert inferences(wire_client, "add_sub") == before


def inferences(client, model):
    from triton_fast.protocol.messages import decode  # noqa: F401

    options = client._endpoint.options("ModelStatistics")
    message = client._endpoint.exchange("ModelStatistics", {"name": model}, options)
    statistics = message.model_stats[0].inference_stats
    return statistics.success.count + statistics.fail.count


def test_an_optional_input_may_be_left_out(wire_client):
    model = wire_client.model("identity_optional")
    assert list(model(INPUT0=np.zeros((1, 2), np.float32))) == ["OUTPUT0"]


def test_submit(wire_client):
    values = [np.full(100, n, np.float32) for n in range(50)]
    futures = [wire_client.submit("identity_fp32", {"INPUT0": value}) for value in values]
    wait(futures, timeout=60)
    for value, future in zip(values, futures, strict=True):
        assert (future.result()["OUTPUT0"] == value).all()
    out = np.zeros(3, np.float32)
    future = wire_client.submit("identity_fp32", {"INPUT0": values[1][:3]}, out={"OUTPUT0": out})
    assert future.result()["OUTPUT0"] is out
    assert (out == 1).all()


def test_errors_of_a_future_are_the_futures(wire_client):
    with pytest.raises(InvalidTensor):
        wire_client.submit("identity_fp32", {"INPUT0": 3})
    with pytest.raises(InvalidTensor, match="no input 'WRONG'"):  # at once, if that is known by now
        wire_client.submit("identity_fp32", {"WRONG": np.zeros(1, np.float32)}).result(60)
    wrong = np.zeros(2, np.float32)
    future = wire_client.submit(
        "identity_fp32", {"INPUT0": np.zeros(1, np.float32)}, out={"OUTPUT0": wrong}
    )
    assert isinstance(future.exception(60), InvalidTensor)


@pytest.mark.server_may_die
def test_a_future_can_be_cancelled(server, channel):
    with Client(server.grpc_url, channel=channel, timeout=60) as client:
        reset(client)
        future = client.submit("slow", slow(90))
        until(lambda: counts(client) == (0, 1))
        assert not future.done()
        assert future.cancel()
        assert future.cancelled()
        with pytest.raises(CancelledError):
            future.result()
        until(lambda: counts(client) == (1, 0))  # the model knows
        done = client.submit("slow", slow(0))
        done.result(60)
        assert not done.cancel()


# Many at once ------------------------------------------------------------------------------------


def test_threads_share_a_client(wire_client):
    errors = []

    def work(seed):
        try:
            random = np.random.default_rng(seed)
            for _ in range(30):
                values = random.normal(size=random.integers(1, 5000)).astype(np.float32)
                received = wire_client.infer("identity_fp32", {"INPUT0": values})["OUTPUT0"]
                assert (received == values).all()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


@pytest.mark.server_may_die
def test_closing_while_calls_run_ends_them(server, channel):
    client = Client(server.grpc_url, channel=channel)
    reset(client)
    outcomes = []

    def work():
        try:
            client.infer("slow", slow(90))
        except BaseException as error:
            outcomes.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    future = client.submit("slow", slow(90))
    until(lambda: counts(client)[1] == 5)
    client.close()
    client.close()
    for thread in threads:
        thread.join(30)
    assert [type(error) for error in outcomes] == [ClosedError] * 4
    assert isinstance(future.exception(30), ClosedError)
    with pytest.raises(ClosedError, match=f"client of {server.grpc_url} is closed"):
        client.infer("slow", slow(0))
    with pytest.raises(ClosedError):
        client.submit("slow", slow(0))
    with pytest.raises(ClosedError):
        client.is_live()
    assert "closed" in repr(client)


# What a call may carry ---------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compression(wire_client, compression):
    values = np.zeros(100_000, np.float32)
    result = wire_client.infer("identity_fp32", {"INPUT0": values}, compression=compression)
    assert (result["OUTPUT0"] == values).all()
    with pytest.raises(InvalidOption, match="'gzip', 'deflate' or None, got 'zstd'"):
        wire_client.infer("identity_fp32", {"INPUT0": values}, compression="zstd")


def test_headers_reach_the_server(shared_server, channel):
    server = shared_server(
        models=["identity_fp32"], extra_args=["--grpc-header-forward-pattern=x-.*"]
    )
    tokens = iter(["one", "two"])
    with Client(
        server.grpc_url,
        channel=channel,
        timeout=60,
        headers={"X-Client": "c"},
        header_hook=lambda call: {"x-token": next(tokens), "x-call": call},
    ) as client:
        inputs = {"INPUT0": np.zeros(1, np.float32)}
        first = client.infer("identity_fp32", inputs, headers={"x-own": "o"}).parameters
        second = client.infer("identity_fp32", inputs).parameters
    assert (first["x-client"], first["x-token"], first["x-own"]) == ("c", "one", "o")
    assert first["x-call"] == "ModelInfer('identity_fp32')"
    assert second["x-token"] == "two"
    assert "x-own" not in second


def test_queue_timeout_and_priority(wire_client):
    result = wire_client.infer(
        "identity_fp32",
        {"INPUT0": np.zeros(1, np.float32)},
        priority=1,
        queue_timeout=1.5,
        timeout=math.inf,
    )
    assert result["OUTPUT0"].tolist() == [0]


def test_a_large_tensor(wire_client):
    values = np.arange(16 << 20, dtype=np.float32)  # 64 MiB
    assert (wire_client.infer("identity_fp32", {"INPUT0": values})["OUTPUT0"] == values).all()


def test_answers_that_are_kept_stay_as_they_were(wire_client):
    """Whatever is done to have memory without page faults: no two arrays have the same."""
    kept = []
    for byte_size in (1 << 20, 5 << 20, 40 << 20):  # ... the last of which grows on its way
        for value in range(3):
            values = np.full(byte_size // 4, value, np.float32)
            kept.append((wire_client.infer("identity_fp32", {"INPUT0": values})["OUTPUT0"], value))
    assert all((array == value).all() for array, value in kept)
    assert not any(np.shares_memory(one, other) for (one, _), (other, _) in combinations(kept, 2))


def test_what_a_plain_call_keeps_is_not_taken_for_another(wire_client):
    inputs = {"INPUT0": np.ones(16, np.float32)[None], "INPUT1": np.ones(16, np.float32)[None]}
    everything = set(wire_client.infer("add_sub", inputs))
    some = set(wire_client.infer("add_sub", inputs, outputs=["OUTPUT1"]))
    again = wire_client.infer("add_sub", inputs)
    versioned = wire_client.infer("add_sub", inputs, model_version="1")
    with pytest.raises(ServerError):
        wire_client.infer("add_sub", inputs, model_version="77")
    assert (everything, some) == ({"OUTPUT0", "OUTPUT1"}, {"OUTPUT1"})
    assert set(again) == set(versioned) == everything
    assert versioned.model_version == "1"
