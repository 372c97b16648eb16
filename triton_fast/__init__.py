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
    from .aio_client import AsyncClient as AsyncClient
    from .aio_model import AsyncModel as AsyncModel
    from .aio_sequences import AsyncInferSequence as AsyncInferSequence
    from .aio_streams import AsyncResponseStream as AsyncResponseStream
    from .aio_streams import AsyncStream as AsyncStream
    from .classification import Class as Class
    from .client import Client as Client
    from .datatypes import DATATYPES as DATATYPES
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
    from .generation import AsyncGeneration as AsyncGeneration
    from .generation import Generation as Generation
    from .health import Health as Health
    from .health import HealthStatus as HealthStatus
    from .keepalive import Keepalive as Keepalive
    from .metadata import ModelConfig as ModelConfig
    from .metadata import ModelMetadata as ModelMetadata
    from .metadata import ServerMetadata as ServerMetadata
    from .metadata import TensorMetadata as TensorMetadata
    from .model import Model as Model
    from .region import SharedMemoryRegion as SharedMemoryRegion
    from .registry import RegisteredRegion as RegisteredRegion
    from .request import RequestedOutput as RequestedOutput
    from .response import InferResult as InferResult
    from .sequences import InferSequence as InferSequence
    from .signature import Signature as Signature
    from .stale import StaleRegion as StaleRegion
    from .streams import ResponseStream as ResponseStream
    from .streams import Stream as Stream
    from .tensor import Tensor as Tensor
    from .text_events import Finished as Finished
    from .text_events import Started as Started
    from .text_events import Token as Token
    from .text_events import Usage as Usage
    from .text_models import PLAIN_TEXT as PLAIN_TEXT
    from .text_models import TENSORRT_LLM as TENSORRT_LLM
    from .text_models import VLLM as VLLM
    from .text_models import TextMapping as TextMapping
    from .tls import TLS as TLS

__version__ = "0.1.0"

# The public names, by the module that owns them; tests hold the imports above to it.
_NAMES = {
    "classification": ("Class",),
    "client": ("Client",),
    "datatypes": ("DATATYPES",),
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
    "generation": ("AsyncGeneration", "Generation"),
    "health": ("Health", "HealthStatus"),
    "keepalive": ("Keepalive",),
    "metadata": (
        "ModelConfig",
        "ModelMetadata",
        "ServerMetadata",
        "TensorMetadata",
    ),
    "model": ("Model",),
    "region": ("SharedMemoryRegion",),
    "registry": ("RegisteredRegion",),
    "request": ("RequestedOutput",),
    "aio_client": ("AsyncClient",),
    "aio_model": ("AsyncModel",),
    "aio_sequences": ("AsyncInferSequence",),
    "aio_streams": ("AsyncResponseStream", "AsyncStream"),
    "response": ("InferResult",),
    "sequences": ("InferSequence",),
    "streams": ("ResponseStream", "Stream"),
    "signature": ("Signature",),
    "stale": ("StaleRegion",),
    "tensor": ("Tensor",),
    "text_events": ("Finished", "Started", "Token", "Usage"),
    "text_models": ("PLAIN_TEXT", "TENSORRT_LLM", "VLLM", "TextMapping"),
    "tls": ("TLS",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_HOMES)
    if name not in _HOMES:
        raise AttributeError(f"module 'triton_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"triton_fast.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
