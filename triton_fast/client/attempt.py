"""One try of an inference: its request, its receiver, and the slots of both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..inference.request import Prepared, encode_request
from ..inference.result import InferResult, Receiver
from ..inference.tensor import out_array
from ..options.values import checked_mapping, checked_text

if TYPE_CHECKING:
    from ..inference.tensor import InputTensor
    from ..shared_memory.placement import Placement
    from ..shared_memory.pool import Slot

__all__ = ["Attempt", "Out", "checked_out"]

Out: TypeAlias = Mapping[str, np.ndarray[Any, Any]]
"""Where outputs are written, by their names."""


def checked_out(out: Mapping[str, Any] | None) -> Out | None:
    """Return a call's ``out=``, with torch's tensors as arrays on their memory.

    Raises
    ------
    InvalidOption
        If it is no mapping.
    InvalidTensor
        If it has something else than arrays and torch's tensors.
    """
    if checked_mapping(out, "out", "name to array") is None:
        return None
    assert out is not None
    foreign = False
    for name, array in out.items():
        checked_text(name, "a name in out", empty=True)
        foreign = foreign or not isinstance(array, np.ndarray)
    return {name: out_array(name, array) for name, array in out.items()} if foreign else out


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
            if prepared.header.shared_memory_outputs:
                own = {name: parameters for name, parameters in prepared.requested if parameters}
                self._receiver = Receiver(header, out, placed, own)
            else:
                self._receiver = Receiver(header, out, placed)
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
        if self.placement is not None:
            self.placement.over = True  # whoever has it still: a traceback, say
            self.placement = None
