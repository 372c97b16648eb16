"""The calls of an `AsyncModel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..inference.request import UNSET, merged_inputs
from ..options.values import checked_flag
from .attempt import checked_out

if TYPE_CHECKING:
    from ..channels.base import CallOptions, Compression
    from ..inference.request import Prepared
    from ..inference.result import InferResult
    from ..options.headers import HeaderSource
    from .attempt import Out
    from .endpoint_async import AsyncEndpoint

__all__ = ["AsyncModel"]


class AsyncModel:
    """The handle of a model, but for its signature, which `triton_fast.AsyncModel` asks for."""

    def __init__(self, endpoint: AsyncEndpoint, prepared: Prepared) -> None:
        self._endpoint = endpoint
        self._prepared = prepared
        self._asked = False  # whether the server was asked for the signature

    @property
    def name(self) -> str:
        """The model's name."""
        return self._prepared.model_name

    @property
    def version(self) -> str:
        """The version asked for; empty if the server chooses."""
        return self._prepared.model_version

    async def __call__(
        self,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        request_id: str = "",
        timeout: float | None = None,
        headers: HeaderSource | None = None,
        compression: Compression | None = UNSET,
        out: Out | None = None,
        split: bool = False,
        **tensors: Any,
    ) -> InferResult:
        """Run the model and wait for its answer.

        Parameters
        ----------
        inputs : mapping of str to array_like, optional
            As in `AsyncClient.infer`.
        request_id, timeout, headers, compression, out, split
            As in `AsyncClient.infer`.
        **tensors : array_like
            Inputs by name, in place of ``inputs`` or beside it.

        Returns
        -------
        InferResult

        Raises
        ------
        InvalidTensor
            Also if the model takes no such input, or not of this datatype or shape; nothing is
            sent then.
        ServerError, WireError, ClosedError, InvalidOption
            As in `AsyncClient.infer`.
        """
        endpoint = self._endpoint
        if not self._asked:
            await endpoint.load_messages()
        options = await endpoint.options(self._prepared.call, timeout, headers, compression)
        if out is not None:
            out = checked_out(out)
        await self._learn(options)
        both = merged_inputs(inputs, tensors)
        if split is not False and checked_flag(split, "split"):
            from .split_async import infer_split  # noqa: PLC0415 - imported on use

            return await infer_split(endpoint, self._prepared, both, request_id, options, out)
        return await endpoint.infer(self._prepared, both, request_id, options, out)

    async def _learn(self, options: CallOptions) -> None:
        """Have asked for the model's signature, within the deadline of the call that wants it."""
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._endpoint, self._prepared)

    def __repr__(self) -> str:
        version = f", {self.version!r}" if self.version else ""
        return f"AsyncModel({self.name!r}{version} at {self._endpoint.url})"
