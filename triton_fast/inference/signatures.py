"""What is known of the signatures of a server's models."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..management.metadata import ModelConfig, ModelMetadata
    from .request import Prepared
    from .signature import Signature

__all__ = ["Signatures"]


class Signatures:
    """Signatures by the name and version that calls use. Thread-safe."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Signature] = {}

    def get(self, prepared: Prepared) -> Signature | None:
        """Return what is known of a model, if anything is."""
        return self._known.get((prepared.model_name, prepared.model_version))

    def learn(
        self, prepared: Prepared, metadata: ModelMetadata, config: ModelConfig | None
    ) -> Signature | None:
        """Take note of what the server has just said of a model; return what that amounts to.

        Without a configuration, the server is no Triton.
        """
        from .signature import Signature  # noqa: PLC0415 - management only

        signature = Signature.from_metadata(metadata, config)
        if signature is not None and config is None:
            signature = replace(signature, advisory=True)
        if signature is not None:
            self._known[prepared.model_name, prepared.model_version] = signature
        return signature

    def remember(self, metadata: ModelMetadata, name: str, version: str) -> None:
        """Take note of metadata that was asked for, unless more is known."""
        from .signature import Signature  # noqa: PLC0415 - management only

        signature = Signature.from_metadata(metadata)
        if signature is not None:
            self._known.setdefault((name, version), signature)
