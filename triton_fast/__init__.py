"""triton_fast: numpy arrays to a Triton (KServe v2) server and back, in the least time.

>>> from triton_fast import Client
>>> with Client("localhost:8001") as client:  # doctest: +SKIP
...     result = client.infer("densenet", {"data_0": image})
...     scores = result["fc6_1"]

Each name is loaded when it is first asked for: a program that calls pays for no more than it uses,
and pytest, which imports this package for its plugin wherever it is installed, for nothing. Neither
grpc nor protobuf is loaded before the first call that needs it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .channels.base import Compression as Compression
    from .client.client import Client as Client
    from .client.client_async import AsyncClient as AsyncClient
    from .client.model import Model as Model
    from .client.model_async import AsyncModel as AsyncModel
    from .errors import Aborted as Aborted
    from .errors import AlreadyExists as AlreadyExists
    from .errors import Cancelled as Cancelled
    from .errors import ClosedError as ClosedError
    from .errors import DataLoss as DataLoss
    from .errors import DeadlineExceeded as DeadlineExceeded
    from .errors import FailedPrecondition as FailedPrecondition
    from .errors import Internal as Internal
    from .errors import InvalidArgument as InvalidArgument
    from .errors import InvalidOption as InvalidOption
    from .errors import InvalidTensor as InvalidTensor
    from .errors import LoopError as LoopError
    from .errors import MissingDependency as MissingDependency
    from .errors import NotFound as NotFound
    from .errors import OutOfRange as OutOfRange
    from .errors import PermissionDenied as PermissionDenied
    from .errors import ResourceExhausted as ResourceExhausted
    from .errors import ServerError as ServerError
    from .errors import SharedMemoryError as SharedMemoryError
    from .errors import StatusCode as StatusCode
    from .errors import TritonFastError as TritonFastError
    from .errors import Unauthenticated as Unauthenticated
    from .errors import Unavailable as Unavailable
    from .errors import Unimplemented as Unimplemented
    from .errors import Unknown as Unknown
    from .errors import WireError as WireError
    from .inference.classification import Class as Class
    from .inference.request import Outputs as Outputs
    from .inference.request import RequestedOutput as RequestedOutput
    from .inference.result import InferResult as InferResult
    from .inference.signature import Signature as Signature
    from .inference.tensor import Tensor as Tensor
    from .management.health import Health as Health
    from .management.health import HealthStatus as HealthStatus
    from .management.metadata import ModelConfig as ModelConfig
    from .management.metadata import ModelMetadata as ModelMetadata
    from .management.metadata import ServerMetadata as ServerMetadata
    from .management.metadata import TensorMetadata as TensorMetadata
    from .options.headers import HeaderSource as HeaderSource
    from .options.keepalive import Keepalive as Keepalive
    from .options.tls import TLS as TLS
    from .protocol.datatypes import DATATYPES as DATATYPES
    from .shared_memory.ownership import StaleRegion as StaleRegion
    from .shared_memory.region import SharedMemoryRegion as SharedMemoryRegion
    from .shared_memory.registration import RegisteredRegion as RegisteredRegion
    from .streaming.sequence import InferSequence as InferSequence
    from .streaming.sequence_async import AsyncInferSequence as AsyncInferSequence
    from .streaming.stream import ResponseStream as ResponseStream
    from .streaming.stream import Stream as Stream
    from .streaming.stream_async import AsyncResponseStream as AsyncResponseStream
    from .streaming.stream_async import AsyncStream as AsyncStream
    from .text.events import Finished as Finished
    from .text.events import Started as Started
    from .text.events import Token as Token
    from .text.events import Usage as Usage
    from .text.generation import Generation as Generation
    from .text.generation_async import AsyncGeneration as AsyncGeneration
    from .text.mappings import PLAIN_TEXT as PLAIN_TEXT
    from .text.mappings import TENSORRT_LLM as TENSORRT_LLM
    from .text.mappings import VLLM as VLLM
    from .text.mappings import TextMapping as TextMapping

__version__ = "0.1.0"

# The public names, by the module that owns them; tests hold the imports above to it.
_NAMES = {
    "inference.classification": ("Class",),
    "channels.base": ("Compression",),
    "client.client": ("Client",),
    "protocol.datatypes": ("DATATYPES",),
    "errors": (
        "Aborted",
        "AlreadyExists",
        "Cancelled",
        "ClosedError",
        "DataLoss",
        "DeadlineExceeded",
        "FailedPrecondition",
        "Internal",
        "InvalidArgument",
        "InvalidOption",
        "InvalidTensor",
        "LoopError",
        "MissingDependency",
        "NotFound",
        "OutOfRange",
        "PermissionDenied",
        "ResourceExhausted",
        "ServerError",
        "SharedMemoryError",
        "StatusCode",
        "TritonFastError",
        "Unauthenticated",
        "Unavailable",
        "Unimplemented",
        "Unknown",
        "WireError",
    ),
    "text.generation_async": ("AsyncGeneration",),
    "text.generation": ("Generation",),
    "management.health": ("Health", "HealthStatus"),
    "options.headers": ("HeaderSource",),
    "options.keepalive": ("Keepalive",),
    "management.metadata": (
        "ModelConfig",
        "ModelMetadata",
        "ServerMetadata",
        "TensorMetadata",
    ),
    "client.model": ("Model",),
    "shared_memory.region": ("SharedMemoryRegion",),
    "shared_memory.registration": ("RegisteredRegion",),
    "inference.request": ("Outputs", "RequestedOutput"),
    "client.client_async": ("AsyncClient",),
    "client.model_async": ("AsyncModel",),
    "streaming.sequence_async": ("AsyncInferSequence",),
    "streaming.stream_async": ("AsyncResponseStream", "AsyncStream"),
    "inference.result": ("InferResult",),
    "streaming.sequence": ("InferSequence",),
    "streaming.stream": ("ResponseStream", "Stream"),
    "inference.signature": ("Signature",),
    "shared_memory.ownership": ("StaleRegion",),
    "inference.tensor": ("Tensor",),
    "text.events": ("Finished", "Started", "Token", "Usage"),
    "text.mappings": ("PLAIN_TEXT", "TENSORRT_LLM", "VLLM", "TextMapping"),
    "options.tls": ("TLS",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_HOMES)
    if name == "testing":
        return importlib.import_module("triton_fast.testing")
    if name not in _HOMES:
        raise AttributeError(f"module 'triton_fast' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"triton_fast.{_HOMES[name]}"), name)
    except ImportError as error:
        # What it says by itself: cannot import name '_wire' from 'triton_fast._core'.
        if error.name != "triton_fast._core":
            raise
        raise ImportError(
            f"triton_fast was imported from {__file__.rpartition('/triton_fast/')[0]}, where it is "
            "not compiled. If that is a clone of its source, start Python in another folder, or "
            "with -P, to import the triton_fast that is installed; or install it: pip install ."
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*_HOMES, "testing"])
