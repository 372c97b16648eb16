"""AsyncModel: a coroutine function that stands for one model on the server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..channels.event_loop import seconds_left
from ..errors import DeadlineExceeded
from ..inference.request import UNSET
from .model import merged

if TYPE_CHECKING:
    from ..channels.base import CallOptions, Compression
    from ..inference.request import Prepared
    from ..inference.result import InferResult
    from ..inference.signature import Signature
    from ..options.headers import HeaderSource
    from .attempt import Out
    from .endpoint_async import AsyncEndpoint

__all__ = ["AsyncModel"]


class AsyncModel:
    """One model on a client's server; made by `AsyncClient.model`. See `triton_fast.Model`.

    Examples
    --------
    >>> resnet = client.model("resnet")  # doctest: +SKIP
    >>> (await resnet(image=batch))["scores"]  # doctest: +SKIP
    """

    def __init__(self, endpoint: AsyncEndpoint, prepared: Prepared) -> None:
        self._endpoint = endpoint
        self._prepared = prepared
        self._asked = False  # whether the server was asked for the signature
        self._asking: asyncio.Future[None] | None = None  # done when it has answered, or not

    @property
    def name(self) -> str:
        """The model's name."""
        return self._prepared.model_name

    @property
    def version(self) -> str:
        """The version asked for; empty if the server chooses."""
        return self._prepared.model_version

    async def signature(self) -> Signature | None:
        """Return what the model takes and gives; asks the server, the first time.

        None if the server does not say. Raises what `AsyncClient.model_metadata` raises.
        """
        await self._learn(await self._endpoint.options(f"ModelMetadata({self.name!r})"))
        return self._endpoint.signatures.get(self._prepared)

    async def __call__(
        self,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        request_id: str = "",
        timeout: float | None = UNSET,
        headers: HeaderSource | None = None,
        compression: Compression | None = UNSET,
        out: Out | None = None,
        split: bool = False,
        **tensors: Any,
    ) -> InferResult:
        """Run the model and wait for its answer; see `triton_fast.Model.__call__`."""
        endpoint = self._endpoint
        options = await endpoint.options(self._prepared.call, timeout, headers, compression)
        await self._learn(options)
        both = merged(inputs, tensors)
        if split:
            from .split_async import infer_split  # noqa: PLC0415 - for those who split

            return await infer_split(endpoint, self._prepared, both, request_id, options, out)
        return await endpoint.infer(self._prepared, both, request_id, options, out)

    async def _learn(self, options: CallOptions) -> None:
        while not self._asked:
            asking = self._asking
            if asking is None or asking.done() or asking.get_loop().is_closed():
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

    def __repr__(self) -> str:
        version = f", {self.version!r}" if self.version else ""
        return f"AsyncModel({self.name!r}{version} at {self._endpoint.url})"
