"""Asking a server how it is: what `AsyncClient.health` does."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ..errors import ServerError, WireError
from .health import Health, survey

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ..channels.base import CallOptions
    from ..options.headers import HeaderSource

__all__ = ["check_health_async"]

_Answer: TypeAlias = "Message | ServerError | WireError | None"


class _Asks(Protocol):
    """What makes management calls: an `AsyncEndpoint`."""

    def options(
        self, call: str, timeout: float | None, headers: HeaderSource | None
    ) -> Awaitable[CallOptions]:
        """Return a call's options."""

    def exchange(
        self, method: str, fields: Mapping[str, Any], options: CallOptions
    ) -> Awaitable[Message]:
        """Make a call."""


async def check_health_async(
    connection: _Asks, timeout: float | None, headers: HeaderSource | None
) -> Health:
    """Ask a server how it is; see `AsyncClient.health`.

    Raises
    ------
    ClosedError, InvalidOption, MissingDependency
        If nothing could be asked. What the server or the network does wrong is in the result.
    """
    questions = survey()
    answer: _Answer = None
    deadline_ns = None
    latency = 0.0
    while True:
        try:
            method = questions.send(None if answer is None else (answer, latency))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # it is what survey returns
        options = await connection.options(method, timeout, headers)
        if answer is None:
            deadline_ns = options.deadline_ns  # of all that is asked, together
        options = replace(options, deadline_ns=deadline_ns)
        began_ns = time.monotonic_ns()
        try:
            answer = await connection.exchange(method, {}, options)
        except (ServerError, WireError) as error:
            answer = error
        latency = (time.monotonic_ns() - began_ns) / 1e9
