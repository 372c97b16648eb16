"""A channel to a server that is a function of the test's, with no transport in between.

For the rules of what lies above channels. How channels and servers behave is not shown by this:
tests/channels and tests/server have the real ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

from triton_fast import AsyncClient, Client
from triton_fast.channels.base import CallOptions, Incoming, Outgoing, StreamIncoming
from triton_fast.client import client, client_async
from triton_fast.errors import ClosedError, DeadlineExceeded, Internal
from triton_fast.protocol.grpc.queries import exchange
from triton_fast.protocol.messages import message_class
from triton_fast.protocol.operations import Query


class MemoryChannel:
    """A `Channel` whose calls are answered by a script, on the thread that makes them.

    Parameters
    ----------
    script : callable
        Given a method's bare name and the request's message; returns the answer's, or the error
        with which the call is to fail.

    Attributes
    ----------
    asked : list of (str, message)
        All calls, in order.
    options : list of CallOptions
        Of those calls.
    """

    def __init__(self, script: Callable[[str, Any], Any]) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.options: list[CallOptions] = []
        self._script = script
        self._closed = False

    @property
    def methods(self) -> list[str]:
        """The methods that were called, in order."""
        return [method for method, _ in self.asked]

    def call(
        self, method: str, outgoing: Outgoing, incoming: Incoming, options: CallOptions
    ) -> None:
        if self._closed:
            raise ClosedError("the channel is closed")
        if options.deadline_ns is not None and time.monotonic_ns() >= options.deadline_ns:
            raise DeadlineExceeded("the deadline passed", call=options.call)
        name = method.rpartition("/")[2]
        request = message_class(f"{name}Request").FromString(outgoing.render())
        self.asked.append((name, request))
        self.options.append(options)
        answer = self._script(name, request)
        if isinstance(answer, BaseException):
            try:
                raise answer
            finally:
                del answer  # whose traceback would keep this frame, and its callers', for a while
        encoded = answer.SerializeToString()
        incoming.begin(len(encoded))
        incoming.feed(encoded)
        incoming.finish()

    def start(
        self,
        method: str,
        outgoing: Outgoing,
        incoming: Incoming,
        options: CallOptions,
        on_done: Callable[[BaseException | None], None],
    ) -> Over:
        try:
            self.call(method, outgoing, incoming, options)
        except Exception as error:
            on_done(error)
        else:
            on_done(None)
        return Over()

    def open_stream(self, method: str, incoming: StreamIncoming[Any], options: CallOptions) -> Any:
        raise NotImplementedError("of streams, tests/unit/test_stream_turns.py has its own")

    def close(self) -> None:
        self._closed = True

    abandon = close

    def ask(self, query: Query[Any], options: CallOptions = CallOptions()) -> Any:  # noqa: B008
        """Make a management call, as `triton_fast.client.endpoint.Endpoint.ask` does."""
        return query.ask(lambda method, fields, own: exchange(self, method, fields, own), options)


class AsyncMemoryChannel:
    """An `AsyncChannel` on a `MemoryChannel`, which others may be on."""

    def __init__(self, channel: MemoryChannel) -> None:
        self._channel = channel
        self._closed = False

    async def call(
        self, method: str, outgoing: Outgoing, incoming: Incoming, options: CallOptions
    ) -> None:
        if self._closed:
            raise ClosedError("the channel is closed")
        self._channel.call(method, outgoing, incoming, options)

    def open_stream(self, method: str, incoming: StreamIncoming[Any], options: CallOptions) -> Any:
        return self._channel.open_stream(method, incoming, options)

    async def close(self) -> None:
        self._closed = True

    def abandon(self) -> None:
        self._closed = True


def client_on(channel: MemoryChannel, **settings: Any) -> Client:
    """Return a client whose server is a channel's script."""
    with mock.patch.object(client, "channel_factory", return_value=lambda: channel):
        return Client("localhost:1", **settings)


def async_client_on(channel: MemoryChannel, **settings: Any) -> AsyncClient:
    """Return a client for coroutines whose server is a channel's script."""
    with mock.patch.multiple(
        client_async,
        async_channel_factory=mock.Mock(return_value=lambda: AsyncMemoryChannel(channel)),
        channel_factory=mock.Mock(return_value=lambda: channel),
    ):
        return AsyncClient("localhost:1", **settings)


class Over:
    """A call that was over when it was started."""

    def cancel(self) -> None:
        pass


class RegisterScript:
    """The register of a server that takes shared memory: a script for `MemoryChannel`.

    Attributes
    ----------
    regions : dict of str to message
        The requests by which those were registered that it has now.
    in_use : set of str
        Regions that it does not let go of.
    refusal : exception or None
        How registering fails.
    version : str
        What it says of itself; or how it fails to.
    before : callable
        Called before it answers; for tests of what others do meanwhile.
    """

    def __init__(self) -> None:
        self.regions: dict[str, Any] = {}
        self.in_use: set[str] = set()
        self.refusal: BaseException | None = None
        self.version: str | BaseException = "2.51.0"
        self.before: Callable[[str, Any], None] = lambda method, request: None
        self._lock = threading.Lock()

    def __call__(self, method: str, request: Any) -> Any:
        self.before(method, request)
        answer = message_class(f"{method}Response")()
        with self._lock:
            if method == "SystemSharedMemoryRegister":
                if self.refusal is not None:
                    return self.refusal
                self.regions[request.name] = request
            elif method == "SystemSharedMemoryUnregister":
                if request.name in self.in_use:
                    return Internal(f"region '{request.name}', it is currently in use.")
                self.regions.pop(request.name, None)
            elif method == "ServerMetadata":
                if isinstance(self.version, BaseException):
                    return self.version
                answer.version = self.version
            else:
                assert method == "SystemSharedMemoryStatus"
                for name, region in self.regions.items():
                    answer.regions[name].name = name
                    answer.regions[name].key = region.key
                    answer.regions[name].byte_size = region.byte_size
        return answer
