"""What can be asked of a server about itself and its models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import DeadlineExceeded, NotFound, ServerError, Unavailable
from ..options.values import checked_text
from ..protocol.operations import Query
from ..protocol.server_messages import is_restricted

if TYPE_CHECKING:
    from .metadata import ModelConfig, ModelMetadata, ServerMetadata

__all__ = [
    "model_config",
    "model_metadata",
    "model_ready",
    "server_live",
    "server_metadata",
    "server_ready",
]


def server_live() -> Query[bool]:
    """Return the question whether the server is up; not, if none is reached.

    Source
    ------
    inference.proto, ServerLive.
    """
    return Query("ServerLive", {}, _live, _not_reached)


def server_ready() -> Query[bool]:
    """Return the question whether the server takes requests; not, if none is reached.

    Source
    ------
    inference.proto, ServerReady.
    """
    return Query("ServerReady", {}, _ready, _not_reached)


def model_ready(name: str, version: str) -> Query[bool]:
    """Return the question whether a model takes requests; not, if there is no such.

    Source
    ------
    inference.proto, ModelReady.
    """
    return Query("ModelReady", _model(name, version), _ready, _not_there)


def server_metadata() -> Query[ServerMetadata]:
    """Return the question for the server's name, version and extensions.

    Source
    ------
    inference.proto, ServerMetadata.
    """
    from .metadata import ServerMetadata  # noqa: PLC0415 - management only

    return Query("ServerMetadata", {}, ServerMetadata.from_message)


def model_metadata(name: str, version: str) -> Query[ModelMetadata]:
    """Return the question for what a model takes and gives.

    Source
    ------
    inference.proto, ModelMetadata.
    """
    from .metadata import ModelMetadata  # noqa: PLC0415 - management only

    return Query("ModelMetadata", _model(name, version), ModelMetadata.from_message)


def model_config(name: str, version: str) -> Query[ModelConfig]:
    """Return the question for how the server is set up to run a model.

    Source
    ------
    inference.proto, ModelConfig; Triton's "model configuration extension".
    """
    from .metadata import ModelConfig  # noqa: PLC0415 - management only

    def read(message: Any) -> ModelConfig:
        return ModelConfig.from_message(message.config)

    return Query("ModelConfig", _model(name, version), read)


def _model(name: str, version: str) -> dict[str, str]:
    return {
        "name": checked_text(name, "a model's name", empty=True),
        "version": checked_text(version, "a model's version", empty=True),
    }


def _live(message: Any) -> bool:
    return bool(message.live)


def _ready(message: Any) -> bool:
    return bool(message.ready)


def _not_reached(error: ServerError) -> bool:
    if isinstance(error, DeadlineExceeded):
        return False
    if isinstance(error, Unavailable) and not is_restricted(error):
        return False
    raise error


def _not_there(error: ServerError) -> bool:
    return False if isinstance(error, NotFound) else _not_reached(error)
