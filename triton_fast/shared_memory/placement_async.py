"""Shared memory for coroutines: what is quick is done on the event loop, the rest beside it.

Owns a small blocking channel, on which regions are registered from the loop's threads.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..channels.base import CallOptions, Channel
from ..channels.event_loop import in_thread, seconds_left
from ..channels.factory import ChannelFactory
from ..channels.lifecycle import inherit
from ..errors import ClosedError, DeadlineExceeded
from ..protocol.operations import Ask, Query
from .pool import WaitPolicy, WouldBlock
from .registration import Registry

if TYPE_CHECKING:
    from ..client.attempt import Out
    from ..inference.request import Prepared
    from ..inference.result import InferResult
    from ..inference.tensor import InputTensor, new_array
    from .placement import Placement, SharedMemory
    from .sharing import SharedFactory

__all__ = ["AsyncSharedMemory"]

T = TypeVar("T")

# A thread waits no longer than this for a slot before it looks whether anybody still wants one.
_TURN_NS = 100_000_000


class AsyncSharedMemory:
    """Decides what of a client's calls goes through shared memory, without blocking the loop.

    Parameters
    ----------
    new_shared : callable
        Makes what decides, of all that is the same for threads.
    new_channel : callable
        Makes the channel on which regions are registered; called when the first one is.
    exchange : callable
        Makes a management call on a channel, waits, and returns the answer's message.
    closing_options : callable
        Returns the options of the calls that closing takes, if `close` was not given any.
    url : str
        For errors.
    """

    def __init__(
        self,
        new_shared: SharedFactory,
        new_channel: ChannelFactory,
        exchange: Callable[[Channel, str, Mapping[str, Any], CallOptions], Any],
        closing_options: Callable[[], CallOptions],
        url: str,
    ) -> None:
        self._url = url
        self._new_channel = new_channel
        self._exchange_on = exchange
        self._channel: Channel | None = None
        self._lock = threading.Lock()  # of the channel
        self._closed = False
        self._closing_options = closing_options
        self._waiting: asyncio.Future[None] | None = None
        self.inner: SharedMemory = new_shared(Registry(self._ask, self._ask_afresh), self._options)

    @property
    def required(self) -> bool:
        """Whether it is an error that the server takes no shared memory."""
        return self.inner.required

    async def place(
        self,
        prepared: Prepared,
        tensors: list[InputTensor],
        out: Out | None,
        options: CallOptions,
    ) -> Placement | None:
        """Put a call's large tensors into slots; see `SharedMemory.place`."""
        place = self.inner.place
        try:
            return place(prepared, tensors, out, options, WaitPolicy.NONE)
        except WouldBlock:
            return await self._patiently(options, place, prepared, tensors, out, options)

    def learn(
        self, prepared: Prepared, tensors: Sequence[InputTensor], result: InferResult
    ) -> None:
        """Take note of how large a model's outputs are."""
        self.inner.learn(prepared, tensors, result)

    def conclude(self, prepared: Prepared, placement: Placement, error: BaseException) -> bool:
        """Draw the conclusions of a failed call; see `SharedMemory.conclude`."""
        return self.inner.conclude(prepared, placement, error)

    async def empty(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], options: CallOptions
    ) -> np.ndarray[Any, Any]:
        """Return an array in a slot of its own, or an ordinary one; see `SharedMemory.empty`."""
        empty = self.inner.empty
        try:
            return empty(shape, dtype, options, WaitPolicy.NONE)
        except WouldBlock:
            return await self._patiently(options, empty, shape, dtype, options)

    def empty_soon(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], options: CallOptions
    ) -> np.ndarray[Any, Any]:
        """Return an array as `empty` does, on a thread; an ordinary one where it would wait."""
        try:
            return self.inner.empty(shape, dtype, options, WaitPolicy.WORK)
        except WouldBlock:
            return new_array(shape, dtype)

    async def _patiently(
        self, options: CallOptions, function: Callable[..., T], *arguments: Any
    ) -> T:
        deadline_error: DeadlineExceeded | None = None
        while True:
            try:
                return await in_thread(options, self._url, function, *arguments, WaitPolicy.WORK)
            except WouldBlock as obstacle:
                deadline_error = obstacle.deadline_error
                await self._wait(obstacle.generation, options)
            except DeadlineExceeded:
                if deadline_error is None:
                    raise
                raise deadline_error from None  # which says what is in the way

    async def _wait(self, generation: int, options: CallOptions) -> None:
        """Wait until a slot may have come back. One thread waits for all that want one."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting
        if waiting is None or waiting.done() or waiting.get_loop() is not loop:
            deadline_ns = time.monotonic_ns() + _TURN_NS
            waiting = self._waiting = loop.run_in_executor(
                None, self.inner.pool.wait, generation, deadline_ns
            )
        await asyncio.wait((waiting,), timeout=seconds_left(options.deadline_ns))

    def _ask(self, query: Query[T], options: CallOptions) -> T:
        """Make a management call, on a thread."""
        return query.ask(self._exchange, options)

    @contextmanager
    def _ask_afresh(self) -> Iterator[Ask]:
        with closing(self._new_channel()) as fresh:

            def ask(query: Query[T], options: CallOptions) -> T:
                return query.ask(partial(self._exchange_on, fresh), options)

            yield ask

    def _exchange(self, method: str, fields: Mapping[str, Any], options: CallOptions) -> Any:
        with self._lock:
            if self._channel is None:
                if self._closed:
                    raise ClosedError(f"the client of {self._url} is closed")
                self._channel = self._new_channel()
            channel = self._channel
        return self._exchange_on(channel, method, fields, options)

    def _options(self) -> CallOptions:
        return self._closing_options()

    def close_unused(self) -> bool:
        """Make no more calls; False if some were made, and there is more to give back."""
        with self._lock:
            self._closed = True
            return self._channel is None

    async def close(self, options: CallOptions | None) -> None:
        """Have the server let go of our regions, with calls that have these options."""
        if options is not None:
            self._closing_options = lambda: options
        await asyncio.get_running_loop().run_in_executor(None, self.close_blocking)

    def close_blocking(self) -> None:
        """Do as `close`, on a thread that waits."""
        try:
            self.inner.close()
        finally:
            with self._lock:
                self._closed = True
                channel = self._channel
            if channel is not None:
                channel.close()

    def leave_to_parent(self) -> None:
        """Let go, in a forked child, of what is the parent's."""
        inherit(self)  # a thread that does not exist may hold a lock in it
        if self._channel is not None:
            self._channel.abandon()
