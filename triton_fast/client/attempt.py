"""One try of an inference: its request, its receiver, and the slots of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..inference.request import Prepared, encode_request
from ..inference.result import InferResult, Receiver

if TYPE_CHECKING:
    from ..inference.tensor import InputTensor
    from ..shared_memory.placement import Placement
    from ..shared_memory.pool import Slot

__all__ = ["Attempt", "Out"]

Out: TypeAlias = Mapping[str, np.ndarray[Any, Any]]


class Attempt:
    """Both ends of one call of a model. They hold memory until `release`.

    Parameters
    ----------
    prepared : Prepared
        What stays the same.
    tensors : list of InputTensor
        The inputs.
    request_id : str
        As in `triton_fast.Client.infer`.
    out : mapping of str to numpy.ndarray, optional
        As in `triton_fast.Client.infer`.
    placement : Placement, optional
        What of it travels in shared memory.

    Attributes
    ----------
    request : RequestEncoder
        For the channel to send.
    response : ResponseDecoder
        For the channel to feed.
    placement : Placement or None
        As given.
    """

    __slots__ = ("_receiver", "placement", "request", "response")

    def __init__(
        self,
        prepared: Prepared,
        tensors: list[InputTensor],
        request_id: str,
        out: Out | None,
        placement: Placement | None,
    ) -> None:
        self.placement = placement
        placed: Mapping[str, Slot] = {}
        header = prepared.header
        if placement is not None:
            header, tensors, placed = placement.header, placement.tensors, placement.outputs
        self.request = encode_request(header, request_id, tensors)
        try:
            own: Mapping[str, Mapping[str, Any]] = {}
            if prepared.header.shared_memory_outputs:
                own = {name: parameters for name, parameters in prepared.requested if parameters}
            self._receiver = Receiver(header, out, placed, own)
        except BaseException:
            self.request.release()
            raise
        self.response = self._receiver.response

    @property
    def takes_long(self) -> bool:
        """Whether `result` is nothing for an event loop's own thread; see `Receiver.takes_long`."""
        return self._receiver.takes_long

    def result(self) -> InferResult:
        """Return the answer, once; see `Receiver.result`."""
        return self._receiver.result()

    def release(self) -> None:
        """Let go of the caller's memory, and of the slots. Idempotent."""
        self.request.release()
        self._receiver.release()
        self.placement = None
