"""Model: a callable that stands for one model on the server.

Owns when it asks for the model's signature, and the calls that are not waited for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..inference.request import UNSET, merged_inputs
from . import model_calls
from .attempt import checked_out

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ..channels.base import CallOptions, Compression
    from ..inference.result import InferResult
    from ..inference.signature import Signature
    from ..options.headers import HeaderSource
    from .attempt import Out

__all__ = ["Model"]


class Model(model_calls.Model):
    """One model on a client's server; made by `Client.model`.

    Notes
    -----
    What stays the same from call to call is encoded once. The signature is fetched when it is first
    needed, and again when a call does not fit it, since the model may have been replaced.
    Thread-safe.

    Examples
    --------
    >>> resnet = client.model("resnet")  # doctest: +SKIP
    >>> resnet(image=batch)["scores"]  # doctest: +SKIP
    >>> resnet({"image": batch}, timeout=0.05, out={"scores": scores})  # doctest: +SKIP
    """

    @property
    def signature(self) -> Signature | None:
        """What the model takes and gives; asks the server, the first time.

        None if the server does not say. Raises what `Client.model_metadata` raises.
        """
        self._endpoint.load_messages()
        self._learn(self._endpoint.options(f"ModelMetadata({self.name!r})"))
        return self._endpoint.signatures.get(self._prepared)

    def submit(
        self,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        request_id: str = "",
        timeout: float | None = None,
        headers: HeaderSource | None = None,
        compression: Compression | None = UNSET,
        out: Out | None = None,
        **tensors: Any,
    ) -> Future[InferResult]:
        """Run the model without waiting for its answer; see `Client.submit` and `__call__`.

        The first call waits for the model's signature.
        """
        if not self._asked:
            self._endpoint.load_messages()
        options = self._endpoint.options(self._prepared.call, timeout, headers, compression)
        if out is not None:
            out = checked_out(out)
        both = merged_inputs(inputs, tensors)
        self._learn(options)
        return self._endpoint.submit(self._prepared, both, request_id, options, out)

    def _learn(self, options: CallOptions) -> None:
        if not self._asked:
            self._endpoint.fetch_signature(self._prepared, options)
            self._asked = True
