"""The test models that generate text. Runs in the server, as a model for each signature.

Which signature a model has, its name says: Triton's vLLM backend's, the TensorRT-LLM ensemble's, or
a plain prompt and text. What is generated is the same for all: the prompt's words, last to first,
each a token.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
# How often a generation that waits looks whether it was cancelled, in seconds.
_LOOK = 0.02


class _Failed(Exception):
    """The generation fails, as the prompt says."""


class _Cancelled(Exception):
    """The caller does not want the rest."""


@dataclass(frozen=True)
class _Settings:
    """How to generate."""

    max_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    delay: float = 0.0

    @classmethod
    def of(cls, values: dict[str, Any]) -> _Settings:
        """Read what is there; numbers may be strings, as they may be for the vLLM backend."""
        limit = values.get("max_tokens")
        return cls(
            max_tokens=None if limit is None else int(limit),
            temperature=float(values.get("temperature", 0)),
            seed=int(values.get("seed") or 0),
            stop=_words(values.get("stop")),
            bad=_words(values.get("bad_words")),
            delay=float(
                values.get("token_delay", os.environ.get("TRITON_FAST_TOKEN_DELAY") or 0.0)
            ),
        )


def _words(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


@dataclass(frozen=True)
class _Piece:
    """One step of a generation: no token when it ends by a stop word, or without any word."""

    text: str
    tokens: int
    reason: str | None


class _Generation:
    """One prompt's text."""

    def __init__(self, prompt: str, settings: _Settings, seen_cancelled: int) -> None:
        self._settings = settings
        self.words = prompt.split()
        words = [word for word in reversed(self.words) if word not in settings.bad]
        if self.words == ["!cancelled"]:
            words = [str(seen_cancelled)]
        self._fails_after = len(words) // 2 if self.words[:1] == ["!error"] else None
        stops = [index for index, word in enumerate(words) if word in settings.stop]
        self._stopped = bool(stops)
        words = words[: stops[0]] if stops else words
        limit = settings.max_tokens
        self._cut = limit is not None and len(words) > limit
        self._words = words[:limit]

    def pieces(self, is_cancelled: Callable[[], bool]) -> Iterator[_Piece]:
        """Generate; the last piece has the reason for the end."""
        reason = "length" if self._cut else "stop"
        separate_end = not self._words or (self._stopped and not self._cut)
        last = len(self._words) - 1
        for index, word in enumerate(self._words):
            self._take_time(is_cancelled)
            if index == self._fails_after:
                raise _Failed(f"the generation failed after {index} tokens, as it was told to")
            odd = (self._settings.seed + index) % 2 == 1
            text = word.upper() if self._settings.temperature > 0 and odd else word
            ends = index == last and not separate_end
            yield _Piece(text if index == 0 else " " + text, 1, reason if ends else None)
        if separate_end:
            self._take_time(is_cancelled)
            yield _Piece("", 0, reason)

    def _take_time(self, is_cancelled: Callable[[], bool]) -> None:
        end = time.monotonic() + self._settings.delay
        while True:
            if is_cancelled():
                raise _Cancelled
            rest = end - time.monotonic()
            if rest <= 0:
                return
            time.sleep(min(rest, _LOOK))


class _Call:
    """A request, read while it is there, and what its answers are made of."""

    streams = False
    final_with_last = False

    def __init__(self, request: Any) -> None:
        self._request = request
        self.parameters: dict[str, Any] = json.loads(request.parameters() or "{}")
        self.settings = _Settings()
        self.prompt = ""
        self.prefix = ""

    def _elements(self, name: str) -> list[Any] | None:
        tensor = pb_utils.get_input_tensor_by_name(self._request, name)
        return None if tensor is None else tensor.as_numpy().ravel().tolist()

    def _one(self, name: str, default: Any = None) -> Any:
        elements = self._elements(name)
        if not elements:
            return default
        if len(elements) > 1:
            raise ValueError(f"input {name!r} has {len(elements)} elements instead of one")
        return elements[0].decode() if isinstance(elements[0], bytes) else elements[0]

    def answer(self, pieces: list[_Piece], words: int) -> list[Any]:
        """Make the tensors of the answer with these pieces of a text for so many words."""
        raise NotImplementedError

    def error(self, message: str) -> Any:
        """Make the answer that a failure gets."""
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(message))


def _refusal(error: Exception) -> Any:
    failure = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
    return pb_utils.InferenceResponse(error=failure)


def _text(name: str, pieces: list[_Piece], prefix: str) -> Any:
    text = prefix + "".join(piece.text for piece in pieces)
    return pb_utils.Tensor(name, np.array([text.encode()], np.object_))


class _PromptText(_Call):
    """``prompt`` to ``text``; settings are parameters of the request."""

    def __init__(self, request: Any) -> None:
        super().__init__(request)
        self.prompt = self._one("prompt")
        self.settings = _Settings.of(self.parameters)

    def answer(self, pieces: list[_Piece], words: int) -> list[Any]:  # noqa: ARG002
        return [_text("text", pieces, "")]


class _PromptTextStream(_PromptText):
    streams = True


class _VllmLike(_Call):
    """As Triton's vLLM backend, without images, LoRA and embeddings."""

    final_with_last = True

    def __init__(self, request: Any) -> None:
        super().__init__(request)
        self.prompt = self._one("text_input")
        self.streams = self._one("stream", default=False)
        exclude = self._one("exclude_input_in_output")
        if self.streams and exclude is False:
            raise ValueError("When streaming, `exclude_input_in_output` = False is not allowed.")
        self.prefix = "" if self.streams or exclude else self.prompt
        sampling = self._one("sampling_parameters")
        values = self.parameters if sampling is None else json.loads(sampling)
        # vLLM's own default.
        self.settings = _Settings.of({"max_tokens": 16, **self.parameters, **values})
        self._wanted = {
            name
            for name in (
                "finish_reason",
                "cumulative_logprob",
                "logprobs",
                "num_input_tokens",
                "num_output_tokens",
            )
            if self._one(f"return_{name}", default=False)
        }
        self._sent = 0

    def answer(self, pieces: list[_Piece], words: int) -> list[Any]:
        tokens = sum(piece.tokens for piece in pieces)
        self._sent += tokens
        # Of the shapes that the backend makes, not all of them those of its configuration.
        made = {
            "finish_reason": np.array([str(pieces[-1].reason)], np.object_),
            "cumulative_logprob": np.array([-0.5 * self._sent], np.float32),
            "logprobs": np.array([b"null"], np.object_),
            "num_input_tokens": np.array(words, np.uint32),
            "num_output_tokens": np.array([tokens], np.uint32),
        }
        return [
            _text("text_output", pieces, self.prefix),
            *(pb_utils.Tensor(name, made[name]) for name in made if name in self._wanted),
        ]

    def error(self, message: str) -> Any:
        text = pb_utils.Tensor("text_output", np.array([b"N/A"], np.object_))
        failure = pb_utils.TritonError(f"Error generating stream: {message}")
        return pb_utils.InferenceResponse([text], error=failure)


class _TensorrtllmLike(_Call):
    """As the TensorRT-LLM ensemble, one prompt a request."""

    def __init__(self, request: Any) -> None:
        super().__init__(request)
        self.prompt = self._one("text_input")
        self.streams = self._one("stream", default=False)
        exclude = self._one("exclude_input_in_output", default=False)
        self.prefix = "" if self.streams or exclude else self.prompt
        seed = self._one("seed")
        values = {
            "max_tokens": self._one("max_tokens"),
            "temperature": self._one("temperature", default=0),
            "seed": self._one("random_seed") if seed is None else seed,
            "stop": [word.decode() for word in self._elements("stop_words") or []],
            "bad_words": [word.decode() for word in self._elements("bad_words") or []],
        }
        self.settings = _Settings.of({**self.parameters, **values})
        self._log_probs = self._one("return_log_probs", default=False)
        self._wanted = {
            name
            for name in ("num_input_tokens", "num_output_tokens")
            if self._one(f"return_{name}", default=False)
        }

    def answer(self, pieces: list[_Piece], words: int) -> list[Any]:
        tokens = sum(piece.tokens for piece in pieces)
        each = -0.5 if self._log_probs else 0.0
        made = {
            "cum_log_probs": np.full((1, 1), each * tokens, np.float32),
            "output_log_probs": np.full((1, 1, tokens), each, np.float32),
            "batch_index": np.zeros((1, 1), np.int32),
            "sequence_index": np.zeros((1, 1), np.int32),
        }
        counts = {
            "num_input_tokens": np.full((1, 1), words, np.int32),
            "num_output_tokens": np.full((1, 1), tokens, np.int32),
        }
        made |= {name: count for name, count in counts.items() if name in self._wanted}
        # The text has no batch dimension there, for all that the configuration says.
        return [
            _text("text_output", pieces, self.prefix),
            *(pb_utils.Tensor(name, array) for name, array in made.items()),
        ]


_SIGNATURES: dict[str, type[_Call]] = {
    "prompt_text": _PromptText,
    "prompt_text_stream": _PromptTextStream,
    "vllm_like": _VllmLike,
    "tensorrtllm_like": _TensorrtllmLike,
}


class TritonPythonModel:
    """What the Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Find out which model this is."""
        self._signature = _SIGNATURES[args["model_name"]]
        self._decoupled = pb_utils.using_decoupled_model_transaction_policy(
            json.loads(args["model_config"])
        )
        self._lock = threading.Lock()
        self._cancelled = 0
        self._threads: set[threading.Thread] = set()

    def execute(self, requests: list[Any]) -> list[Any] | None:
        """Answer the requests, or have them answered by a thread each."""
        if not self._decoupled:
            return [self._only_answer(request) for request in requests]
        for request in requests:
            sender = request.get_response_sender()
            try:
                call = self._signature(request)
            except (TypeError, ValueError) as error:
                sender.send(_refusal(error), flags=_FINAL)
                continue
            thread = threading.Thread(target=self._serve, args=(call, sender))
            with self._lock:
                self._threads.add(thread)
            thread.start()
        return None

    def finalize(self) -> None:
        """Wait for what is still being answered."""
        while self._threads:
            with self._lock:
                threads = list(self._threads)
            for thread in threads:
                thread.join()

    def _only_answer(self, request: Any) -> Any:
        try:
            call = self._signature(request)
        except (TypeError, ValueError) as error:
            return _refusal(error)
        generation = _Generation(call.prompt, call.settings, self._cancelled)
        try:
            pieces = list(generation.pieces(request.is_cancelled))
        except _Cancelled:
            return self._count_cancelled()
        except _Failed as error:
            return call.error(str(error))
        return pb_utils.InferenceResponse(call.answer(pieces, len(generation.words)))

    def _serve(self, call: _Call, sender: Any) -> None:
        try:
            self._generate(call, sender)
        except _Cancelled:
            sender.send(self._count_cancelled(), flags=_FINAL)
        except Exception as error:  # noqa: BLE001 - without an end, the caller would wait forever
            sender.send(call.error(str(error)), flags=_FINAL)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _generate(self, call: _Call, sender: Any) -> None:
        generation = _Generation(call.prompt, call.settings, self._cancelled)
        words = len(generation.words)

        def send(pieces: list[_Piece], *, last: bool) -> None:
            response = pb_utils.InferenceResponse(call.answer(pieces, words))
            sender.send(response, flags=_FINAL if last and call.final_with_last else 0)

        pieces = generation.pieces(sender.is_cancelled)
        if call.streams:
            for piece in pieces:
                if piece.tokens or call.final_with_last:
                    send([piece], last=piece.reason is not None)
        else:
            send(list(pieces), last=True)
        if not call.final_with_last:
            sender.send(flags=_FINAL)

    def _count_cancelled(self) -> Any:
        with self._lock:
            self._cancelled += 1
        failure = pb_utils.TritonError("Request was cancelled", pb_utils.TritonError.CANCELLED)
        return pb_utils.InferenceResponse(error=failure)
