"""The events of text generation, and the making of them from a model's results. Does no I/O."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import WireError

if TYPE_CHECKING:
    import numpy as np

    from ..inference.result import InferResult
    from .mappings import TextMapping

__all__ = ["Event", "Finished", "Started", "TextDecoder", "Token", "Usage"]

# U+FFFD, as which a model writes a character of which it has the beginning only.
_REPLACEMENT = "\ufffd".encode()


@dataclass(frozen=True, slots=True)
class Started:
    """The first event: the model has begun to answer.

    Parameters
    ----------
    id : str
        The request's id, as the server has it.
    model_name, model_version : str
        Which model answers.
    """

    id: str
    model_name: str
    model_version: str


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the text, as the model sent it: one token mostly, or several.

    Parameters
    ----------
    text : str
        Never empty, and never a part of a character.
    index : int
        How many there were before.
    """

    text: str
    index: int


@dataclass(frozen=True, slots=True)
class Usage:
    """How many tokens a request took.

    Parameters
    ----------
    prompt_tokens, completion_tokens : int or None
        Of the prompt and of the answer; None if the model does not say.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event: the answer is complete.

    Parameters
    ----------
    reason : str or None
        Why it ended, in the model's own word (``"stop"``, ``"length"``); None if it does not say.
    usage : Usage
        Numbers of tokens.
    text : str
        The whole answer.
    """

    reason: str | None
    usage: Usage
    text: str


Event: TypeAlias = Started | Token | Finished
"""What generating text gives, in this order: one, any number, one."""


class TextDecoder:
    """Makes events of a request's results. Does no I/O.

    Parameters
    ----------
    mapping : TextMapping
        How the model calls its outputs.
    model_name, request_id : str
        For `Started`, if the model gives no answer at all.
    """

    def __init__(self, mapping: TextMapping, model_name: str, request_id: str) -> None:
        self._mapping = mapping
        self._started = Started(request_id, model_name, "")
        self._begun = False
        # A token may end in the middle of a character; what is no UTF-8 becomes U+FFFD.
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pieces: list[str] = []
        self._whole = b""  # cumulative: the text so far
        self._position = 0  # cumulative: how much of it was decoded
        self._reason: str | None = None
        self._prompt_tokens: int | None = None
        self._completion_tokens: int | None = None

    def take(self, result: InferResult) -> list[Event]:
        """Return the events that a result amounts to.

        Raises
        ------
        WireError
            If an output is not what the mapping says.
        """
        mapping = self._mapping
        events: list[Event] = []
        if not self._begun:
            self._started = Started(result.id, result.model_name, result.model_version)
            events += self._begin()
        reason = self._bytes(result, mapping.finish_reason)
        if reason and reason != b"None":  # Python's, from vLLM, as long as there is none
            self._reason = reason.decode("utf-8", "replace")
        prompt_tokens = self._count(result, mapping.prompt_tokens)
        if prompt_tokens is not None:
            self._prompt_tokens = prompt_tokens
        completion_tokens = self._count(result, mapping.completion_tokens)
        if completion_tokens is not None:
            before = 0 if mapping.cumulative else self._completion_tokens or 0
            self._completion_tokens = before + completion_tokens
        text = self._bytes(result, mapping.text)
        if text is not None:
            events += self._token(self._decoder.decode(self._new(text)))
        return events

    def finish(self) -> list[Event]:
        """Return the last events, after the last result."""
        events = [] if self._begun else self._begin()
        rest = self._whole[self._position :]  # held back, for there might have come more
        events += self._token(self._decoder.decode(rest, final=True))
        text = "".join(self._pieces)
        if self._mapping.cumulative:
            text = self._whole.decode("utf-8", "replace")
        usage = Usage(self._prompt_tokens, self._completion_tokens)
        events.append(Finished(self._reason, usage, text))
        return events

    def _begin(self) -> list[Event]:
        self._begun = True
        return [self._started]

    def _token(self, text: str) -> list[Event]:
        if not text:
            return []
        self._pieces.append(text)
        return [Token(text, len(self._pieces) - 1)]

    def _new(self, text: bytes) -> bytes:
        """Return what a result adds to the text."""
        if not self._mapping.cumulative:
            return text
        before, self._whole = self._whole, text
        end = len(text)
        while text.endswith(_REPLACEMENT, 0, end):
            end -= len(_REPLACEMENT)
        start = self._position
        if text[:start] != before[:start]:
            # It was changed in hindsight: go on after as many bytes, at the next character.
            self._decoder.reset()
            while start < end and text[start] & 0xC0 == 0x80:
                start += 1
        self._position = max(start, end)
        return text[start:end]

    def _element(self, result: InferResult, name: str) -> Any:
        """Return an output's one element; None if it has none, or there is no such output."""
        if not name or name not in result:
            return None
        array: np.ndarray[Any, Any] = result[name]
        if array.size > 1:
            raise WireError(
                f"output {name!r} of model {result.model_name!r} has {array.size} elements; one "
                "text was asked for"
            )
        return array.flat[0] if array.size else None

    def _bytes(self, result: InferResult, name: str) -> bytes | None:
        element = self._element(result, name)
        if element is None or isinstance(element, bytes):
            return element
        raise WireError(
            f"output {name!r} of model {result.model_name!r} is {result[name].dtype}, not BYTES"
        )

    def _count(self, result: InferResult, name: str) -> int | None:
        element = self._element(result, name)
        if element is None:
            return None
        if result[name].dtype.kind not in "iu":
            raise WireError(
                f"output {name!r} of model {result.model_name!r} is {result[name].dtype}, and no "
                "number of tokens"
            )
        return int(element)
