"""Text generation: a prompt in, events out, whatever the model calls its tensors.

Asks the server what the model is like, once, and for the text: from a stream where the model is
decoupled, else with one call. `TextRequest` has what both faces share.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from types import AsyncGeneratorType, GeneratorType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, cast

from ..errors import InvalidArgument, InvalidOption, InvalidTensor, NotFound, Unimplemented
from ..inference.request import UNSET
from ..options.deadline import deadline_after, seconds
from .events import Event, TextDecoder
from .mappings import (
    TextMapping,
    TextModel,
    checked_options,
    choose_mapping,
    text_inputs,
    text_outputs,
)

if TYPE_CHECKING:
    from ..options.headers import HeaderSource

__all__ = ["AsyncGeneration", "Generation", "KnownTextModels", "TextRequest"]

KnownTextModels: TypeAlias = dict[tuple[str, str], TextModel]
"""What a client knows of models, by name and version; these functions fill it."""

_Encoded: TypeAlias = tuple[bool, dict[str, Any], TextDecoder]
"""Whether the model is decoupled, the arguments of the call but for its timeout, and a decoder."""

# Of models that are called by name; somebody may put a counter into the name.
_MOST_KNOWN = 256
# What a server answers whose model is no longer what it was.
_REFUSALS = (InvalidArgument, InvalidTensor, NotFound, Unimplemented)


class TextRequest:
    """What somebody wants generated; one use.

    Parameters
    ----------
    model, model_version : str
        Which model.
    prompt : str
        What to continue or answer.
    mapping : TextMapping or None
        How the model calls its tensors; None to go by what it says of them.
    request_id : str
        Comes back in `Started`.
    parameters, priority, queue_timeout, headers
        As in `triton_fast.Client.infer`.
    timeout : float, seconds, or None or UNSET
        Of all calls together, from the first one on; UNSET for the client's own, of each.
    **options
        As in `triton_fast.text.mappings.checked_options`.

    Raises
    ------
    InvalidOption
        If the prompt is no text, or the mapping, an option or the timeout makes no sense.
    """

    def __init__(
        self,
        model: str,
        prompt: str,
        *,
        mapping: TextMapping | None,
        model_version: str,
        request_id: str,
        parameters: Mapping[str, Any] | None,
        priority: int,
        queue_timeout: float | None,
        timeout: float | None,
        headers: HeaderSource | None,
        **options: Any,
    ) -> None:
        if not isinstance(prompt, str):
            raise InvalidOption(f"a prompt must be a str, got {type(prompt).__name__}")
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise InvalidOption(f"the prompt cannot be encoded in UTF-8: {error.reason}") from None
        if mapping is not None and not isinstance(mapping, TextMapping):
            raise InvalidOption(f"mapping must be a TextMapping, got {mapping!r}")
        self.key = (model, model_version)
        self._prompt = prompt
        self._options = checked_options(**options)
        self._mapping = mapping
        self._timeout = timeout if timeout is UNSET else seconds(timeout, "timeout")
        self._deadline_ns: int | None = None
        self.headers = headers
        self._request_id = request_id
        self._parameters = parameters
        self._scheduling = {"priority": priority, "queue_timeout": queue_timeout}

    def begin(self) -> None:
        """Start the clock."""
        if self._timeout is not UNSET:
            self._deadline_ns = deadline_after(self._timeout)

    @property
    def time_left(self) -> float | None:
        """The timeout of the next call, in seconds."""
        if self._timeout is UNSET or self._deadline_ns is None:
            return self._timeout
        return max(0.0, (self._deadline_ns - time.monotonic_ns()) / 1e9)

    def encode_known(self, known: KnownTextModels) -> _Encoded | None:
        """Return the request for a model that is known; None if it has to be asked for.

        It may have been replaced since by one that takes other tensors: the server is asked again
        before a request is refused.
        """
        model = known.get(self.key)
        if model is not None:
            with contextlib.suppress(InvalidOption):
                return self._encode(model)
        return None

    def learn(self, known: KnownTextModels, model: TextModel) -> _Encoded:
        """Take note of what a model is like, and return the request.

        Raises
        ------
        InvalidOption
            If the model's tensors are not what the mapping or the options take them for.
        """
        if len(known) >= _MOST_KNOWN:
            known.clear()
        known[self.key] = model
        return self._encode(model)

    def _encode(self, model: TextModel) -> _Encoded:
        mapping = choose_mapping(model) if self._mapping is None else self._mapping
        name, version = self.key
        inputs, parameters = text_inputs(mapping, model, self._prompt, self._options)
        twice = parameters.keys() & (self._parameters or {}).keys()
        if twice:
            raise InvalidOption(f"{min(twice)} is given twice, as an option and a parameter")
        arguments = {
            "model": name,
            "inputs": inputs,
            "outputs": text_outputs(mapping, model),
            "model_version": version,
            "request_id": self._request_id,
            "parameters": {**(self._parameters or {}), **parameters} or None,
            "headers": self.headers,
            **self._scheduling,
        }
        return model.decoupled, arguments, TextDecoder(mapping, name, self._request_id)


class _Calls(Protocol):
    """What makes the calls: a `Client` or an `AsyncClient`, which give values or awaitables."""

    def model_metadata(self, *args: Any, **kwargs: Any) -> Any:
        """Return what a model takes and gives."""

    def model_config(self, *args: Any, **kwargs: Any) -> Any:
        """Return how the server is set up to run a model."""

    def infer(self, *args: Any, **kwargs: Any) -> Any:
        """Run a model and wait for its answer."""

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        """Run a model and iterate over its answers."""


class Generation:
    """The events of one text; made by `Client.generate`.

    An iterator of `Started`, any number of `Token`, and `Finished`, and a context manager. Errors
    are raised where the next event would be. Nothing is asked before the first is.

    Notes
    -----
    Not thread-safe. Closing it, leaving the ``with`` block, or dropping it before its end cancels
    the request.
    """

    def __init__(self, client: _Calls, known: KnownTextModels, request: TextRequest) -> None:
        self._events = _events(client, known, request)
        self._model = request.key[0]

    def __repr__(self) -> str:
        generator = cast("GeneratorType[Event, None, None]", self._events)
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncGeneration:
    """The events of one text; made by `AsyncClient.generate`. See `Generation`.

    An asynchronous iterator and context manager. If it is left before its end, without the context
    manager or `aclose`, the request goes on until the event loop finds out.
    """

    def __init__(self, client: _Calls, known: KnownTextModels, request: TextRequest) -> None:
        self._events = _events_async(client, known, request)
        self._model = request.key[0]

    def __repr__(self) -> str:
        generator = cast("AsyncGeneratorType[Event, None]", self._events)
        state = "over" if generator.ag_frame is None else "open"
        return f"<AsyncGeneration by model {self._model!r}; {state}>"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def aclose(self) -> None:
        """Cancel the request, unless it is over. Idempotent."""
        await self._events.aclose()

    async def close(self) -> None:
        """Do as `aclose`, whose name is that of Python's own asynchronous iterators."""
        await self.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def _events(
    client: _Calls, known: KnownTextModels, request: TextRequest
) -> Generator[Event, None, None]:
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
                    yield from decoder.take(result)
        else:
            yield from decoder.take(client.infer(timeout=request.time_left, **arguments))
    except _REFUSALS:
        known.pop(request.key, None)
        raise
    yield from decoder.finish()


async def _events_async(
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
            config = None
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
    except _REFUSALS:
        known.pop(request.key, None)
        raise
    for event in decoder.finish():
        yield event
