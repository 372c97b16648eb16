"""triton_fast: numpy arrays to a Triton (KServe v2) server and back, in the least time.

>>> from triton_fast import Client
>>> with Client("localhost:8001") as client:  # doctest: +SKIP
...     result = client.infer("densenet", {"data_0": image})
...     scores = result["fc6_1"]

Importing it loads numpy and our own compiled codec, and neither grpc nor protobuf.
"""

from .client import Client
from .datatypes import DATATYPES
from .errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    ClosedError,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    InvalidOption,
    InvalidTensor,
    MissingDependency,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    ServerError,
    StatusCode,
    TritonFastError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
    WireError,
)
from .keepalive import Keepalive
from .metadata import ModelConfig, ModelMetadata, ServerMetadata, TensorMetadata
from .model import Model
from .request import RequestedOutput
from .response import InferResult
from .signature import Signature
from .tensor import Tensor
from .tls import TLS

__version__ = "0.1.0"

__all__ = [
    "DATATYPES",
    "TLS",
    "Aborted",
    "AlreadyExists",
    "Cancelled",
    "Client",
    "ClosedError",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "InferResult",
    "Internal",
    "InvalidArgument",
    "InvalidOption",
    "InvalidTensor",
    "Keepalive",
    "MissingDependency",
    "Model",
    "ModelConfig",
    "ModelMetadata",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "RequestedOutput",
    "ResourceExhausted",
    "ServerError",
    "ServerMetadata",
    "Signature",
    "StatusCode",
    "Tensor",
    "TensorMetadata",
    "TritonFastError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "WireError",
]
