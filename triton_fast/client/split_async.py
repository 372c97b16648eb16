"""Batches larger than a model takes, for coroutines; see `triton_fast.client.split`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ..channels.event_loop import end_of, in_thread
from ..errors import TritonFastError
from .split import IN_FLIGHT, Split

if TYPE_CHECKING:
    from ..channels.base import CallOptions
    from ..inference.request import Prepared
    from ..inference.result import InferResult
    from .attempt import Out
    from .endpoint_async import AsyncEndpoint

__all__ = ["infer_split"]

T = TypeVar("T")


async def infer_split(
    endpoint: AsyncEndpoint,
    prepared: Prepared,
    inputs: Mapping[str, Any],
    request_id: str,
    options: CallOptions,
    out: Out | None,
) -> InferResult:
    """Run a model on a batch of any size; see `triton_fast.client.split.infer_split`."""
    signature = endpoint.signatures.get(prepared)
    if signature is None or signature.max_batch_size is None:
        signature = await endpoint.fetch_signature(prepared, options)
    call = _SplitCall(endpoint, prepared, request_id, options)
    empty = endpoint.empty_soon(options)
    batch = await call.beside(Split, signature, prepared, inputs, out, empty)
    if len(batch.pieces) == 1:
        part = await call.part(batch, 0)
        return await endpoint.infer(prepared, part, request_id, options, out)
    left = deque(range(len(batch.pieces)))
    if not batch.ready:
        await call.run(batch, left.popleft())  # from which is learnt what the outputs are like

    failed: dict[int, TritonFastError] = {}

    async def worker() -> None:
        while left:
            number = left.popleft()
            try:
                await call.run(batch, number)
            except TritonFastError as error:
                # No more are sent, and those that are on their way end by themselves.
                left.clear()
                failed[number] = error

    count = min(IN_FLIGHT, len(batch.pieces))
    await _all_of([asyncio.create_task(worker()) for _ in range(count)], left)
    if failed:
        raise failed[min(failed)]
    return batch.result()


class _SplitCall:
    """What the pieces of one call have in common."""

    def __init__(
        self, endpoint: AsyncEndpoint, prepared: Prepared, request_id: str, options: CallOptions
    ) -> None:
        self._endpoint = endpoint
        self._prepared = prepared
        self._request_id = request_id
        self._options = options

    async def beside(self, function: Callable[..., T], *arguments: Any) -> T:
        """Copy a batch, or make room for one, beside the event loop."""
        url = self._endpoint.url
        return await in_thread(self._options, url, function, *arguments, borrowed=True)

    async def part(self, batch: Split, number: int) -> dict[str, Any]:
        """Return the inputs of a piece."""
        return await self.beside(batch.part, number) if batch.gathers else batch.part(number)

    async def run(self, batch: Split, number: int) -> None:
        """Make the call for a piece, and put its answer where it belongs."""
        try:
            part = await self.part(batch, number)
            result = await self._endpoint.infer(
                self._prepared, part, self._request_id, self._options, batch.out(number)
            )
            if batch.ready:
                batch.put(number, result)
            else:
                await self.beside(batch.put, number, result)
        except TritonFastError as error:
            raise batch.error(number, error) from error


async def _all_of(workers: list[asyncio.Task[None]], left: deque[int]) -> None:
    """Wait until workers have done all that is left, and have ended; raise what one has raised."""
    try:
        await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        left.clear()
        if any(not task.done() for task in workers):
            await asyncio.wait(workers)
    except BaseException:
        left.clear()
        for task in workers:
            task.cancel()
        raise
    finally:
        # The caller may use the arrays again as soon as this is over.
        await end_of(workers)
        # One error is told; asyncio would complain of the others, that nobody has looked at them.
        for task in workers:
            if not task.cancelled():
                task.exception()
    for task in workers:
        task.result()
