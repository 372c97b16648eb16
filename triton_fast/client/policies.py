# Written by `make twins` from policies_async.py, which is the one to edit.
"""What an endpoint does in more than one step: calls that are made again, checks that ask first.

Owns nothing: an endpoint is derived from it, and has the channel, the signatures and the use of
shared memory.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ..channels.base import CallOptions, Channel
from ..errors import InvalidTensor, ServerError, TritonFastError, Unimplemented, WireError
from ..inference.request import Prepared
from ..inference.result import InferResult
from .attempt import Attempt, Out
from .repeats import Repeats, distrust

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ..inference.signature import Signature
    from ..inference.signatures import Signatures
    from ..inference.tensor import InputTensor
    from ..protocol.codec import Codec
    from ..protocol.operations import Query
    from ..shared_memory.placement import SharedMemory

__all__ = ["Policies"]

T = TypeVar("T")


class Policies:
    """The base of `Endpoint`."""

    signatures: Signatures
    codec: Codec
    _shared: SharedMemory | None

    def exchange(self, method: str, fields: Mapping[str, Any], options: CallOptions) -> Message:
        """Make a management call, and return the answer's message; see `ask`."""
        raise NotImplementedError

    def _result_of(self, attempt: Attempt, options: CallOptions) -> InferResult:
        raise NotImplementedError

    def ask(self, query: Query[T], options: CallOptions) -> T:
        """Make a management call.

        Raises
        ------
        ServerError, WireError, ClosedError
            As `triton_fast.channels.base.Channel.call`.
        """
        try:
            message = self.exchange(query.method, query.fields, options)
        except ServerError as error:
            return query.failed(error)
        return query.read(message)

    def _infer(
        self,
        channel: Channel,
        prepared: Prepared,
        tensors: list[InputTensor],
        request_id: str,
        options: CallOptions,
        out: Out | None,
        repeats: Repeats | None,
    ) -> InferResult:
        """Run a model, again where `Repeats` says so, and wait."""
        shared = self._shared
        pause = None
        while True:
            if pause:
                time.sleep(pause)
            placement = None
            if shared is not None and (repeats is None or not repeats.on_the_wire):
                placement = shared.place(prepared, tensors, out, options)
            attempt = Attempt(prepared, tensors, request_id, out, placement)
            try:
                try:
                    channel.call(
                        self.codec.infer_method, attempt.request, attempt.response, options
                    )
                except BaseException as error:
                    repeats = repeats or Repeats(options.deadline_ns)
                    pause = repeats.after(error, shared, prepared, placement)
                    if pause is None:
                        raise
                    continue
                try:
                    result = self._result_of(attempt, options)
                except WireError as error:
                    distrust(error, shared, prepared, placement)
                    raise
            finally:
                attempt.release()
            if shared is not None:
                shared.learn(prepared, tensors, result)
            return result

    def _check(
        self,
        signature: Signature,
        prepared: Prepared,
        tensors: list[InputTensor],
        options: CallOptions,
    ) -> None:
        """Hold inputs against a model's signature."""
        try:
            signature.check(tensors, prepared.output_names)
        except InvalidTensor as refusal:
            # The model may have been replaced since: ask again before refusing.
            try:
                current = self.fetch_signature(prepared, options)
            except TritonFastError:
                raise refusal from None
            if current == signature:
                raise
            if current is not None:
                current.check(tensors, prepared.output_names)

    def fetch_signature(self, prepared: Prepared, options: CallOptions) -> Signature | None:
        """Ask the server for a signature, within the deadline of the call that wants it."""
        from ..management.server import model_config, model_metadata  # noqa: PLC0415 - management only

        name, version = prepared.model_name, prepared.model_version
        metadata = self.ask(model_metadata(name, version), options)
        try:
            config = self.ask(model_config(name, version), options)
        except Unimplemented:
            config = None  # not a Triton: the metadata is all there is
        return self.signatures.learn(prepared, metadata, config)
