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
)
from tritonclient.grpc import model_config_pb2, service_pb2

from triton_fast.protocol import messages

if TYPE_CHECKING:
    from collections.abc import Iterable

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
