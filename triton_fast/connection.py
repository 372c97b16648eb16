"""Connection: everything that a client and its models share about one server.

Owns the channel, the settings of calls, and what is known of the server's models. The faces above
it (client, model) turn arguments into `Prepared` requests and `CallOptions`; this carries them out.
"""

from __future__ import annotations

import operator
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ._core._wire import Request
from .channels.base import CallOptions, Channel, Compression
from .deadline import deadline_after, seconds
from .errors import ClosedError, InvalidOption, InvalidTensor, TritonFastError, Unimplemented
from .headers import HeaderSource, checked_headers
from .messages import message_class, method_path
from .request import UNSET, Prepared, encode_request, input_tensors
from .response import InferResult, Receiver
from .unary import MessageIn, MessageOut

if TYPE_CHECKING:
    from concurrent.futures import Future

    from google.protobuf.message import Message

    from .metadata import ModelMetadata
    from .placement import Placement, SharedMemory
    from .pool import Slot
    from .registry import Exchange
    from .signature import Signature
    from .streams import Stream
    from .tensor import InputTensor

__all__ = ["ChannelFactory", "Connection", "HeaderHook", "Out"]

Out: TypeAlias = Mapping[str, np.ndarray[Any, Any]]
HeaderHook: TypeAlias = Callable[[str], HeaderSource | None]
ChannelFactory: TypeAlias = Callable[[], Channel]
SharedFactory: TypeAlias = "Callable[[Exchange, Callable[[], CallOptions]], SharedMemory]"

_MODEL_INFER = method_path("ModelInfer")
_MODEL_STREAM_INFER = method_path("ModelStreamInfer")

# How long closing waits for the server to let go of shared memory.
_FAREWELL_S = 2.0


class Connection:
    """One server, as a client and its models see it.

    Parameters
    ----------
    url : str
        For errors.
    new_channel : callable
        Makes the channel; called again in a forked child.
    timeout, headers, header_hook, compression
        As in `triton_fast.Client`.
    new_shared : callable, optional
        Makes what puts tensors into shared memory; called again in a forked child. Left out, all
        goes over the wire.

    Notes
    -----
    Thread-safe. No lock is held while a call waits.
    """

    def __init__(
        self,
        url: str,
        new_channel: ChannelFactory,
        *,
        timeout: float | None,
        headers: HeaderSource | None,
        header_hook: HeaderHook | None,
        compression: Compression | None,
        new_shared: SharedFactory | None = None,
    ) -> None:
        if header_hook is not None and not callable(header_hook):
            raise InvalidOption(f"header_hook must be callable, not {header_hook!r}")
        self.url = url
        self._timeout = seconds(timeout, "timeout")
        self._headers = checked_headers(headers)
        self._header_hook = header_hook
        self._compression = _compression(compression)
        self._signatures: dict[tuple[str, str], Signature] = {}
        self._closed = False
        self._lock = threading.Lock()
        self._new_channel = new_channel
        self._channel = new_channel()
        self._new_shared = new_shared
        self._shared = self._open_shared()
        _connections.add(self)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def close(self) -> None:
        """Give the channel back; running calls end with `ClosedError`. Idempotent."""
        try:
            if self._shared is not None:
                self._shared.close()  # before the channel goes, on which the server is told
        finally:
            with self._lock:
                self._closed = True
                channel = self._channel
            channel.close()

    def _open_shared(self) -> SharedMemory | None:
        if self._new_shared is None:
            return None
        return self._new_shared(self.exchange, lambda: self.options("close", _FAREWELL_S))

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
        _inherited.append(self._channel)
        self._channel = self._new_channel()
        if self._new_shared is not None:
            _inherited.append(self._shared)
            self._shared = self._open_shared()
        if self._closed:
            self._channel.close()

    def deadline(self, timeout: float | None = UNSET) -> int | None:
        """Return when a call must be over that begins now, with this timeout or the client's."""
        return deadline_after(self._timeout if timeout is UNSET else seconds(timeout, "timeout"))

    def options(
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
        deadline_ns = self.deadline(timeout)
        sent = self._headers
        if self._header_hook is not None:
            sent += checked_headers(self._header_hook(call))
        if headers is not None:
            sent += checked_headers(headers)
        chosen = self._compression if compression is UNSET else _compression(compression)
        return CallOptions(deadline_ns, sent, chosen, call)

    def exchange(self, method: str, fields: Mapping[str, Any], options: CallOptions) -> Message:
        """Make a management call, and return the answer's message.

        Raises
        ------
        ServerError, WireError, ClosedError
            As `triton_fast.channels.base.Channel.call`.
        InvalidOption
            If a field is no str.
        """
        channel = self._open_channel()
        for field in ("name", "version"):
            if not isinstance(value := fields.get(field, ""), str):
                raise InvalidOption(f"a model's {field} is a str, not {value!r}")
        request = MessageOut(message_class(f"{method}Request")(**fields))
        response = MessageIn(f"{method}Response")
        channel.call(method_path(method), request, response, options)
        return response.message()

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
        return self._infer(channel, prepared, tensors, request_id, options, out)

    def _infer(
        self,
        channel: Channel,
        prepared: Prepared,
        tensors: list[InputTensor],
        request_id: str,
        options: CallOptions,
        out: Out | None,
    ) -> InferResult:
        shared = self._shared
        repeats = 0
        while True:
            placement = None if shared is None else shared.place(prepared, tensors, out, options)
            request, receiver = _ends(prepared, tensors, request_id, out, placement)
            try:
                try:
                    channel.call(_MODEL_INFER, request, receiver.response, options)
                except BaseException as error:
                    if shared is None or placement is None:
                        raise
                    if not shared.try_again(prepared, placement, error, repeats):
                        raise
                    repeats += 1
                    continue
                result = receiver.result()
            finally:
                request.release()
                receiver.release()
            if shared is not None:
                shared.learn(prepared, tensors, result)
            return result

    def submit(
        self,
        prepared: Prepared,
        inputs: Mapping[str, Any],
        request_id: str,
        options: CallOptions,
        out: Out | None,
    ) -> Future[InferResult]:
        """Run a model without waiting; see `triton_fast.Client.submit`."""
        from .future import CallFuture  # noqa: PLC0415 - concurrent.futures takes its time

        channel = self._open_channel()
        tensors = self._inputs(prepared, inputs, options)
        shared = self._shared
        placement = None if shared is None else shared.place(prepared, tensors, out, options)
        request, receiver = _ends(prepared, tensors, request_id, out, placement)
        future: CallFuture[InferResult] = CallFuture()

        def on_done(error: BaseException | None) -> None:
            result = None
            request.release()
            again = False
            if error is None:
                try:
                    result = receiver.result()
                except Exception as failure:  # noqa: BLE001 - it is the future's now
                    error = failure
            elif shared is not None and placement is not None:
                again = shared.try_again(prepared, placement, error, 0)
            receiver.release()
            if again:
                # Rare, and on a thread of its own: the channel's, which tell the end of calls,
                # must not wait for one.
                threading.Thread(target=repeat, name="triton_fast", daemon=True).start()
                return
            if shared is not None and result is not None:
                shared.learn(prepared, tensors, result)
            future.settle(result, error)

        def repeat() -> None:
            result, error = None, None
            try:
                result = self._infer(channel, prepared, tensors, request_id, options, out)
            except BaseException as failure:  # noqa: BLE001 - it is the future's now
                error = failure
            future.settle(result, error)

        try:
            future.attach(channel.start(_MODEL_INFER, request, receiver.response, options, on_done))
        except BaseException:
            request.release()
            receiver.release()
            raise
        return future

    def open_stream(self, options: CallOptions, buffer_size: int) -> Stream:
        """Return a stream for requests; see `triton_fast.Client.open_stream`."""
        from .streams import Stream  # noqa: PLC0415 - for those who stream

        channel_stream = self._open_channel().open_stream(_MODEL_STREAM_INFER, options)
        return Stream(channel_stream, options, self.url, self._inputs, buffer_size)

    def empty(self, shape: int | Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        """Return an array to send without a copy; see `triton_fast.Client.empty`."""
        self._open_channel()
        try:
            kind = np.dtype(dtype)
            dimensions = (shape,) if isinstance(shape, int) else tuple(map(operator.index, shape))
        except TypeError as error:
            raise InvalidTensor(f"empty({shape!r}, {dtype!r}): {error}") from error
        if kind.hasobject or min(dimensions, default=0) < 0:
            raise InvalidTensor(f"there are no shared arrays of {kind} {list(dimensions)}")
        if self._shared is None:
            return np.empty(dimensions, kind)
        return self._shared.empty(dimensions, kind, self.options("empty"))

    def _inputs(
        self, prepared: Prepared, inputs: Mapping[str, Any], options: CallOptions
    ) -> list[InputTensor]:
        """Return a call's inputs, held against the model's signature if it is known."""
        tensors = input_tensors(inputs)
        signature = self.signature(prepared)
        if signature is not None:
            self._check(signature, prepared, tensors, options)
        return tensors

    def _check(
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
                current = self.fetch_signature(prepared, options)
            except TritonFastError:
                raise refusal from None
            if current == signature:
                raise
            if current is not None:
                current.check(tensors, prepared.output_names)

    def signature(self, prepared: Prepared) -> Signature | None:
        """Return what is known of a model, if anything is."""
        return self._signatures.get((prepared.model_name, prepared.model_version))

    def fetch_signature(self, prepared: Prepared, options: CallOptions) -> Signature | None:
        """Ask the server for a signature, within the deadline of the call that wants it."""
        from .metadata import ModelConfig, ModelMetadata  # noqa: PLC0415 - management only
        from .signature import Signature  # noqa: PLC0415

        key = (prepared.model_name, prepared.model_version)
        fields = dict(zip(("name", "version"), key, strict=True))
        metadata = ModelMetadata.from_message(self.exchange("ModelMetadata", fields, options))
        try:
            message: Any = self.exchange("ModelConfig", fields, options)
            config = ModelConfig.from_message(message.config)
        except Unimplemented:
            config = None  # not a Triton: the metadata is all there is
        signature = Signature.from_metadata(metadata, config)
        if signature is not None:
            self._signatures[key] = signature
        return signature

    def remember(self, metadata: ModelMetadata, key: tuple[str, str]) -> None:
        """Check calls of a model against metadata that was fetched, unless more is known."""
        from .signature import Signature  # noqa: PLC0415 - management only

        signature = Signature.from_metadata(metadata)
        if signature is not None:
            self._signatures.setdefault(key, signature)


def _ends(
    prepared: Prepared,
    tensors: list[InputTensor],
    request_id: str,
    out: Out | None,
    placement: Placement | None,
) -> tuple[Request, Receiver]:
    """Return a call's two ends, which hold memory until they are released."""
    if placement is None:
        request = encode_request(prepared.header, request_id, tensors)
        placed: Mapping[str, Slot] = {}
        header = prepared.header
    else:
        header = placement.header
        request = encode_request(header, request_id, placement.tensors)
        placed = placement.outputs
    try:
        return request, Receiver(header, out, placed)
    except BaseException:
        request.release()
        raise


# A forked child's copies of these start afresh; see Connection.after_fork.
_connections: weakref.WeakSet[Connection] = weakref.WeakSet()
_inherited: list[Channel | SharedMemory | None] = []


def _compression(value: Any) -> Compression | None:
    if value not in {None, "gzip", "deflate"}:
        raise InvalidOption(f"compression is 'gzip', 'deflate' or None, not {value!r}")
    return value  # type: ignore[no-any-return]


def _after_fork_in_child() -> None:
    for connection in list(_connections):
        connection.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
