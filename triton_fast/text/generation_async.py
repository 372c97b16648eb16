"""Text generation: a prompt in, events out, whatever the model calls its tensors.

Asks the server what the model is like, once, and for the text: from a stream where the model is
decoupled, else with one call.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from ..channels.one_process import OneProcess
from ..errors import Unimplemented
from .events import Event
from .mappings import TextModel
from .text_request import REFUSALS

if TYPE_CHECKING:
    from .text_request import KnownTextModels, TextRequest

__all__ = ["AsyncGeneration"]


class _Calls(Protocol):
    """What makes the calls: an `AsyncClient`."""

    def model_metadata(self, *args: Any, **kwargs: Any) -> Any:
        """Return what a model takes and gives."""

    def model_config(self, *args: Any, **kwargs: Any) -> Any:
        """Return how the server is set up to run a model."""

    def infer(self, *args: Any, **kwargs: Any) -> Any:
        """Run a model and wait for its answer."""

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        """Run a model and iterate over its answers."""


class AsyncGeneration(OneProcess):
    """The events of one text; made by `AsyncClient.generate`.

    An asynchronous iterator of `Started`, any number of `Token`, and `Finished`, and a context
    manager. Errors are raised where the next event would be. Nothing is asked before the first is.

    Notes
    -----
    One task at a time. Closing it, or leaving the ``async with`` block, before its end cancels the
    request; so does dropping it, when Python finds out.
    """

    def __init__(self, client: _Calls, known: KnownTextModels, request: TextRequest) -> None:
        self._events = _events(client, known, request)
        self._model = request.key[0]

    def __repr__(self) -> str:
        generator = cast("AsyncGeneratorType[Event, None]", self._events)
        state = "over" if generator.ag_frame is None else "open"
        return f"<AsyncGeneration by model {self._model!r}; {state}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def close(self) -> None:
        """Cancel the request, unless it is over. Idempotent."""
        await self._events.aclose()

    async def aclose(self) -> None:
        """Do as `close`: `contextlib.aclosing` asks for this name."""
        await self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def _events(
    client: _Calls, known: KnownTextModels, request: TextRequest
) -> AsyncGenerator[Event, None]:
    request.begin()
    encoded = request.encode_known(known)
    if encoded is None:
        about = {"version": request.key[1], "headers": request.headers}
        name = request.key[0]
        metadata = await client.model_metadata(name, timeout=request.time_left, **about)
        try:
            config = await client.model_config(name, timeout=request.time_left, **about)
        except Unimplemented:
            config = None  # a KServe server other than Triton; it has no decoupled models
        encoded = request.learn(known, TextModel.from_metadata(metadata, config))
    decoupled, arguments, decoder = encoded
    try:
        if decoupled:
            async with client.stream(timeout=request.time_left, **arguments) as results:
                async for result in results:
                    for event in decoder.take(result):
                        yield event
        else:
            result = await client.infer(timeout=request.time_left, **arguments)
            for event in decoder.take(result):
                yield event
    except REFUSALS:
        known.pop(request.key, None)
        raise
    for event in decoder.finish():
        yield event
