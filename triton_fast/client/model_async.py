"""AsyncModel: a coroutine function that stands for one model on the server.

Owns when it asks for the model's signature: one task does, for all that call at the same time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..channels.event_loop import seconds_left
from ..errors import DeadlineExceeded
from . import model_calls_async

if TYPE_CHECKING:
    from ..channels.base import CallOptions
    from ..inference.request import Prepared
    from ..inference.signature import Signature
    from .endpoint_async import AsyncEndpoint

__all__ = ["AsyncModel"]


class AsyncModel(model_calls_async.AsyncModel):
    """One model on a client's server; made by `AsyncClient.model`.

    Notes
    -----
    What stays the same from call to call is encoded once. The signature is fetched when it is first
    needed, and again when a call does not fit it, since the model may have been replaced. Any
    number of tasks of one event loop may call it.

    Examples
    --------
    >>> resnet = client.model("resnet")  # doctest: +SKIP
    >>> (await resnet(image=batch))["scores"]  # doctest: +SKIP
    >>> await resnet({"image": batch}, timeout=0.05, out={"scores": scores})  # doctest: +SKIP
    """

    def __init__(self, endpoint: AsyncEndpoint, prepared: Prepared) -> None:
        super().__init__(endpoint, prepared)
        self._asking: asyncio.Future[None] | None = None  # done when it has answered, or not

    async def signature(self) -> Signature | None:
        """Return what the model takes and gives; asks the server, the first time.

        None if the server does not say. Raises what `AsyncClient.model_metadata` raises.
        """
        await self._endpoint.load_messages()
        await self._learn(await self._endpoint.options(f"ModelMetadata({self.name!r})"))
        return self._endpoint.signatures.get(self._prepared)

    async def _learn(self, options: CallOptions) -> None:
        here = asyncio.get_running_loop()
        while not self._asked:
            asking = self._asking
            if asking is None or asking.done() or asking.get_loop() is not here:
                await self._ask(options)
                return
            # One asks for all that call at the same time.
            await asyncio.wait((asking,), timeout=seconds_left(options.deadline_ns))
            if not asking.done():
                raise DeadlineExceeded(
                    "the deadline passed before the model's signature was known",
                    call=options.call,
                    target=self._endpoint.url,
                )

    async def _ask(self, options: CallOptions) -> None:
        asking = self._asking = asyncio.get_running_loop().create_future()
        try:
            await self._endpoint.fetch_signature(self._prepared, options)
            self._asked = True
        finally:
            asking.set_result(None)
