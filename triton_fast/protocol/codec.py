"""What a protocol makes of an inference: the contract between what a call is and its bytes.

Owns no state and no format. `triton_fast.inference` describes a call with it, a channel moves what
it makes, and each protocol has a folder beside this module with a `Codec`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..channels.base import Incoming, Outgoing, StreamIncoming

__all__ = ["Codec", "Header", "RequestEncoder", "ResponseDecoder"]


class RequestEncoder(Outgoing, Protocol):
    """One request, around tensors that stay where they are."""

    def add_input(
        self,
        name: str,
        datatype: str,
        shape: Sequence[int],
        payload: Any,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Add a tensor.

        Parameters
        ----------
        name, datatype : str
            As the model calls it; the datatype in Triton's spelling.
        shape : sequence of int
            With the batch dimension, if the model has one.
        payload : buffer or None
            Its elements, C-contiguous; held until `release`. None for a tensor in shared memory.
        parameters : mapping, optional
            Parameters of this tensor.
        """

    def release(self) -> None:
        """Let go of the tensors' memory, once the call is over. Idempotent."""


class ResponseDecoder(Incoming, Protocol):
    """One response, decoded as it arrives."""

    def place(self, name: str, datatype: str, shape: Sequence[int], array: Any) -> None:
        """Have an output written to an array of the caller's, if it turns out to fit.

        The array is held until `release`; its contents are undefined if the call fails.
        """

    @property
    def error_message(self) -> str:
        """What a stream's message says that went wrong with its request; empty if nothing did."""

    @property
    def string_bytes(self) -> int:
        """How many bytes the elements of BYTES tensors take, that `take` has yet to hand on."""

    def take(self) -> tuple[str, str, str, dict[str, Any], list[Any]]:
        """Hand on what was decoded, once; the response must be complete.

        Returns
        -------
        tuple
            Model name, model version, id, parameters, and a list with
            ``(name, datatype, shape, payload, parameters)`` for each output. The payload is memory
            of the output's own; True when the output is in the array given to `place`; None when it
            is in shared memory.
        """

    def release(self) -> None:
        """Let go of the arrays given to `place`. Idempotent."""


class Header(Protocol):
    """The part of a request that stays the same from call to call, encoded once. Immutable."""

    @property
    def shared_memory_outputs(self) -> tuple[str, ...]:
        """Outputs that are asked for in shared memory: no elements come for them."""

    def request(self, request_id: str) -> RequestEncoder:
        """Return a request that begins with this."""

    def response(self) -> ResponseDecoder:
        """Return what receives the answer to such a request."""


class Codec(Protocol):
    """A protocol's encoding of inferences."""

    @property
    def infer_method(self) -> str:
        """What a channel is told to call for one answer."""

    @property
    def stream_method(self) -> str:
        """What a channel is told to call for many."""

    def header(
        self,
        model_name: str,
        model_version: str = "",
        *,
        parameters: Mapping[str, Any] | None = None,
        priority: int = 0,
        queue_timeout_us: int | None = None,
        outputs: Sequence[tuple[str, Mapping[str, Any] | None]] = (),
    ) -> Header:
        """Encode what a request has beside its id and its tensors.

        Raises
        ------
        InvalidOption
            If a value cannot be sent.
        """

    def without_final_answer(self, message: bytes) -> bytes:
        """Return a stream's request, encoded, without the wish that its last answer be marked."""

    def parameter_names(self, message: bytes) -> set[str]:
        """Return the names of an encoded request's parameters; slow, for errors."""

    def stream_responses(self) -> StreamIncoming[ResponseDecoder]:
        """Return what receives the messages of one stream."""
