"""AsyncConnection: one server's channel for coroutines, and how calls are made on it.

What `triton_fast.connection` is for threads. What of shared memory may take long, registering and
large copies, is done on the event loop's threads, over a small channel of its own.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from .attempt import MODEL_INFER, MODEL_STREAM_INFER, Attempt, Out
from .channels.base import AsyncChannel, AsyncChannelStream, CallOptions, Channel, Compression
from .channels.choice import AsyncChannelFactory, ChannelFactory
from .channels.loops import in_thread
from .errors import ClosedError, InvalidTensor, ServerError, TritonFastError, Unimplemented
from .forks import inherit, renew_after_fork
from .headers import HeaderSource
from .management import model_config, model_metadata
from .messages import method_path
from .placement import NotAtOnce
from .query import Query
from .request import UNSET, Prepared, input_tensors
from .response import InferResult
from .sharing import SharedFactory, array_layout
from .signatures import Signatures
from .unary import message_ends

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from .admission import Admission
    from .aio_streams import AsyncStream
    from .call_settings import CallSettings
    from .placement import SharedMemory
    from .signature import Signature
    from .tensor import InputTensor

__all__ = ["AsyncConnection", "AsyncHeaderHook"]

AsyncHeaderHook: TypeAlias = Callable[[str], HeaderSource | Awaitable[HeaderSource | None] | None]
T = TypeVar("T")

# How long closing waits for the server to let go of shared memory.
FAREWELL_S = 2.0
# Of inputs that have to be rewritten before they can be sent: more than a millisecond's worth.
_SLOW = 1 << 20


class AsyncConnection:
    """One server, as a client for coroutines and its models see it.

    Parameters
    ----------
    url : str
        For errors.
    new_channel : callable
        Makes the channel; called again in a forked child.
    new_blocking : callable
        Makes the channel that registers shared memory.
    settings : CallSettings
        Of all calls.
    admission : Admission
        Lets calls in.
    new_shared : callable, optional
        Makes what puts tensors into shared memory; called again in a forked child. Left out, all
        goes over the wire.

    Attributes
    ----------
    url : str
        As given.
    signatures : Signatures
        What is known of models.
    """

    def __init__(
        self,
        url: str,
        new_channel: AsyncChannelFactory,
        new_blocking: ChannelFactory,
        settings: CallSettings[AsyncHeaderHook],
        admission: Callable[[], Admission],
        new_shared: SharedFactory | None = None,
    ) -> None:
        self.url = url
        self.signatures = Signatures()
        self._settings = settings
        self._closed = False
        self._new_channel = new_channel
        self._channel: AsyncChannel = new_channel()
        self._new_blocking = new_blocking
        self._blocking: Channel | None = None
        self._new_admission = admission
        self._admission = admission()
        self._new_shared = new_shared
        self._shared = self._open_shared()
        renew_after_fork(self)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    async def close(self) -> None:
        """Give the channel back; running calls end with `ClosedError`. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._blocking is not None:
                await asyncio.get_running_loop().run_in_executor(None, self._close_shared)
        finally:
            await self._channel.close()

    def _close_shared(self) -> None:
        try:
            if self._shared is not None:
                self._shared.close()
        finally:
            if self._blocking is not None:
                self._blocking.close()

    def _open_shared(self) -> SharedMemory | None:
        if self._new_shared is None:
            return None
        return self._new_shared(self._ask_blocking, self._farewell)

    def _farewell(self) -> CallOptions:
        # On a thread, where no hook for coroutines can be asked.
        deadline_ns = self._settings.deadline_ns(FAREWELL_S)
        return self._settings.options("close", deadline_ns, None, None, UNSET)

    def _open_channel(self) -> AsyncChannel:
        if self._closed:
            raise ClosedError(f"the client of {self.url} is closed")
        return self._channel

    def after_fork(self) -> None:
        """Start afresh in a forked child."""
        self._channel.abandon()
        inherit(self._channel)
        self._channel = self._new_channel()
        self._admission = self._new_admission()
        if self._blocking is not None:
            self._blocking.abandon()
            inherit(self._blocking)
            self._blocking = None
        if self._new_shared is not None:
            inherit(self._shared)
            self._shared = self._open_shared()

    async def options(
        self,
        call: str,
        timeout: float | None = UNSET,
        headers: HeaderSource | None = None,
        compression: Compression | None = UNSET,
    ) -> CallOptions:
        """Return a call's options: the client's, and over them the call's own.

        Raises
        ------
        InvalidOption
            If one makes no sense.
        """
        settings = self._settings
        deadline_ns = settings.deadline_ns(timeout)
        hook = settings.header_hook
        if hook is None:
            return settings.options(call, deadline_ns, None, headers, compression)
        hooked = hook(call)
        if inspect.isawaitable(hooked):
            hooked = await hooked
        return settings.options(call, deadline_ns, hooked, headers, compression)

    def deadline_ns(self, timeout: float | None) -> int | None:
        """Return when a call must be over that begins now; see `CallSettings.deadline_ns`."""
        return self._settings.deadline_ns(timeout)

    async def ask(self, query: Query[T], options: CallOptions) -> T:
        """Make a management call; see `triton_fast.connection.Connection.ask`."""
        try:
            message = await self.exchange(query.method, query.fields, options)
        except ServerError as error:
            return query.failed(error)
        return query.read(message)

    async def exchange(
        self, method: str, fields: Mapping[str, Any], options: CallOptions
    ) -> Message:
        """Make a management call, and return the answer's message; see `ask`."""
        channel = self._open_channel()
        request, response = message_ends(method, fields)
        await channel.call(method_path(method), request, response, options)
        return response.message()

    def _ask_blocking(self, query: Query[T], options: CallOptions) -> T:
        """Make a management call on a thread, for shared memory."""
        if self._blocking is None:
            self._blocking = self._new_blocking()
        request, response = message_ends(query.method, query.fields)
        try:
            self._blocking.call(method_path(query.method), request, response, options)
        except ServerError as error:
            return query.failed(error)
        return query.read(response.message())

    async def infer(
        self,
        prepared: Prepared,
        inputs: Mapping[str, Any],
        request_id: str,
        options: CallOptions,
        out: Out | None,
    ) -> InferResult:
        """Run a model and wait; see `triton_fast.AsyncClient.infer`."""
        channel = self._open_channel()
        tensors = await self.inputs(prepared, inputs, options)
        byte_size = sum([tensor.byte_size for tensor in tensors])
        admission = self._admission
        if not admission.enter(byte_size):
            await admission.wait(byte_size, options)
        try:
            return await self._infer(channel, prepared, tensors, request_id, options, out)
        finally:
            admission.leave(byte_size)

    async def _infer(
        self,
        channel: AsyncChannel,
        prepared: Prepared,
        tensors: list[InputTensor],
        request_id: str,
        options: CallOptions,
        out: Out | None,
    ) -> InferResult:
        shared = self._shared
        repeats = 0
        while True:
            placement = None
            if shared is not None:
                try:
                    placement = shared.place(prepared, tensors, out, options, at_once=True)
                except NotAtOnce:
                    placement = await in_thread(
                        options, self.url, shared.place, prepared, tensors, out, options
                    )
            attempt = Attempt(prepared, tensors, request_id, out, placement)
            try:
                try:
                    await channel.call(MODEL_INFER, attempt.request, attempt.response, options)
                except BaseException as error:
                    if shared is None or placement is None:
                        raise
                    if not shared.try_again(prepared, placement, error, repeats):
                        raise
                    repeats += 1
                    continue
                result = attempt.result()
            finally:
                attempt.release()
            if shared is not None:
                shared.learn(prepared, tensors, result)
            return result

    def open_stream(
        self,
        call: str,
        timeout: float | None,
        headers: HeaderSource | None,
        buffer_size: int,
    ) -> AsyncStream:
        """Return a stream for requests; see `triton_fast.AsyncClient.open_stream`."""
        from .aio_streams import AsyncStream  # noqa: PLC0415 - for those who stream

        self._open_channel()
        self._settings.deadline_ns(timeout)  # so that what is wrong is said here

        async def opening() -> tuple[AsyncChannelStream, CallOptions]:
            options = await self.options(call, timeout, headers)
            return self._open_channel().open_stream(MODEL_STREAM_INFER, options), options

        return AsyncStream(opening, self.url, self.inputs, buffer_size)

    async def empty(self, shape: int | Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        """Return an array to send without a copy; see `triton_fast.AsyncClient.empty`."""
        self._open_channel()
        dimensions, kind = array_layout(shape, dtype)
        if self._shared is None:
            return np.empty(dimensions, kind)
        options = await self.options("empty")
        try:
            return self._shared.empty(dimensions, kind, options, at_once=True)
        except NotAtOnce:
            return await in_thread(options, self.url, self._shared.empty, dimensions, kind, options)

    def empty_at_once(self, shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        """Return an array in shared memory if there is some at hand, an ordinary one otherwise."""
        dimensions, kind = array_layout(shape, dtype)
        if self._shared is not None:
            try:
                return self._shared.empty(dimensions, kind, self._farewell(), at_once=True)
            except NotAtOnce:
                pass
        return np.empty(dimensions, kind)

    async def inputs(
        self, prepared: Prepared, inputs: Mapping[str, Any], options: CallOptions
    ) -> list[InputTensor]:
        """Return a call's inputs, held against the model's signature if it is known."""
        if isinstance(inputs, Mapping) and sum(map(_rewritten, inputs.values())) > _SLOW:
            tensors = await in_thread(options, self.url, input_tensors, inputs)
        else:
            tensors = input_tensors(inputs)
        signature = self.signatures.get(prepared)
        if signature is not None:
            await self._check(signature, prepared, tensors, options)
        return tensors

    async def _check(
        self,
        signature: Signature,
        prepared: Prepared,
        tensors: list[InputTensor],
        options: CallOptions,
    ) -> None:
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
        name, version = prepared.model_name, prepared.model_version
        metadata = await self.ask(model_metadata(name, version), options)
        try:
            config = await self.ask(model_config(name, version), options)
        except Unimplemented:
            config = None  # not a Triton: the metadata is all there is
        return self.signatures.learn(prepared, metadata, config)


def _rewritten(value: Any) -> int:
    """Return how many bytes, about, have to be written to make a tensor of an input."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "OSUT":
            return 32 * value.size + value.nbytes
        return 0 if value.flags.c_contiguous and value.dtype.isnative else value.nbytes
    return 32 * len(value) if isinstance(value, list | tuple) else 0
