"""Model: a callable that stands for one model on the server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InvalidOption, InvalidTensor
from ..inference.request import UNSET

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ..channels.base import CallOptions, Compression
    from ..inference.request import Prepared
    from ..inference.result import InferResult
    from ..inference.signature import Signature
    from ..options.headers import HeaderSource
    from .attempt import Out
    from .endpoint import Endpoint

__all__ = ["Model", "merged"]


class Model:
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

    def __init__(self, endpoint: Endpoint, prepared: Prepared) -> None:
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

    @property
    def signature(self) -> Signature | None:
        """What the model takes and gives; asks the server, the first time.

        None if the server does not say. Raises what `Client.model_metadata` raises.
        """
        self._learn(self._endpoint.options(f"ModelMetadata({self.name!r})"))
        return self._endpoint.signatures.get(self._prepared)

    def __call__(
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
        """Run the model and wait for its answer.

        Parameters
        ----------
        inputs : mapping of str to array_like, optional
            As in `Client.infer`.
        request_id, timeout, headers, compression, out, split
            As in `Client.infer`.
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
            As in `Client.infer`.
        """
        options = self._endpoint.options(self._prepared.call, timeout, headers, compression)
        self._learn(options)
        both = merged(inputs, tensors)
        if split:
            from .split import infer_split  # noqa: PLC0415 - concurrent.futures takes its time

            return infer_split(self._endpoint, self._prepared, both, request_id, options, out)
        return self._endpoint.infer(self._prepared, both, request_id, options, out)

    def submit(
        self,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        request_id: str = "",
        timeout: float | None = UNSET,
        headers: HeaderSource | None = None,
        compression: Compression | None = UNSET,
        out: Out | None = None,
        **tensors: Any,
    ) -> Future[InferResult]:
        """Run the model without waiting for its answer; see `Client.submit` and `__call__`.

        The first call waits for the model's signature.
        """
        options = self._endpoint.options(self._prepared.call, timeout, headers, compression)
        self._learn(options)
        return self._endpoint.submit(
            self._prepared, merged(inputs, tensors), request_id, options, out
        )

    def _learn(self, options: CallOptions) -> None:
        if not self._asked:
            self._endpoint.fetch_signature(self._prepared, options)
            self._asked = True

    def __repr__(self) -> str:
        version = f", {self.version!r}" if self.version else ""
        return f"Model({self.name!r}{version} at {self._endpoint.url})"


def merged(inputs: Mapping[str, Any] | None, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a call's inputs, however they were given; InvalidOption if one was given twice."""
    if inputs is None:
        return tensors
    if not isinstance(inputs, Mapping):
        raise InvalidTensor(
            f"inputs must be a mapping of name to array, got {type(inputs).__name__}"
        )
    both = inputs.keys() & tensors.keys()
    if both:
        raise InvalidOption(f"input {min(both)!r} was given twice")
    return {**inputs, **tensors} if tensors else inputs
