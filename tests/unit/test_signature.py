"""A call is held against what the model takes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from triton_fast import InvalidTensor, ModelConfig, ModelMetadata, Signature, TensorMetadata
from triton_fast.inference.request import prepare
from triton_fast.inference.signatures import Signatures
from triton_fast.inference.tensor import input_tensor
from triton_fast.management.metadata import ModelInput
from triton_fast.protocol.grpc.codec import GRPC

METADATA = ModelMetadata(
    "m",
    ("1",),
    "python",
    (TensorMetadata("a", "FP32", (-1, 3)), TensorMetadata("b", "BYTES", (-1, 1))),
    (TensorMetadata("y", "FP32", (-1, 3)),),
)


def config(**changes):
    shape_tensors = changes.pop("shape_tensors", ())
    fields = {
        "name": "m",
        "platform": "",
        "backend": "python",
        "max_batch_size": 4,
        "inputs": (ModelInput("a", "FP32", (3,)), ModelInput("b", "BYTES", (1,), optional=True)),
        "outputs": (),
        "decoupled": False,
        "dynamic_batching": False,
        "sequence_batching": False,
        "ensemble": False,
        "response_cache": False,
        "parameters": {},
        "message": SimpleNamespace(
            input=[SimpleNamespace(name=n, is_shape_tensor=n in shape_tensors) for n in ("a", "b")]
        ),
    }
    return ModelConfig(**{**fields, **changes})


def check(signature, outputs=(), **inputs):
    signature.check([input_tensor(name, value) for name, value in inputs.items()], outputs)


A = np.zeros((2, 3), np.float32)


def test_a_call_that_fits():
    check(Signature.from_metadata(METADATA), a=A, b=[["x"], ["y"]], outputs=["y"])
    check(Signature.from_metadata(METADATA, config()), a=A)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({"c": A}, (), "model 'm' has no input 'c'; it takes 'a', 'b'"),
        ({"a": A.astype(np.float64)}, (), "input 'a' of model 'm' is FP32, and the tensor is FP64"),
        ({"a": A[0]}, (), r"input 'a' of model 'm' has shape \[-1, 3\].*tensor has \[3\]"),
        ({"a": A[:, :2]}, (), r"shape \[-1, 3\].*\[2, 2\]"),
        ({"a": A}, ("z",), "model 'm' has no output 'z'; it gives 'y'"),
        ({"b": [["x"]]}, (), "model 'm' also takes 'a', and the call has only 'b'"),
        ({}, (), "also takes 'a', and the call has no inputs"),
        ({"a": np.zeros((5, 3), np.float32)}, (), "batches of up to 4.* is 5"),
    ],
)
def test_a_call_that_does_not(inputs, outputs, message):
    with pytest.raises(InvalidTensor, match=message):
        check(Signature.from_metadata(METADATA, config()), outputs=outputs, **inputs)


def test_what_the_server_did_not_say_is_not_judged():
    bare = Signature.from_metadata(METADATA)
    check(bare)  # inputs may be optional
    check(bare, a=np.zeros((500, 3), np.float32))  # any batch
    assert Signature.from_metadata(ModelMetadata("m", (), "", (), ())) is None
    check(Signature.from_metadata(METADATA, config(shape_tensors={"a"})), a=A[0])


def test_what_is_known_of_models():
    """By the name and version that calls use; more is not replaced by less."""
    signatures = Signatures()
    call, other = (prepare(GRPC, "m", version, None, None, 0, None) for version in ("", "2"))
    assert signatures.get(call) is None
    signatures.remember(METADATA, "m", "")
    assert signatures.get(call).optional is None
    learnt = signatures.learn(call, METADATA, config())
    assert signatures.get(call) is learnt
    signatures.remember(METADATA, "m", "")
    assert signatures.get(call) is learnt
    assert signatures.get(other) is None
    nothing = ModelMetadata("m", (), "", (), ())
    assert signatures.learn(call, nothing, None) is None
    assert signatures.get(call) is learnt


def test_a_datatype_that_this_client_does_not_know():
    odd = ModelMetadata("m", ("1",), "", (TensorMetadata("a", "FP3", (1,)),), ())
    with pytest.raises(InvalidTensor, match="is FP3, and the tensor is FP32$"):
        check(Signature.from_metadata(odd), a=np.zeros(1, np.float32))
