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

    async def beside(function: Callable[..., T], *arguments: Any) -> T:
        # Copies batches, or makes room for them.
        return await in_thread(options, endpoint.url, function, *arguments, borrowed=True)

    empty = endpoint.empty_soon(options)
    batch = await beside(Split, signature, prepared, inputs, out, empty)

    async def part_of(number: int) -> dict[str, Any]:
        return await beside(batch.part, number) if batch.gathers else batch.part(number)

    if len(batch.pieces) == 1:
        part = await part_of(0)
        return await endpoint.infer(prepared, part, request_id, options, out)

    async def run(number: int) -> None:
        try:
            part = await part_of(number)
            result = await endpoint.infer(prepared, part, request_id, options, batch.out(number))
            if batch.ready:
                batch.put(number, result)
            else:
                await beside(batch.put, number, result)
        except TritonFastError as error:
            raise batch.error(number, error) from error

    left = deque(range(len(batch.pieces)))
    if not batch.ready:
        await run(left.popleft())  # from which is learnt what the outputs are like

    async def worker() -> None:
        while left:
            await run(left.popleft())

    workers = [asyncio.create_task(worker()) for _ in range(min(IN_FLIGHT, len(batch.pieces)))]
    try:
        await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        # If one has failed, no more are sent, and those that are on their way end by themselves.
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
    return batch.result()
