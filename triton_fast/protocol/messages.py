"""The protocol's messages, for the calls whose speed does not matter: metadata, configuration.

Owns a descriptor pool of its own, filled on first use from the package data file
``inference.descriptors``, which the build makes from ``protos/``. Any thread may call anything
here. The only module that imports google.protobuf, and it does so on first use. The pool is private
because a second ``inference.ModelInferRequest`` in protobuf's default pool would break
``import tritonclient.grpc`` in the same process.
"""

# Imports wait for their first use: importing the package must not load protobuf.
# ruff: noqa: PLC0415

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .._core import _wire
from ..errors import MissingDependency, TritonFastError, WireError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message

__all__ = ["METHODS", "SERVICE", "are_loaded", "decode", "message_class", "method_path"]

SERVICE: Final = "inference.GRPCInferenceService"
"""Full name of the gRPC service."""

METHODS: Final = frozenset(
    {
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryStatus",
        "CudaSharedMemoryUnregister",
        "LogSettings",
        "ModelConfig",
        "ModelInfer",
        "ModelMetadata",
        "ModelReady",
        "ModelStatistics",
        "ModelStreamInfer",
        "RepositoryIndex",
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "ServerLive",
        "ServerMetadata",
        "ServerReady",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryStatus",
        "SystemSharedMemoryUnregister",
        "TraceSetting",
    }
)
"""The service's methods. Spelled out, so that an inference needs no protobuf to find its path."""

_PACKAGE: Final = SERVICE.rpartition(".")[0] + "."
_RESOURCE: Final = "inference.descriptors"
_REQUIRED: Final = "protobuf>=4.25"
# Texts and messages in an answer. Each may be two bytes in it, and takes about seventy in memory,
# and some more as what we make of it. The status of 10,000 shared memory regions has 50,000.
_MOST_ENTRIES: Final = 1 << 18

# Filled once, under the key _RESOURCE. No lock: a child forked while another thread held one could
# never load anything. Threads that come at the same time each load, and setdefault picks one.
_loaded: dict[str, Mapping[str, type[Message]]] = {}


def method_path(method: str) -> str:
    """Return the path under which gRPC calls a method of the service.

    Parameters
    ----------
    method : str
        Bare name, ``"ModelReady"``.

    Returns
    -------
    str
        ``"/inference.GRPCInferenceService/ModelReady"``.

    Raises
    ------
    LookupError
        If the service has no such method.

    Notes
    -----
    Thread-safe. Does not load protobuf.

    Source
    ------
    gRPC over HTTP/2, "Requests": Path → "/" Service-Name "/" {method name};
    protos/inference.proto, GRPCInferenceService

    Examples
    --------
    >>> method_path("ModelReady")
    '/inference.GRPCInferenceService/ModelReady'
    """
    if method not in METHODS:
        raise LookupError(f"{SERVICE} has no method {method!r}")
    return f"/{SERVICE}/{method}"


def are_loaded() -> bool:
    """Return whether `message_class` is quick; the first call of it takes a tenth of a second."""
    return _RESOURCE in _loaded


def message_class(name: str) -> type[Message]:
    r"""Return the protobuf class of one of the protocol's messages.

    Parameters
    ----------
    name : str
        Name in ``protos/`` without the package; a nested message comes after the one that it is in:
        ``"ModelMetadataResponse.TensorMetadata"``.

    Returns
    -------
    type
        A subclass of ``google.protobuf.message.Message``, the same one on every call.

    Raises
    ------
    LookupError
        If the protocol has no such message.
    MissingDependency
        If there is no protobuf, or too old a one.
    TritonFastError
        If the package's descriptor file is missing or damaged.

    Notes
    -----
    Thread-safe, also in a forked child. The first call imports protobuf and loads the descriptors.
    Messages of these classes mix with each other, but not with those of ``tritonclient``: to pass
    one there, serialize it.

    Source
    ------
    protos/inference.proto, protos/model_config.proto

    Examples
    --------
    >>> message_class("ModelReadyRequest")(name="resnet").SerializeToString()
    b'\n\x06resnet'
    """
    classes = _loaded.get(_RESOURCE)
    if classes is None:
        classes = _loaded.setdefault(_RESOURCE, _load())
    try:
        return classes[name]
    except KeyError:
        raise LookupError(f"the protocol has no message {name!r}") from None


def decode(name: str, encoded: bytes) -> Message:
    """Read one of the protocol's messages from bytes that a server sent.

    Parameters
    ----------
    name : str
        As for `message_class`.
    encoded : bytes
        The whole message. Copied: not needed once this returns.

    Returns
    -------
    google.protobuf.message.Message
        The message; fields that ``protos/`` does not have are in it as unknown fields.

    Raises
    ------
    WireError
        If the bytes are not such a message, or if they would make so many objects as no server's
        answer has.
    LookupError, MissingDependency, TritonFastError
        As for `message_class`.

    Notes
    -----
    Thread-safe.

    Source
    ------
    protos/inference.proto, protos/model_config.proto
    """
    kind = message_class(name)
    if _wire.count_message_entries(encoded, _MOST_ENTRIES) > _MOST_ENTRIES:
        raise WireError(
            f"{name} of {len(encoded)} bytes has more than {_MOST_ENTRIES} entries: "
            "texts, and messages in it"
        )
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(encoded)
    except (DecodeError, UnicodeDecodeError) as error:  # the latter from the pure Python one
        raise WireError(f"{name} of {len(encoded)} bytes cannot be decoded: {error}") from error


def _load() -> Mapping[str, type[Message]]:
    """Read the descriptor file into a new pool and make the class of every message in it."""
    import importlib.resources

    try:
        from google.protobuf.descriptor_pb2 import FileDescriptorSet
        from google.protobuf.descriptor_pool import DescriptorPool
        from google.protobuf.message import DecodeError
        from google.protobuf.message_factory import GetMessageClass
    except ImportError as error:
        raise MissingDependency(
            f"this call needs {_REQUIRED}, which is not installed or older: "
            f"pip install '{_REQUIRED}' ({error})"
        ) from error

    # The package as a resource, not a path beside this file: an editable install keeps them apart.
    resource = importlib.resources.files("triton_fast").joinpath(_RESOURCE)
    try:
        encoded = resource.read_bytes()
    except OSError as error:
        raise TritonFastError(
            f"{resource} cannot be read, the installation is incomplete: "
            f"reinstall triton-fast ({error})"
        ) from error

    pool = DescriptorPool()
    classes: dict[str, type[Message]] = {}

    def add(descriptors: Iterable[Descriptor]) -> None:
        for descriptor in descriptors:
            # All at once: protobuf's pure Python implementation makes them without a lock.
            classes[descriptor.full_name.removeprefix(_PACKAGE)] = GetMessageClass(descriptor)
            add(descriptor.nested_types)

    # What protobuf raises for descriptors that it cannot use depends on its implementation.
    try:
        files = FileDescriptorSet.FromString(encoded).file
        for file in files:
            pool.AddSerializedFile(file.SerializeToString())
        for file in files:
            add(pool.FindFileByName(file.name).message_types_by_name.values())
        pool.FindServiceByName(SERVICE)
    except (DecodeError, KeyError, TypeError, ValueError) as error:
        raise TritonFastError(
            f"{resource} is damaged or was made for another version: "
            f"reinstall triton-fast ({error})"
        ) from error
    return classes
