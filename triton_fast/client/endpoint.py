"""Endpoint: one server's channel, and how calls are made on it.

Owns the channel, what is known of models, and the use of shared memory. The faces above it (client,
model) turn arguments into `Prepared` requests and `CallOptions`; this carries them out.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from ..channels.base import CallOptions, Channel, Compression
from ..channels.broken_imports import forget_after_forks
from ..channels.factory import ChannelFactory
from ..channels.lifecycle import inherit, renew_after_fork
from ..errors import ClosedError
from ..inference.request import UNSET, Prepared, input_tensors
from ..inference.result import InferResult
from ..inference.signatures import Signatures
from ..inference.tensor import new_array
from ..options.headers import HeaderSource
from ..protocol.grpc.codec import GRPC
from ..protocol.messages import are_loaded, message_class
from ..shared_memory.sharing import SharedFactory, array_layout
from .attempt import Attempt, Out
from .call_settings import CallSettings
from .dropped import give_back_when_dropped
from .policies import Policies
from .repeats import exchanged

if TYPE_CHECKING:
    from concurrent.futures import Future

    from google.protobuf.message import Message

    from ..inference.tensor import InputTensor
    from ..protocol.operations import Ask, Query
    from ..shared_memory.placement import SharedMemory
    from ..streaming.final_answers import FinalAnswers
    from ..streaming.stream import Stream

__all__ = ["Endpoint", "HeaderHook"]

HeaderHook: TypeAlias = Callable[[str], HeaderSource | None]
T = TypeVar("T")

# How long closing waits for the server to let go of shared memory.
CLOSE_TIMEOUT_S = 2.0


class Endpoint(Policies):
    """One server, as a client and its models see it.

    Parameters
    ----------
    url : str
        For errors.
    new_channel : callable
        Makes the channel; called again in a forked child.
    settings : CallSettings
        Of all calls.
    new_shared : callable, optional
        Makes what puts tensors into shared memory; called again in a forked child. Left out, all
        goes over the wire.

    Attributes
    ----------
    url : str
        As given.
    signatures : Signatures
        What is known of models.
    codec : Codec
        The protocol that inferences are in.

    Notes
    -----
    Thread-safe. No lock is held while a call waits.
    """

    def __init__(
        self,
        url: str,
        new_channel: ChannelFactory,
        settings: CallSettings[HeaderHook],
        new_shared: SharedFactory | None = None,
    ) -> None:
        self.url = url
        self.signatures = Signatures()
        self.codec = GRPC
        self._settings = settings
        self._closed = False
        self._final_answers: FinalAnswers | None = None  # until there is a stream
        self._lock = threading.Lock()
        self._new_channel = new_channel
        self._channel = new_channel()
        self._new_shared = new_shared
        self._shared = self._open_shared()
        renew_after_fork(self)
        forget_after_forks()

    def __reduce__(self) -> tuple[Any, ...]:
        # Another, that connects by itself: one lives in one process.
        return type(self), (self.url, self._new_channel, self._settings, self._new_shared)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Give the channel back; running calls end with `ClosedError`. Idempotent."""
        try:
            if self._shared is not None:
                self._unwatch()
                self._shared.close()  # before the channel goes, on which the server is told
        finally:
            with self._lock:
                self._closed = True
                channel = self._channel
            channel.close()

    def _open_shared(self) -> SharedMemory | None:
        if self._new_shared is None:
            return None
        from ..shared_memory.registration import Registry  # noqa: PLC0415 - imported on use

        # Nothing that it knows may lead back here: an endpoint that nobody uses is to go.
        channel, reference = self._channel, weakref.ref(self)
        plain = self._settings.without_hook()

        def closing_options() -> CallOptions:
            alive = reference()
            if alive is not None:
                return alive.options("close", CLOSE_TIMEOUT_S)
            return plain.options("close", plain.deadline_ns(CLOSE_TIMEOUT_S), None, None, UNSET)

        def give_back() -> None:
            shared.close()
            channel.close()

        new_channel = self._new_channel

        @contextmanager
        def ask_afresh() -> Iterator[Ask]:
            with closing(new_channel()) as fresh:
                yield partial(_ask, fresh)

        registry = Registry(partial(_ask, channel), ask_afresh)
        shared = self._new_shared(registry, closing_options)
        self._unwatch = give_back_when_dropped(self, self.url, shared.is_used, give_back)
        return shared

    def _open_channel(self) -> Channel:
        if self._closed:
            raise ClosedError(f"the client of {self.url} is closed")
        return self._channel

    def after_fork(self) -> None:
        """Start afresh in a forked child."""
        # The parent's lock may have been held, and its channel's threads do not exist here. The
        # old channel is kept: taking it down would wait for them.
        self._lock = threading.Lock()
        self._channel.abandon()
        inherit(self._channel)
        self._channel = self._new_channel()
        if self._new_shared is not None:
            self._unwatch()
            inherit(self._shared)
            self._shared = self._open_shared()
        if self._closed:
            self._channel.close()

    def deadline_ns(self, timeout: float | None) -> int | None:
        """Return when a call must be over that begins now, with this timeout or the client's."""
        return self._settings.deadline_ns(timeout)

    def options(
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
        deadline_ns = self.deadline_ns(timeout)
        hook = settings.header_hook
        hooked = None if hook is None else hook(call)
        return settings.options(call, deadline_ns, hooked, headers, compression)

    def load_messages(self) -> None:
        """Have protobuf imported, if it was not: that takes longer than many a call has."""
        if not are_loaded():
            self._open_channel()
            message_class("ServerLiveRequest")

    def exchange(self, method: str, fields: Mapping[str, Any], options: CallOptions) -> Message:
        """Make a management call, and return the answer's message; see `ask`."""
        return exchanged(self._open_channel(), method, fields, options)

    def infer(
        self,
        prepared: Prepared,
        inputs: Mapping[str, Any],
        request_id: str,
        options: CallOptions,
        out: Out | None,
    ) -> InferResult:
        """Run a model and wait; see `triton_fast.Client.infer`."""
        channel = self._open_channel()
        tensors = self._inputs(prepared, inputs, options)
        return self._infer(channel, prepared, tensors, request_id, options, out, None)

    def _result_of(self, attempt: Attempt, options: CallOptions) -> InferResult:  # noqa: ARG002
        return attempt.result()

    def submit(
        self,
        prepared: Prepared,
        inputs: Mapping[str, Any],
        request_id: str,
        options: CallOptions,
        out: Out | None,
    ) -> Future[InferResult]:
        """Run a model without waiting; see `triton_fast.Client.submit`."""
        from .submission import Submission  # noqa: PLC0415 - concurrent.futures takes its time

        channel = self._open_channel()
        tensors = self._inputs(prepared, inputs, options)
        shared = self._shared
        placement = None if shared is None else shared.place(prepared, tensors, out, options)
        submission = Submission(
            Attempt(prepared, tensors, request_id, out, placement),
            prepared,
            tensors,
            shared,
            lambda repeats: self._infer(
                channel, prepared, tensors, request_id, options, out, repeats
            ),
            lambda error: self._explain(error, prepared, tensors, options),
        )
        submission.start(channel, self.codec.infer_method, options)
        return submission.future

    def open_stream(self, options: CallOptions, buffer_size: int) -> Stream:
        """Return a stream for requests; see `triton_fast.Client.open_stream`."""
        from ..streaming.final_answers import FinalAnswers  # noqa: PLC0415 - imported on use
        from ..streaming.repeated_stream import RepeatedStream  # noqa: PLC0415
        from ..streaming.stream import Stream  # noqa: PLC0415 - imported on use

        channel, codec = self._open_channel(), self.codec
        self._final_answers = self._final_answers or FinalAnswers(codec)
        channel_stream = RepeatedStream(
            lambda: channel.open_stream(codec.stream_method, codec.stream_responses(), options),
            options.deadline_ns,
            self._final_answers,
        )
        return Stream(
            channel_stream,
            options,
            self.url,
            self._inputs,
            buffer_size,
            self.codec,
            self._explain,
        )

    def empty(self, shape: int | Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        """Return an array to send without a copy; see `triton_fast.Client.empty`."""
        self._open_channel()
        dimensions, kind = array_layout(shape, dtype)
        if self._shared is None:
            return new_array(dimensions, kind)
        return self._shared.empty(dimensions, kind, self.options("empty"))

    def _inputs(
        self, prepared: Prepared, inputs: Mapping[str, Any], options: CallOptions
    ) -> list[InputTensor]:
        """Return a call's inputs, held against the model's signature if it is known."""
        tensors = input_tensors(inputs)
        signature = self.signatures.get(prepared)
        if signature is not None:
            self._check(signature, prepared, tensors, options)
        return tensors


def _ask(channel: Channel, query: Query[T], options: CallOptions) -> T:
    """Make a management call on a channel, for the shared memory's own sake; see `Policies.ask`."""
    return query.ask(partial(exchanged, channel), options)
