"""What an endpoint does in more than one step: calls that are made again, checks that ask first.

Owns nothing: an endpoint is derived from it, and has the channel, the signatures and the use of
shared memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..channels.base import AsyncChannel, CallOptions
from ..errors import (
    InvalidTensor,
    NotFound,
    ServerError,
    TritonFastError,
    Unimplemented,
    WireError,
    add_remark,
)
from ..inference.request import Prepared
from ..inference.result import InferResult
from ..protocol.server_messages import refuses_tensors, unknown_model
from .attempt import Attempt, Out
from .repeats import Repeats, distrust

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ..inference.signature import Signature
    from ..inference.signatures import Signatures
    from ..inference.tensor import InputTensor
    from ..protocol.codec import Codec
    from ..protocol.operations import Query
    from ..shared_memory.placement_async import AsyncSharedMemory

__all__ = ["AsyncPolicies"]

T = TypeVar("T")

# What finding out more about an error may take.
_BRIEF_NS = 2 * 10**9


class AsyncPolicies:
    """The base of `AsyncEndpoint`."""

    signatures: Signatures
    codec: Codec
    _shared: AsyncSharedMemory | None

    async def exchange(
        self, method: str, fields: Mapping[str, Any], options: CallOptions
    ) -> Message:
        """Make a management call, and return the answer's message; see `ask`."""
        raise NotImplementedError

    async def _result_of(self, attempt: Attempt, options: CallOptions) -> InferResult:
        raise NotImplementedError

    async def ask(self, query: Query[T], options: CallOptions) -> T:
        """Make a management call.

        Raises
        ------
        ServerError, WireError, ClosedError
            As `triton_fast.channels.base.AsyncChannel.call`.
        """
        try:
            message = await self.exchange(query.method, query.fields, options)
        except ServerError as error:
            return query.failed(error)
        return query.read(message)

    async def _infer(
        self,
        channel: AsyncChannel,
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
                await asyncio.sleep(pause)
            placement = None
            if shared is not None and (repeats is None or not repeats.on_the_wire):
                placement = await shared.place(prepared, tensors, out, options)
            attempt = Attempt(prepared, tensors, request_id, out, placement)
            try:
                try:
                    await channel.call(
                        self.codec.infer_method, attempt.request, attempt.response, options
                    )
                except BaseException as error:
                    repeats = repeats or Repeats(options.deadline_ns)
                    pause = repeats.after(error, shared, prepared, placement)
                    if pause is None:
                        await self._explain(error, prepared, tensors, options)
                        raise
                    continue
                try:
                    result = await self._result_of(attempt, options)
                except WireError as error:
                    distrust(error, shared, prepared, placement)
                    raise
            finally:
                attempt.release()
            if shared is not None:
                shared.learn(prepared, tensors, result)
            return result

    async def _explain(
        self,
        error: BaseException,
        prepared: Prepared,
        tensors: list[InputTensor],
        options: CallOptions,
    ) -> None:
        """Find out what is wrong with a call that the server has refused, which says less.

        The names that there are are added to the error. What is wrong with the tensors is of the
        same class whether the model's signature was known before or not.
        """
        if isinstance(error, NotFound):
            await self._name_models(error, prepared, options)
        # What a request of a sequence is refused for, its sequence has to know.
        elif "sequence_id" in (prepared.settings["parameters"] or ()):
            return
        elif refuses_tensors(error):
            try:
                signature = await self.fetch_signature(prepared, _brief(options))
            except TritonFastError:
                return
            if signature is not None:
                signature.check(tensors, prepared.output_names)

    async def _name_models(self, error: NotFound, prepared: Prepared, options: CallOptions) -> None:
        """Add to the error of a model that the server has not which models it has."""
        if not unknown_model(error):
            return
        from ..management.known_models import models_in_place_of  # noqa: PLC0415 - for this alone

        try:
            index = await self.exchange("RepositoryIndex", {}, _brief(options))
        except TritonFastError:
            return
        add_remark(error, models_in_place_of(prepared.model_name, index))

    async def _check(
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
                current = await self.fetch_signature(prepared, options)
            except TritonFastError:
                raise refusal from None
            if current == signature:
                raise
            if current is not None:
                current.check(tensors, prepared.output_names)

    async def fetch_signature(self, prepared: Prepared, options: CallOptions) -> Signature | None:
        """Ask the server for a signature, within the deadline of the call that wants it."""
        from ..management.server import model_config, model_metadata  # noqa: PLC0415 - management only

        name, version = prepared.model_name, prepared.model_version
        try:
            metadata = await self.ask(model_metadata(name, version), options)
        except NotFound as error:
            await self._name_models(error, prepared, options)
            raise
        try:
            config = await self.ask(model_config(name, version), options)
        except Unimplemented:
            config = None  # not a Triton: the metadata is all there is
        return self.signatures.learn(prepared, metadata, config)


def _brief(options: CallOptions) -> CallOptions:
    """Return options of a call that is made for an error's sake."""
    end = time.monotonic_ns() + _BRIEF_NS
    if options.deadline_ns is not None:
        end = min(end, options.deadline_ns)
    return replace(options, deadline_ns=end)
