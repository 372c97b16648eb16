"""Health as a value: what a server says of itself and of its models, and what to make of that.

`survey` decides what to ask and what the answers mean, and does no I/O; `check_health` and
`check_health_async` ask for it.
"""

from __future__ import annotations

import enum
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import Unimplemented, printable
from ..protocol.messages import message_class
from ..protocol.server_messages import model_state

__all__ = ["Health", "HealthStatus", "survey"]

# How much of the reason that a server gives for a model's state goes into an error: some are whole
# tracebacks.
_MOST_SHOWN = 400


class HealthStatus(enum.StrEnum):
    """What a server is good for."""

    HEALTHY = "healthy"
    """It takes requests, and so do all its models."""

    DEGRADED = "degraded"
    """It is up, but it says that it is not ready, or a model is not, or it will not say."""

    UNHEALTHY = "unhealthy"
    """It is not reached, or not in time, or says that it is not alive."""


@dataclass(frozen=True, slots=True)
class Health:
    """What was found when a server was asked how it is; see `Client.health`.

    Parameters
    ----------
    status : HealthStatus
        What all of it amounts to; a str.
    live : bool
        Whether the server is up.
    ready : bool
        Whether it says that it takes requests.
    models : mapping of str to bool
        Whether a model is ready, by its name: that is, each of its versions that the server is to
        serve. Models that were never loaded or have been unloaded are not in it. Empty if the
        server lists no models.
    latency : float, seconds
        How long the server took to say that it is live, or it took to find out that it does not.
        The first call of a client connects, too.
    errors : tuple of str
        What is wrong, a sentence each; empty if nothing is.

    Notes
    -----
    As a bool it is whether all is well: True for healthy, and not for degraded.

    Source
    ------
    inference.proto, ServerLive, ServerReady, RepositoryIndex.
    """

    status: HealthStatus
    live: bool
    ready: bool
    models: Mapping[str, bool] = field(hash=False)
    latency: float
    errors: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.status is HealthStatus.HEALTHY


def survey() -> Generator[str, tuple[Any, float] | None, Health]:
    """Yield methods to call; take their answers, or the errors in place of them, and the time."""
    message_class("ServerLiveRequest")  # loads protobuf, which is not the server's latency
    asked = yield "ServerLive"
    assert asked is not None
    answer, latency = asked
    if isinstance(answer, Exception):
        return _unhealthy(latency, str(answer))
    if not answer.live:
        return _unhealthy(latency, "the server says that it is not live")

    errors = []
    asked = yield "ServerReady"
    assert asked is not None
    answer = asked[0]
    ready = not isinstance(answer, Exception) and bool(answer.ready)
    if isinstance(answer, Exception):
        errors.append(str(answer))
    elif not ready:
        errors.append("the server says that it is not ready")

    models: dict[str, bool] = {}
    asked = yield "RepositoryIndex"
    assert asked is not None
    answer = asked[0]
    if isinstance(answer, Unimplemented):
        pass  # a KServe server other than Triton; it has nothing to list
    elif isinstance(answer, Exception):
        errors.append(str(answer))
    else:
        for model in answer.models:
            if not _is_to_serve(model):
                continue
            served = model_state(model.state) == "READY"
            models[model.name] = models.get(model.name, True) and served
            if not served:
                errors.append(_sentence(model))
    status = HealthStatus.DEGRADED if errors else HealthStatus.HEALTHY
    return Health(status, True, ready, models, latency, tuple(errors))


def _unhealthy(latency: float, error: str) -> Health:
    return Health(HealthStatus.UNHEALTHY, False, False, {}, latency, (error,))


def _is_to_serve(model: Any) -> bool:
    """Return whether an entry of the index is a fault if it is not ready."""
    state = model_state(model.state)
    if not state or state == "UNLOADING":
        return False
    # What somebody had unloaded, or a newer version has replaced.
    return not (state == "UNAVAILABLE" and model.reason == "unloaded")


def _sentence(model: Any) -> str:
    version = f" version {printable(model.version, 20)}" if model.version else ""
    reason = printable(model.reason.strip(), _MOST_SHOWN)
    return f"model {model.name!r}{version} is {printable(model_state(model.state), 20)}" + (
        f": {reason}" if reason else ""
    )
