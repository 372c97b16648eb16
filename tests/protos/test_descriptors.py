"""Our descriptors against tritonclient's: two files of independent origin, one protocol.

Every message, field, oneof, enum value and method is one named fact; the two lists must be the
same.
"""

from __future__ import annotations

import importlib.resources
from typing import TYPE_CHECKING, TypeAlias

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)
from tritonclient.grpc import model_config_pb2, service_pb2

from triton_fast.protocol import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Facts: TypeAlias = dict[str, object]


def enum_facts(scope: str, enum: EnumDescriptorProto) -> Facts:
    facts: Facts = {f"enum {scope}.{enum.name}": str(enum.options)}
    for value in enum.value:
        facts[f"value {scope}.{enum.name}.{value.name}"] = value.number
    return facts


def message_facts(scope: str, message: DescriptorProto) -> Facts:
    full_name = f"{scope}.{message.name}"
    # The options say whether it is the entry of a map.
    facts: Facts = {f"message {full_name}": str(message.options)}
    for oneof in message.oneof_decl:
        facts[f"oneof {full_name}.{oneof.name}"] = None
    for field in message.field:
        facts[f"field {full_name}.{field.name}"] = {
            "number": field.number,
            "type": FieldDescriptorProto.Type.Name(field.type),
            "of": field.type_name,
            "label": FieldDescriptorProto.Label.Name(field.label),
            "oneof": message.oneof_decl[field.oneof_index].name
            if field.HasField("oneof_index")
            else None,
            "optional": field.proto3_optional,
            "default": field.default_value,
            "options": str(field.options),
        }
    for enum in message.enum_type:
        facts |= enum_facts(full_name, enum)
    for nested in message.nested_type:
        facts |= message_facts(full_name, nested)
    return facts


def facts_of(files: Iterable[FileDescriptorProto]) -> Facts:
    """List all that matters on the wire; names and order of the files do not."""
    facts: Facts = {}
    for file in files:
        # Decides whether repeated numbers are packed, and what presence means.
        facts[f"syntax of {file.package}"] = file.syntax
        for enum in file.enum_type:
            facts |= enum_facts(file.package, enum)
        for message in file.message_type:
            facts |= message_facts(file.package, message)
        for service in file.service:
            for method in service.method:
                facts[f"method {file.package}.{service.name}.{method.name}"] = {
                    "takes": method.input_type,
                    "gives": method.output_type,
                    "client_streaming": method.client_streaming,
                    "server_streaming": method.server_streaming,
                }
    return facts


def unequal(ours: Facts, theirs: Facts) -> list[str]:
    return [
        f"{name}: ours {ours[name]}, theirs {theirs[name]}"
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name] != theirs[name]
    ]


def missing(ours: Facts, theirs: Facts) -> list[str]:
    return sorted(theirs.keys() - ours.keys())


def packaged() -> FileDescriptorSet:
    """Read the file that the build put into the package."""
    resource = importlib.resources.files("triton_fast").joinpath("inference.descriptors")
    return FileDescriptorSet.FromString(resource.read_bytes())


@pytest.fixture(scope="module")
def theirs() -> Facts:
    files = []
    for module in (service_pb2, model_config_pb2):
        file = FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        files.append(file)
    facts = facts_of(files)
    # Against a comparison with nothing: the protocol of 2.73 has 20 methods and 600 other facts.
    assert sum(name.startswith("method ") for name in facts) >= 20
    assert len(facts) > 500
    return facts


@pytest.fixture(scope="module")
def ours() -> Facts:
    return facts_of(packaged().file)


def test_what_both_have_is_equal(ours: Facts, theirs: Facts) -> None:
    assert unequal(ours, theirs) == []


def test_nothing_is_missing(ours: Facts, theirs: Facts) -> None:
    assert missing(ours, theirs) == [], "tritonclient has these: add them to protos/"


def test_nothing_is_made_up(ours: Facts, theirs: Facts) -> None:
    assert missing(theirs, ours) == []


def test_the_package_has_our_two_files_without_their_comments() -> None:
    files = packaged().file
    assert [file.name for file in files] == ["model_config.proto", "inference.proto"]
    assert not any(file.HasField("source_code_info") for file in files)


def test_methods_are_the_services(ours: Facts) -> None:
    prefix = f"method {messages.SERVICE}."
    assert {name.removeprefix(prefix) for name in ours if name.startswith(prefix)} == set(
        messages.METHODS
    )


# The comparison itself: each fault planted in our descriptors must show, by name.


def message(files: FileDescriptorSet, name: str) -> DescriptorProto:
    return next(m for file in files.file for m in file.message_type if m.name == name)


def field(files: FileDescriptorSet, of: str, name: str) -> FieldDescriptorProto:
    return next(f for f in message(files, of).field if f.name == name)


def method(files: FileDescriptorSet, name: str) -> MethodDescriptorProto:
    return next(m for file in files.file for s in file.service for m in s.method if m.name == name)


def wrong_number(files: FileDescriptorSet) -> None:
    field(files, "ModelInferResponse", "raw_output_contents").number = 7


def wrong_type(files: FileDescriptorSet) -> None:
    field(files, "StatisticDuration", "ns").type = FieldDescriptorProto.TYPE_INT64


def wrong_message_type(files: FileDescriptorSet) -> None:
    field(files, "InferStatistics", "queue").type_name = ".inference.InferStatistics"


def wrong_label(files: FileDescriptorSet) -> None:
    field(files, "ServerMetadataResponse", "extensions").label = FieldDescriptorProto.LABEL_OPTIONAL


def left_its_oneof(files: FileDescriptorSet) -> None:
    field(files, "InferParameter", "double_param").ClearField("oneof_index")


def not_packed(files: FileDescriptorSet) -> None:
    field(files, "InferTensorContents", "fp32_contents").options.packed = False


def renamed(files: FileDescriptorSet) -> None:
    field(files, "ModelReadyRequest", "version").name = "model_version"


def field_left_out(files: FileDescriptorSet) -> None:
    fields = message(files, "ModelConfig").field
    del fields[next(i for i, f in enumerate(fields) if f.name == "runtime")]


def message_left_out(files: FileDescriptorSet) -> None:
    inference = files.file[1].message_type
    del inference[next(i for i, m in enumerate(inference) if m.name == "MemoryUsage")]


def wrong_enum_value(files: FileDescriptorSet) -> None:
    files.file[0].enum_type[0].value[1].number = 15


def not_a_map(files: FileDescriptorSet) -> None:
    message(files, "ModelInferRequest").nested_type[2].options.map_entry = False


def wrong_streaming(files: FileDescriptorSet) -> None:
    method(files, "ModelStreamInfer").server_streaming = False


def wrong_response(files: FileDescriptorSet) -> None:
    method(files, "ModelInfer").output_type = ".inference.ModelStreamInferResponse"


def method_left_out(files: FileDescriptorSet) -> None:
    methods = files.file[1].service[0].method
    del methods[next(i for i, m in enumerate(methods) if m.name == "LogSettings")]


def wrong_syntax(files: FileDescriptorSet) -> None:
    for file in files.file:
        file.syntax = "proto2"


@pytest.mark.parametrize(
    ("plant", "shows_as"),
    [
        (wrong_number, "unequal: field inference.ModelInferResponse.raw_output_contents"),
        (wrong_type, "unequal: field inference.StatisticDuration.ns"),
        (wrong_message_type, "unequal: field inference.InferStatistics.queue"),
        (wrong_label, "unequal: field inference.ServerMetadataResponse.extensions"),
        (left_its_oneof, "unequal: field inference.InferParameter.double_param"),
        (not_packed, "unequal: field inference.InferTensorContents.fp32_contents"),
        (renamed, "missing: field inference.ModelReadyRequest.version"),
        (renamed, "made up: field inference.ModelReadyRequest.model_version"),
        (field_left_out, "missing: field inference.ModelConfig.runtime"),
        (message_left_out, "missing: message inference.MemoryUsage"),
        (wrong_enum_value, "unequal: value inference.DataType.TYPE_BOOL"),
        (not_a_map, "unequal: message inference.ModelInferRequest.ParametersEntry"),
        (wrong_streaming, "unequal: method inference.GRPCInferenceService.ModelStreamInfer"),
        (wrong_response, "unequal: method inference.GRPCInferenceService.ModelInfer"),
        (method_left_out, "missing: method inference.GRPCInferenceService.LogSettings"),
        (wrong_syntax, "unequal: syntax of inference"),
    ],
)
def test_a_planted_fault_is_found(
    plant: Callable[[FileDescriptorSet], None], shows_as: str, theirs: Facts
) -> None:
    files = packaged()
    plant(files)
    faulty = facts_of(files.file)
    found = [
        *(f"unequal: {difference}" for difference in unequal(faulty, theirs)),
        *(f"missing: {name}" for name in missing(faulty, theirs)),
        *(f"made up: {name}" for name in missing(theirs, faulty)),
    ]
    assert any(difference.split(": ours")[0] == shows_as for difference in found), found
