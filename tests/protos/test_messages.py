"""The private pool of messages: what it gives, and what it leaves alone."""

from __future__ import annotations

import importlib.resources
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import descriptor_pb2, message_factory, text_format
from google.protobuf.internal import api_implementation
from support.interpreter import run_interpreter, run_python
from tritonclient.grpc import model_config_pb2, service_pb2

from triton_fast.errors import MissingDependency, TritonFastError, WireError
from triton_fast.protocol import messages
from triton_fast.protocol.grpc.queries import MessageIn

if TYPE_CHECKING:
    from collections.abc import Iterator

IMPLEMENTATION = "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"
implementations = pytest.mark.parametrize("implementation", ["upb", "python"])


@pytest.fixture
def not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next call load the descriptors again."""
    monkeypatch.setattr(messages, "_loaded", {})


# Names and classes


def test_method_path() -> None:
    assert messages.method_path("ModelReady") == "/inference.GRPCInferenceService/ModelReady"
    with pytest.raises(LookupError, match=r"GRPCInferenceService has no method 'modelReady'"):
        messages.method_path("modelReady")


def test_message_class_is_the_same_each_time() -> None:
    first = messages.message_class("ModelReadyRequest")
    assert first is messages.message_class("ModelReadyRequest")
    assert first.DESCRIPTOR.full_name == "inference.ModelReadyRequest"


def test_nested_classes_are_those_of_the_fields() -> None:
    nested = messages.message_class("ModelMetadataResponse.TensorMetadata")
    response: Any = messages.message_class("ModelMetadataResponse")()
    assert type(response.inputs.add()) is nested


@pytest.mark.parametrize("name", ["NoSuchMessage", "", "inference.ModelConfig", "DataType"])
def test_unknown_message(name: str) -> None:
    with pytest.raises(LookupError, match=f"the protocol has no message '{name}'"):
        messages.message_class(name)


def test_decode() -> None:
    message: Any = messages.decode("ModelReadyRequest", b"\x0a\x06resnet")
    assert (message.name, message.version) == ("resnet", "")


@pytest.mark.parametrize(
    "encoded",
    [
        pytest.param(b"\x0a\x06resne", id="cut short"),
        pytest.param(b"\x0a\x01\xff", id="not UTF-8"),
        pytest.param(b"\x00\x00", id="field number 0"),
        pytest.param(b"<html>", id="not protobuf"),
    ],
)
def test_decode_refuses_what_is_no_message(encoded: bytes) -> None:
    with pytest.raises(WireError, match=f"ModelReadyRequest of {len(encoded)} bytes"):
        messages.decode("ModelReadyRequest", encoded)


def test_decode_refuses_what_would_make_very_many_objects() -> None:
    """Two bytes of a message can be an object of seventy, and what we make of it has more."""
    one = b"\x0a\x00"  # field 1, nothing in it
    assert len(messages.decode("RepositoryIndexResponse", one * 262_144).models) == 262_144
    with pytest.raises(WireError, match="RepositoryIndexResponse of 524290 bytes has more than"):
        messages.decode("RepositoryIndexResponse", one * 262_145)
    inner = b"\x3a\x00" * 300_000  # of one model's statistics
    head = b"\x0a" + bytes([len(inner) & 127 | 128, len(inner) >> 7 & 127 | 128, len(inner) >> 14])
    with pytest.raises(WireError, match="has more than 262144 entries"):
        messages.decode("ModelStatisticsResponse", head + inner)
    # One that is broken as well has been decoded up to there by the time that it is found out.
    with pytest.raises(WireError, match="has more than 262144 entries"):
        messages.decode("RepositoryIndexResponse", one * 262_145 + b"\xff")


def test_an_answer_of_protobufs_has_a_size() -> None:
    answer = MessageIn("ModelConfigResponse")
    answer.begin(64 << 20)
    with pytest.raises(WireError, match="ModelConfigResponse of 67108865 bytes: at most 67108864"):
        answer.begin((64 << 20) + 1)


def test_decode_keeps_fields_of_later_servers() -> None:
    encoded = b"\x0a\x06resnet\xfa\x3f\x05later"  # field 1023
    message: Any = messages.decode("ModelReadyRequest", encoded)
    assert message.name == "resnet"
    assert message.SerializeToString() == encoded


# Round trips: what either pool writes, the other reads as the same


def scalar(field: Any, seed: int) -> Any:
    """Make a value unlike the default, that needs all of the type's range."""
    kind = field.type
    if kind == field.TYPE_BOOL:
        return True
    if kind in {field.TYPE_INT64, field.TYPE_INT32}:
        return -(2 ** (62 if kind == field.TYPE_INT64 else 30)) + seed
    if kind in {field.TYPE_UINT64, field.TYPE_UINT32}:
        return 2 ** (64 if kind == field.TYPE_UINT64 else 32) - 1 - seed
    if kind in {field.TYPE_DOUBLE, field.TYPE_FLOAT}:
        return 0.5 + seed
    if kind == field.TYPE_STRING:
        return f"{field.name} \N{GREEK SMALL LETTER LAMDA}\0 {seed}"
    if kind == field.TYPE_BYTES:
        return b"\xff\x00" + bytes([seed])
    if kind == field.TYPE_ENUM:
        values = field.enum_type.values
        return values[(1 + seed) % len(values)].number
    raise AssertionError(f"no value for {field.full_name}")


def fill(message: Any, choice: int = 0) -> None:
    """Set every field; of each oneof only one, by ``choice``."""
    descriptor = message.DESCRIPTOR
    left_out = {
        field.name
        for oneof in descriptor.oneofs
        for place, field in enumerate(oneof.fields)
        if place != choice % len(oneof.fields)
    }
    for field in descriptor.fields:
        if field.name in left_out:
            continue
        value = getattr(message, field.name)
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            key, item = entry.fields_by_name["key"], entry.fields_by_name["value"]
            for seed in range(2):
                if item.message_type is not None:
                    fill(value[scalar(key, seed)], choice + seed)
                else:
                    value[scalar(key, seed)] = scalar(item, seed)
        elif hasattr(value, "append"):
            for seed in range(2):
                if entry is not None:
                    fill(value.add(), choice + seed)
                else:
                    value.append(scalar(field, seed))
        elif entry is not None:
            value.SetInParent()
            fill(value, choice)
        else:
            setattr(message, field.name, scalar(field, choice))


def names(descriptors: Any) -> Iterator[str]:
    for descriptor in descriptors:
        yield descriptor.full_name.removeprefix("inference.")
        yield from names(descriptor.nested_types)


THEIRS = {
    name: message_factory.GetMessageClass(
        module.DESCRIPTOR.pool.FindMessageTypeByName(f"inference.{name}")
    )
    for module in (service_pb2, model_config_pb2)
    for name in names(module.DESCRIPTOR.message_types_by_name.values())
}


@pytest.mark.parametrize("name", sorted(THEIRS))
def test_round_trip(name: str) -> None:
    ours_class, theirs_class = messages.message_class(name), THEIRS[name]
    for choice in range(5):
        for writer, reader in ((ours_class, theirs_class), (theirs_class, ours_class)):
            written = writer()
            fill(written, choice)
            encoded = written.SerializeToString(deterministic=True)
            assert encoded or not written.DESCRIPTOR.fields
            read = reader.FromString(encoded)
            # Text has the names and values; a field that one side does not know would be in the
            # bytes only.
            assert text_format.MessageToString(read) == text_format.MessageToString(written)
            assert read.SerializeToString(deterministic=True) == encoded


def test_round_trips_cover_every_class() -> None:
    ours = {
        name
        for file in ("ModelConfig", "ModelInferRequest")
        for name in names(
            messages.message_class(file).DESCRIPTOR.file.message_types_by_name.values()
        )
    }
    assert ours == set(THEIRS)


def test_round_trip_finds_a_planted_fault() -> None:
    """The same comparison, over descriptors with one number wrong."""
    file = descriptor_pb2.FileDescriptorProto()
    messages.message_class("ServerLiveResponse").DESCRIPTOR.file.CopyToProto(file)
    live = next(m for m in file.message_type if m.name == "ServerLiveResponse").field[0]
    live.number = 2
    pool = message_factory.descriptor_pool.DescriptorPool()
    config = descriptor_pb2.FileDescriptorProto()
    messages.message_class("ModelConfig").DESCRIPTOR.file.CopyToProto(config)
    for each in (config, file):
        pool.AddSerializedFile(each.SerializeToString())
    wrong = message_factory.GetMessageClass(
        pool.FindMessageTypeByName("inference.ServerLiveResponse")
    )
    written: Any = wrong(live=True)
    read = THEIRS["ServerLiveResponse"].FromString(written.SerializeToString())
    assert text_format.MessageToString(read) != text_format.MessageToString(written)


# Living beside others: the default pool, tritonclient, threads, forks

USE_OURS = """
from triton_fast.protocol import messages
from triton_fast.management.metadata import ModelConfig

ours = messages.message_class("ModelInferRequest")(model_name="resnet")
ours.inputs.add(name="x", datatype="FP32", shape=[2])
ours.parameters["priority"].uint64_param = 1
config = messages.message_class("ModelConfig")(input=[{"name": "x", "data_type": 11}])
assert ModelConfig.from_message(config).inputs[0].datatype == "FP32"
"""
USE_THEIRS = """
import tritonclient.grpc
from tritonclient.grpc import service_pb2

x = tritonclient.grpc.InferInput("x", [2], "FP32")
theirs = service_pb2.ModelInferRequest(model_name="resnet")
theirs.inputs.add(name="x", datatype="FP32", shape=[2])
theirs.parameters["priority"].uint64_param = 1
"""
USE_BOTH = """
from google.protobuf.internal import api_implementation

assert ours.SerializeToString() == theirs.SerializeToString()
assert type(theirs).FromString(ours.SerializeToString()) == theirs
assert type(ours).FromString(theirs.SerializeToString()) == ours
print(api_implementation.Type())
"""


@implementations
@pytest.mark.parametrize(
    "order", [(USE_OURS, USE_THEIRS), (USE_THEIRS, USE_OURS)], ids=["ours first", "theirs first"]
)
def test_subprocess_tritonclient_imports_in_either_order(
    order: tuple[str, str], implementation: str
) -> None:
    script = "".join([*order, *order, USE_BOTH])
    assert (
        run_python(script, options=(), **{IMPLEMENTATION: implementation}) == f"{implementation}\n"
    )


def test_subprocess_a_second_definition_in_the_default_pool_would_break_it() -> None:
    """What the private pool is for: the same descriptors in the default pool do harm."""
    script = """
import importlib.resources
from google.protobuf import descriptor_pb2, descriptor_pool
encoded = importlib.resources.files("triton_fast").joinpath("inference.descriptors").read_bytes()
for file in descriptor_pb2.FileDescriptorSet.FromString(encoded).file:
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
try:
    import tritonclient.grpc
except TypeError as error:
    print("broken")
"""
    assert run_python(script, options=(), **{IMPLEMENTATION: "upb"}) == "broken\n"


@implementations
def test_subprocess_the_default_pool_stays_as_it_was(implementation: str) -> None:
    script = f"""{USE_OURS}
from google.protobuf import descriptor_pool
for name in ("inference.ModelConfig", "inference.ModelInferRequest"):
    try:
        descriptor_pool.Default().FindMessageTypeByName(name)
    except KeyError:
        print("not there")
"""
    output = run_python(script, options=(), **{IMPLEMENTATION: implementation})
    assert output == "not there\n" * 2


def test_subprocess_importing_loads_no_protobuf() -> None:
    script = """
import sys
from triton_fast.management import metadata
from triton_fast.protocol import messages
metadata.TensorMetadata("x", "FP32", (2,))
messages.method_path("ModelInfer")
print(sorted(name for name in sys.modules if name.partition(".")[0] in {"google", "grpc"}))
messages.message_class("ModelConfig")
print("google.protobuf" in sys.modules)
"""
    assert run_python(script, options=()) == "[]\nTrue\n"


@pytest.mark.usefixtures("not_loaded")
def test_threads_that_load_at_once_get_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    meet = threading.Barrier(4)
    real = importlib.resources.files

    def files(package: str) -> Any:
        meet.wait(timeout=20)  # every thread is in the middle of loading
        return real(package)

    monkeypatch.setattr(importlib.resources, "files", files)
    classes: list[object] = []
    threads = [
        threading.Thread(target=lambda: classes.append(messages.message_class("ModelConfig")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(classes) == 4
    assert len(set(classes)) == 1
    assert classes[0] is messages.message_class("ModelConfig")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_subprocess_fork_while_another_thread_loads() -> None:
    script = """
import importlib.resources, os, signal, threading
from triton_fast.protocol import messages

real, loading, go_on = importlib.resources.files, threading.Event(), threading.Event()

def files(package):
    loading.set()
    go_on.wait()
    return real(package)

importlib.resources.files = files
threading.Thread(target=messages.message_class, args=("ModelConfig",)).start()
loading.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    importlib.resources.files = real
    messages.message_class("ModelConfig")
    os._exit(0)
go_on.set()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_python(script, options=("-W", "ignore::DeprecationWarning")) == "0\n"


def test_implementation_is_the_one_asked_for() -> None:
    assert api_implementation.Type() == os.environ.get(IMPLEMENTATION, api_implementation.Type())


def test_subprocess_all_of_this_with_protobuf_in_pure_python() -> None:
    """Run these tests again, but for those that choose an implementation themselves."""
    here = Path(__file__).parent
    typed_views = here.parent / "unit" / "test_metadata.py"
    output, _ = run_interpreter(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not subprocess"),
        *(str(here), str(typed_views)),
        timeout=100,
        **{IMPLEMENTATION: "python"},
    )
    assert " passed" in output
    assert "skipped" not in output


# Installations that are not whole


@pytest.mark.usefixtures("not_loaded")
def test_no_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.protobuf.descriptor_pb2", None)
    with pytest.raises(MissingDependency, match=r"pip install 'protobuf>=4\.25'"):
        messages.message_class("ModelConfig")


@pytest.mark.usefixtures("not_loaded")
def test_protobuf_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(message_factory, "GetMessageClass")  # came with 4.22
    with pytest.raises(MissingDependency, match=r"GetMessageClass"):
        messages.message_class("ModelConfig")


@pytest.fixture
def installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, not_loaded: None
) -> tuple[Path, bytes]:
    """Where the package's data is looked for from now on, and the descriptors that belong there."""
    encoded = importlib.resources.files("triton_fast").joinpath("inference.descriptors")
    content = encoded.read_bytes()
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path / package)
    (tmp_path / "triton_fast").mkdir()
    return tmp_path / "triton_fast" / "inference.descriptors", content


def test_descriptors_missing(installed: tuple[Path, bytes]) -> None:
    with pytest.raises(TritonFastError, match=r"inference\.descriptors cannot be read.*reinstall"):
        messages.message_class("ModelConfig")


def test_descriptors_cut_short_anywhere(installed: tuple[Path, bytes]) -> None:
    path, content = installed
    files = descriptor_pb2.FileDescriptorSet.FromString(content).file
    # Also where a cut leaves whole files: none, and the first.
    first = len(descriptor_pb2.FileDescriptorSet(file=files[:1]).SerializeToString())
    for length in [0, first, *range(1, len(content), 499), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(TritonFastError, match=r"inference\.descriptors is damaged.*reinstall"):
            messages.message_class("ModelConfig")
    path.write_bytes(content)
    assert messages.message_class("ModelConfig").DESCRIPTOR.name == "ModelConfig"


def without_what_it_imports(files: descriptor_pb2.FileDescriptorSet) -> None:
    del files.file[0]


def type_that_is_nowhere(files: descriptor_pb2.FileDescriptorSet) -> None:
    files.file[1].message_type[0].field.add(
        name="x", number=1, label=1, type=11, type_name=".inference.Nowhere"
    )


def other_package(files: descriptor_pb2.FileDescriptorSet) -> None:
    del files.file[1].service[:]


@pytest.mark.parametrize("damage", [without_what_it_imports, type_that_is_nowhere, other_package])
def test_descriptors_that_do_not_fit_together(damage: Any, installed: tuple[Path, bytes]) -> None:
    path, content = installed
    files = descriptor_pb2.FileDescriptorSet.FromString(content)
    damage(files)
    path.write_bytes(files.SerializeToString())
    with pytest.raises(TritonFastError, match=r"inference\.descriptors is damaged"):
        messages.message_class("ModelConfig")
