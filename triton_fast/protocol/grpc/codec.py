"""Inferences in gRPC's protobuf messages, encoded and decoded in C++."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..._core import _wire
from ..messages import message_class, method_path

if TYPE_CHECKING:
    from ..codec import Codec

__all__ = ["GRPC"]


def _true_parameter(name: bytes) -> bytes:
    """Return a parameter of a request that is true: an entry of ModelInferRequest's field 4."""
    entry = b"\x0a%c%b\x12\x02\x08\x01" % (len(name), name)
    return b"\x22%c%b" % (len(entry), entry)


_FINAL_ANSWER = _true_parameter(b"triton_enable_empty_final_response")


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

    def without_final_answer(self, message: bytes) -> bytes:
        # It comes before the tensors, whose bytes may be anything.
        return message.replace(_FINAL_ANSWER, b"", 1)

    def parameter_names(self, message: bytes) -> set[str]:
        request: Any = message_class("ModelInferRequest").FromString(message)
        return set(request.parameters)

    stream_responses = _wire.StreamResponses


GRPC: Codec = _GrpcCodec()
