"""AsyncEndpoint: one server's channel for coroutines, and how calls are made on it.

What `triton_fast.client.endpoint` is for threads. Owns the channel, the admission of calls, and
what is known of models, for one event loop at a time.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from ..channels.base import AsyncChannel, AsyncChannelStream, CallOptions, Compression
from ..channels.broken_imports import forget_after_forks
from ..channels.event_loop import in_thread, running_loop, seconds_left
from ..channels.factory import AsyncChannelFactory, ChannelFactory
from ..channels.lifecycle import inherit, renew_after_fork
from ..errors import (
    ClosedError,
    DeadlineExceeded,
)
from ..inference.request import UNSET, Prepared, input_tensors
from ..inference.result import InferResult
from ..inference.signatures import Signatures
from ..inference.tensor import copied_bytes, memory_of, new_array
from ..options.headers import HeaderSource
from ..protocol.grpc.codec import GRPC
from ..protocol.grpc.queries import message_ends
from ..protocol.messages import are_loaded, message_class, method_path
from ..shared_memory.sharing import SharedFactory, array_layout
from .attempt import Attempt, Out
from .dropped import give_back_when_dropped
from .policies_async import AsyncPolicies
from .repeats import exchanged, repeated_async

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ..inference.tensor import InputTensor
    from ..protocol.codec import ResponseDecoder
    from ..shared_memory.placement_async import AsyncSharedMemory
    from ..streaming.final_answers import FinalAnswers
    from ..streaming.stream_async import AsyncStream
    from .admission import Admission
    from .call_settings import CallSettings

__all__ = ["AsyncEndpoint", "AsyncHeaderHook"]

AsyncHeaderHook: TypeAlias = Callable[[str], HeaderSource | Awaitable[HeaderSource | None] | None]
T = TypeVar("T")

# How long closing waits for the server to let go of shared memory.
CLOSE_TIMEOUT_S = 2.0
# What is copied on another thread than the event loop's, in bytes: more than a millisecond's worth.
_LONG = 2 << 20
# Inputs that never are, however many bytes are written for each of theirs.
_SHORT = 16 << 10


class AsyncEndpoint(AsyncPolicies):
    """One server, as a client for coroutines and its models see it.

    Parameters
    ----------
    url : str
        For errors.
    new_channel : callable
        Makes the channel; called again in a forked child.
    settings : CallSettings
        Of all calls.
    new_admission : callable
        Makes what lets calls in; called again for another event loop.
    new_shared : callable or None
        Makes what puts tensors into shared memory; called again in a forked child. None if all goes
        over the wire.
    new_blocking : callable
        Makes the channel on which shared memory is registered.

    Attributes
    ----------
    url : str
        As given.
    signatures : Signatures
        What is known of models.
    codec : Codec
        The protocol that inferences are in.
    """

    def __init__(
        self,
        url: str,
        new_channel: AsyncChannelFactory,
        settings: CallSettings[AsyncHeaderHook],
        new_admission: Callable[[], Admission],
        new_shared: SharedFactory | None,
        new_blocking: ChannelFactory,
    ) -> None:
        self.url = url
        self.signatures = Signatures()
        self.codec = GRPC
        self._settings = settings
        self._closed = False
        self._final_answers: FinalAnswers | None = None  # until there is a stream
        self._loop: asyncio.AbstractEventLoop | None = None  # of the calls so far
        self._new_channel = new_channel
        self._channel = new_channel()
        self._new_admission = new_admission
        self._admission = new_admission()
        self._new_shared = new_shared
        self._new_blocking = new_blocking
        self._shared = self._open_shared()
        renew_after_fork(self)
        forget_after_forks()

    def __reduce__(self) -> tuple[Any, ...]:
        # Another, that connects by itself: one lives in one process, and in one event loop.
        channels = self._new_channel, self._new_blocking
        settings = self._settings, self._new_admission, self._new_shared
        return type(self), (self.url, channels[0], *settings, channels[1])

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    async def close(self) -> None:
        """Give the channel back; running calls end with `ClosedError`. Idempotent."""
        if self._closed:
            return
        if self._loop is not None:
            running_loop(self._loop, self)
        self._closed = True
        try:
            # Before shared memory goes, which the server has in use as long as there are calls.
            await self._channel.close()
        finally:
            if self._shared is not None and not self._shared.close_unused():
                self._unwatch()
                options = None
                try:
                    options = await self.options("close", CLOSE_TIMEOUT_S)
                finally:
                    await self._shared.close(options)

    def _open_shared(self) -> AsyncSharedMemory | None:
        if self._new_shared is None:
            return None
        from ..shared_memory.placement_async import AsyncSharedMemory  # noqa: PLC0415 - imported on use

        # Where there may be no loop, and so nobody to ask the hook for headers. Nothing that it
        # knows may lead back here: an endpoint that nobody uses is to go.
        plain = self._settings.without_hook()

        def closing_options() -> CallOptions:
            return plain.options("close", plain.deadline_ns(CLOSE_TIMEOUT_S), None, None, UNSET)

        shared = AsyncSharedMemory(
            self._new_shared,
            self._new_blocking,
            exchanged,
            closing_options,
            self.url,
        )
        self._unwatch = give_back_when_dropped(
            self, self.url, shared.inner.is_used, shared.close_blocking
        )
        return shared

    def _enter(self) -> AsyncChannel:
        """Return the channel for a call on the running event loop."""
        if self._closed:
            raise ClosedError(f"the client of {self.url} is closed")
        loop = running_loop(self._loop, self)
        if loop is not self._loop:
            if self._loop is not None:
                self._admission = self._new_admission()  # calls of a closed loop never leave
            self._loop = loop
        return self._channel

    def __repr__(self) -> str:
        return f"the client of {self.url}"

    def after_fork(self) -> None:
        """Start afresh in a forked child."""
        self._channel.abandon()
        inherit(self._channel)
        self._channel = self._new_channel()
        self._admission = self._new_admission()
        self._loop = None
        if self._shared is not None:
            self._unwatch()
            self._shared.leave_to_parent()
            self._shared = self._open_shared()

    async def options(
        self,
        call: str,
        timeout: float | None = None,
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
            hooked = await self._asked(hooked, call, deadline_ns)
        return settings.options(call, deadline_ns, hooked, headers, compression)

    async def _asked(
        self, hooked: Awaitable[HeaderSource | None], call: str, deadline_ns: int | None
    ) -> HeaderSource | None:
        limit = asyncio.timeout(seconds_left(deadline_ns))
        try:
            async with limit:
                return await hooked
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise DeadlineExceeded(
                "the deadline passed before the header hook returned", call=call, target=self.url
            ) from error

    def deadline_ns(self, timeout: float | None) -> int | None:
        """Return when a call must be over that begins now; see `CallSettings.deadline_ns`."""
        return self._settings.deadline_ns(timeout)

    async def load_messages(self) -> None:
        """Have protobuf imported, if it was not: that takes longer than many a call has."""
        if not are_loaded():
            self._enter()
            await in_thread(CallOptions(), self.url, message_class, "ServerLiveRequest")

    async def exchange(
        self, method: str, fields: Mapping[str, Any], options: CallOptions
    ) -> Message:
        """Make a management call, and return the answer's message; see `ask`."""
        channel = self._enter()
        if not are_loaded():
            await in_thread(options, self.url, message_class, f"{method}Request")

        async def once() -> Message:
            request, response = message_ends(method, fields)
            await channel.call(method_path(method), request, response, options)
            return response.message()

        return await repeated_async(options.deadline_ns, once)

    async def infer(
        self,
        prepared: Prepared,
        inputs: Mapping[str, Any],
        request_id: str,
        options: CallOptions,
        out: Out | None,
    ) -> InferResult:
        """Run a model and wait; see `triton_fast.AsyncClient.infer`."""
        channel = self._enter()
        admission = self._admission
        byte_size = 0
        if isinstance(inputs, Mapping):
            byte_size = sum([memory_of(value) for value in inputs.values()])
        if not admission.enter(byte_size):
            await admission.wait(byte_size, options, self.url)
        try:
            if byte_size < _SHORT and self.signatures.get(prepared) is None:
                tensors = input_tensors(inputs)
            else:
                tensors = await self.inputs(prepared, inputs, options)
            return await self._infer(channel, prepared, tensors, request_id, options, out, None)
        finally:
            admission.leave(byte_size)

    async def _result_of(self, attempt: Attempt, options: CallOptions) -> InferResult:
        if not attempt.takes_long:
            return attempt.result()
        return await in_thread(
            options,
            self.url,
            attempt.result,
            borrowed=True,
            phase="before the result was made",
        )

    def open_stream(
        self,
        call: str,
        timeout: float | None,
        headers: HeaderSource | None,
        buffer_size: int,
    ) -> AsyncStream:
        """Return a stream for requests; see `triton_fast.AsyncClient.open_stream`."""
        from ..streaming.final_answers import FinalAnswers  # noqa: PLC0415 - imported on use
        from ..streaming.repeated_stream_async import (  # noqa: PLC0415
            AsyncRepeatedStream,
        )
        from ..streaming.stream_async import AsyncStream  # noqa: PLC0415 - imported on use

        if self._closed:
            raise ClosedError(f"the client of {self.url} is closed")
        self._settings.deadline_ns(timeout)  # so that what is wrong is said here
        final_answers = self._final_answers = self._final_answers or FinalAnswers(self.codec)

        async def opening() -> tuple[AsyncChannelStream[ResponseDecoder], CallOptions]:
            options = await self.options(call, timeout, headers)
            channel, codec = self._enter(), self.codec

            def open_stream() -> AsyncChannelStream[ResponseDecoder]:
                return channel.open_stream(codec.stream_method, codec.stream_responses(), options)

            return AsyncRepeatedStream(open_stream, options.deadline_ns, final_answers), options

        return AsyncStream(opening, self.url, self.inputs, buffer_size, self.codec, self._explain)

    async def empty(self, shape: int | Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        """Return an array to send without a copy; see `triton_fast.AsyncClient.empty`."""
        self._enter()
        dimensions, kind = array_layout(shape, dtype)
        if self._shared is None:
            return new_array(dimensions, kind)
        return await self._shared.empty(dimensions, kind, await self.options("empty"))

    def empty_soon(self, options: CallOptions) -> Callable[[Sequence[int], Any], Any]:
        """Return what makes arrays on a thread: in shared memory, unless that means to wait."""

        def empty(shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
            dimensions, kind = array_layout(shape, dtype)
            if self._shared is None:
                return new_array(dimensions, kind)
            return self._shared.empty_soon(dimensions, kind, options)

        return empty

    async def inputs(
        self, prepared: Prepared, inputs: Mapping[str, Any], options: CallOptions
    ) -> list[InputTensor]:
        """Return a call's inputs, held against the model's signature if it is known."""
        if isinstance(inputs, Mapping) and sum(map(copied_bytes, inputs.values())) > _LONG:
            tensors = await in_thread(options, self.url, input_tensors, inputs)
        else:
            tensors = input_tensors(inputs)
        signature = self.signatures.get(prepared)
        if signature is not None:
            await self._check(signature, prepared, tensors, options)
        return tensors
