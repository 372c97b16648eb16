"""Inferences in gRPC's protobuf messages, encoded and decoded in C++."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..._core import _wire
from ..messages import method_path

if TYPE_CHECKING:
    from ..codec import Codec

__all__ = ["GRPC"]


class _GrpcCodec:
    """See `triton_fast.protocol.codec.Codec`.

    Source
    ------
    inference.proto, ModelInfer and ModelStreamInfer.
    """

    def __reduce__(self) -> str:
        return "GRPC"  # there is one, and it is found by its name

    infer_method = method_path("ModelInfer")
    stream_method = method_path("ModelStreamInfer")
    header = _wire.Header
    stream_responses = _wire.StreamResponses


GRPC: Codec = _GrpcCodec()
