"""What a server says of itself and its models, as values: read out of its messages."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
from tritonclient.utils import triton_to_np_dtype

from triton_fast.management.metadata import (
    ModelConfig,
    ModelInput,
    ModelMetadata,
    ModelOutput,
    ServerMetadata,
    TensorMetadata,
)
from triton_fast.protocol import messages


def test_server_metadata() -> None:
    message = messages.message_class("ServerMetadataResponse")(
        name="triton", version="2.51.0", extensions=["classification", "sequence"]
    )
    assert ServerMetadata.from_message(message) == ServerMetadata(
        "triton", "2.51.0", ("classification", "sequence")
    )


def test_model_metadata() -> None:
    message = messages.message_class("ModelMetadataResponse")(
        name="resnet",
        versions=["1", "3"],
        platform="onnxruntime_onnx",
        inputs=[{"name": "image", "datatype": "FP32", "shape": [-1, 3, 224, 224]}],
        outputs=[{"name": "scores", "datatype": "FP16", "shape": []}],
    )
    metadata = ModelMetadata.from_message(message)
    assert metadata == ModelMetadata(
        name="resnet",
        versions=("1", "3"),
        platform="onnxruntime_onnx",
        inputs=(TensorMetadata("image", "FP32", (-1, 3, 224, 224)),),
        outputs=(TensorMetadata("scores", "FP16", ()),),
    )
    assert {metadata: 1}[metadata] == 1  # usable as a key
    with pytest.raises(dataclasses.FrozenInstanceError):
        metadata.name = "other"  # type: ignore[misc]
    assert not hasattr(metadata, "__dict__")


def config(**fields: Any) -> Any:
    return messages.message_class("ModelConfig")(**fields)


def full_config() -> Any:
    message = config(
        name="resnet",
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        max_batch_size=8,
        input=[
            {"name": "image", "data_type": "TYPE_FP32", "dims": [3, -1]},
            {"name": "mask", "data_type": "TYPE_BOOL", "optional": True},
            {"name": "text", "data_type": "TYPE_STRING", "dims": [1], "allow_ragged_batch": True},
        ],
        output=[
            {"name": "scores", "data_type": "TYPE_BF16", "dims": [10], "label_filename": "labels"},
            {"name": "id", "data_type": "TYPE_UINT64", "dims": [1]},
        ],
        instance_group=[{"count": 2, "kind": "KIND_CPU"}],
        response_cache={"enable": True},
        model_transaction_policy={"decoupled": True},
        dynamic_batching={"max_queue_delay_microseconds": 100},
    )
    message.parameters["threads"].string_value = "4"
    return message


def test_model_config() -> None:
    message = full_config()
    view = ModelConfig.from_message(message)
    assert view.inputs == (
        ModelInput("image", "FP32", (3, -1)),
        ModelInput("mask", "BOOL", (), optional=True),
        ModelInput("text", "BYTES", (1,), allow_ragged_batch=True),
    )
    assert view.outputs == (
        ModelOutput("scores", "BF16", (10,), "labels"),
        ModelOutput("id", "UINT64", (1,)),
    )
    assert (view.name, view.platform, view.backend) == ("resnet", "onnxruntime_onnx", "onnxruntime")
    assert view.max_batch_size == 8
    assert view.decoupled
    assert view.response_cache
    assert dict(view.parameters) == {"threads": "4"}
    assert view.message.instance_group[0].count == 2
    with pytest.raises(TypeError):
        view.parameters["threads"] = "5"  # type: ignore[index]


def test_model_config_defaults() -> None:
    view = ModelConfig.from_message(config(name="plain"))
    assert (view.max_batch_size, view.inputs, view.outputs) == (0, (), ())
    assert not any([view.decoupled, view.response_cache, view.parameters])


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("dynamic_batching", (True, False, False)),
        ("sequence_batching", (False, True, False)),
        ("ensemble_scheduling", (False, False, True)),
        (None, (False, False, False)),
    ],
)
def test_model_config_scheduling(choice: str | None, expected: tuple[bool, ...]) -> None:
    view = ModelConfig.from_message(config(**({choice: {}} if choice else {})))
    assert (view.dynamic_batching, view.sequence_batching, view.ensemble) == expected


def test_model_config_can_be_copied_pickled_and_compared() -> None:
    view = ModelConfig.from_message(full_config())
    for twin in (pickle.loads(pickle.dumps(view)), copy.deepcopy(view), copy.copy(view)):
        assert twin == view
        assert hash(twin) == hash(view)
        assert twin.message is not view.message
    changed = full_config()
    changed.instance_group[0].count = 3  # only the whole message has it
    assert ModelConfig.from_message(changed) != view


DATATYPES = {
    "TYPE_INVALID": "INVALID",
    "TYPE_BOOL": "BOOL",
    "TYPE_UINT8": "UINT8",
    "TYPE_UINT16": "UINT16",
    "TYPE_UINT32": "UINT32",
    "TYPE_UINT64": "UINT64",
    "TYPE_INT8": "INT8",
    "TYPE_INT16": "INT16",
    "TYPE_INT32": "INT32",
    "TYPE_INT64": "INT64",
    "TYPE_FP16": "FP16",
    "TYPE_FP32": "FP32",
    "TYPE_FP64": "FP64",
    "TYPE_STRING": "BYTES",
    "TYPE_BF16": "BF16",
}


def test_every_datatype_is_spelled_as_in_requests() -> None:
    enum = messages.message_class("ModelInput").DESCRIPTOR.fields_by_name["data_type"].enum_type
    spelled = {
        value.name: (
            ModelInput.from_message(
                messages.message_class("ModelInput")(data_type=value.number)
            ).datatype,
            ModelOutput.from_message(
                messages.message_class("ModelOutput")(data_type=value.number)
            ).datatype,
        )
        for value in enum.values
    }
    assert spelled == {name: (datatype, datatype) for name, datatype in DATATYPES.items()}


def test_every_datatype_is_one_that_tritonclient_spells_the_same() -> None:
    for datatype in set(DATATYPES.values()) - {"INVALID"}:
        assert triton_to_np_dtype(datatype) is not None, datatype
    assert triton_to_np_dtype("STRING") is None  # so that this can fail


def test_datatype_of_a_later_server() -> None:
    message = messages.decode("ModelInput", b"\x0a\x01x\x10\x63")  # data_type = 99
    assert ModelInput.from_message(message).datatype == "TYPE_99"
