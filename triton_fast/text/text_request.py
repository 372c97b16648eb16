"""What somebody wants generated, in a model's tensors, whatever it calls them. Does no I/O.

`TextRequest` owns the clock of its calls; what is known of models is the client's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import InvalidArgument, InvalidOption, InvalidTensor, NotFound, Unimplemented
from ..options.deadline import deadline_after, microseconds, own_seconds
from ..options.headers import checked_headers
from ..options.values import checked_text, instead, plain_parameters, whole_number
from .events import TextDecoder
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

__all__ = ["REFUSALS", "KnownTextModels", "TextRequest"]

KnownTextModels: TypeAlias = dict[tuple[str, str], TextModel]
"""What a client knows of models, by name and version; requests fill it."""

REFUSALS = (InvalidArgument, InvalidTensor, NotFound, Unimplemented)
"""What a server answers whose model is no longer what it was."""

_Encoded: TypeAlias = tuple[bool, dict[str, Any], TextDecoder]
"""Whether the model is decoupled, the arguments of the call but for its timeout, and a decoder."""

# Of models that are called by name; somebody may put a counter into the name.
_MOST_KNOWN = 256


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
    timeout : float, seconds, or None
        Of all calls together, from the first one on; None for the client's own, of each, and
        infinity for no limit.
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
            raise InvalidOption(f"the prompt must be a str, got {type(prompt).__name__}")
        checked_text(prompt, "the prompt", empty=True)
        if mapping is not None and not isinstance(mapping, TextMapping):
            raise InvalidOption(f"mapping must be a TextMapping, got {instead(mapping)}")
        self.key = (
            checked_text(model, "the model's name"),
            checked_text(model_version, "the model's version", empty=True),
        )
        self._prompt = prompt
        self._options = checked_options(**options)
        self._mapping = mapping
        self._timeout = own_seconds(timeout, "timeout")
        self._deadline_ns: int | None = None
        # Several calls are made with them.
        self.headers = None if headers is None else checked_headers(headers)
        self._request_id = checked_text(request_id, "request_id", empty=True)
        self._parameters = plain_parameters(parameters)
        microseconds(queue_timeout, "queue_timeout")
        self._scheduling = {
            "priority": whole_number(priority, "priority must be a whole number", 0, (1 << 64) - 1),
            "queue_timeout": queue_timeout,
        }

    def begin(self) -> None:
        """Start the clock."""
        self._deadline_ns = deadline_after(self._timeout)

    @property
    def time_left(self) -> float | None:
        """The timeout of the next call, in seconds."""
        if self._deadline_ns is None:
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
