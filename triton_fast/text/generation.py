# Written by `make twins` from generation_async.py, which is the one to edit.
"""Text generation: a prompt in, events out, whatever the model calls its tensors.

Asks the server what the model is like, once, and for the text: from a stream where the model is
decoupled, else with one call.
"""

from __future__ import annotations

from collections.abc import Generator
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Protocol, Self, cast

from ..channels.one_process import OneProcess
from ..errors import Unimplemented
from .events import Event
from .mappings import TextModel
from .text_request import REFUSALS

if TYPE_CHECKING:
    from .text_request import KnownTextModels, TextRequest

__all__ = ["Generation"]


class _Calls(Protocol):
    """What makes the calls: a `Client`."""

    def model_metadata(self, *args: Any, **kwargs: Any) -> Any:
        """Return what a model takes and gives."""

    def model_config(self, *args: Any, **kwargs: Any) -> Any:
        """Return how the server is set up to run a model."""

    def infer(self, *args: Any, **kwargs: Any) -> Any:
        """Run a model and wait for its answer."""

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        """Run a model and iterate over its answers."""


class Generation(OneProcess):
    """The events of one text; made by `Client.generate`.

    An iterator of `Started`, any number of `Token`, and `Finished`, and a context
    manager. Errors are raised where the next event would be. Nothing is asked before the first is.

    Notes
    -----
    One thread at a time. Closing it, or leaving the ``with`` block, before its end cancels the
    request; so does dropping it, when Python finds out.
    """

    def __init__(self, client: _Calls, known: KnownTextModels, request: TextRequest) -> None:
        self._events = _events(client, known, request)
        self._model = request.key[0]

    def __repr__(self) -> str:
        generator = cast("GeneratorType[Event, None]", self._events)
        state = "over" if generator.gi_frame is None else "open"
        return f"<Generation by model {self._model!r}; {state}>"

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """Cancel the request, unless it is over. Idempotent."""
        self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _events(client: _Calls, known: KnownTextModels, request: TextRequest) -> Generator[Event, None]:
    request.begin()
    encoded = request.encode_known(known)
    if encoded is None:
        about = {"version": request.key[1], "headers": request.headers}
        name = request.key[0]
        metadata = client.model_metadata(name, timeout=request.time_left, **about)
        try:
            config = client.model_config(name, timeout=request.time_left, **about)
        except Unimplemented:
            config = None  # a KServe server other than Triton; it has no decoupled models
        encoded = request.learn(known, TextModel.from_metadata(metadata, config))
    decoupled, arguments, decoder = encoded
    try:
        if decoupled:
            with client.stream(timeout=request.time_left, **arguments) as results:
                for result in results:
                    for event in decoder.take(result):
                        yield event
        else:
            result = client.infer(timeout=request.time_left, **arguments)
            for event in decoder.take(result):
                yield event
    except REFUSALS:
        known.pop(request.key, None)
        raise
    for event in decoder.finish():
        yield event
