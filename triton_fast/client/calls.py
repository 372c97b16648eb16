# Written by `make twins` from calls_async.py, which is the one to edit.
"""The calls of a `Client`: arguments in, prepared requests and call options out.

Imports neither grpc nor protobuf, and what only some calls need, when they are made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..channels.base import Compression
from ..inference.request import UNSET, Outputs, PreparedCalls, prepare
from ..inference.result import InferResult
from ..options.deadline import own_seconds
from ..options.headers import HeaderSource, checked_headers
from ..options.values import checked_flag
from .attempt import Out, checked_out

if TYPE_CHECKING:
    import numpy as np

    from ..management.health import Health
    from ..management.metadata import ModelConfig, ModelMetadata, ServerMetadata
    from ..protocol.operations import Query
    from ..shared_memory.regions import Regions
    from ..streaming.sequence import InferSequence
    from ..streaming.stream import Stream
    from ..text.generation import Generation
    from ..text.mappings import TextMapping
    from ..text.text_request import KnownTextModels
    from .endpoint import Endpoint
    from .model import Model

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """A client, but for its making and its streams, which `triton_fast.Client` adds."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._prepared = PreparedCalls(endpoint.codec)
        self._text_models: KnownTextModels = {}

    @property
    def url(self) -> str:
        """The server's address, as given."""
        return self._endpoint.url

    @property
    def shared_memory(self) -> Regions:
        """The shared memory regions that the server knows."""
        from ..shared_memory.regions import Regions  # noqa: PLC0415 - management only

        return Regions(self._ask)

    def empty(self, shape: int | Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        """Return an array in memory that is shared with the server, for inputs and ``out=``.

        Parameters
        ----------
        shape : int or sequence of int
            Of the array.
        dtype : dtype_like
            Of its elements, which are not initialized.

        Returns
        -------
        numpy.ndarray
            C-contiguous. Calls send it, and contiguous parts of it, without a copy. Its memory is
            leased until the last array on it dies. An ordinary array if the server takes no shared
            memory, or the client's ``shared_memory_limit`` is reached, unless that is required.

        Raises
        ------
        InvalidTensor
            If there are no such arrays of numbers.
        FailedPrecondition, ResourceExhausted, SharedMemoryError
            If shared memory is required, and not to be had.
        """
        return self._endpoint.empty(shape, dtype)

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        outputs: Outputs | None = None,
        model_version: str = "",
        request_id: str = "",
        parameters: Mapping[str, Any] | None = None,
        priority: int = 0,
        queue_timeout: float | None = None,
        timeout: float | None = None,
        headers: HeaderSource | None = None,
        compression: Compression | None = UNSET,
        out: Out | None = None,
        split: bool = False,
    ) -> InferResult:
        """Run a model and wait for its answer.

        Parameters
        ----------
        model : str
            Its name.
        inputs : mapping of str to array_like
            By the model's names. numpy arrays; anything with the buffer protocol, or DLPack on the
            CPU (torch tensors); lists of str or bytes, nested for more dimensions, for BYTES; or a
            `Tensor`, for raw memory, or for parameters beside one of these. Shapes have the batch
            dimension, if the model has one. C-contiguous, little-endian memory is sent as it lies;
            do not change it during the call.
        outputs : iterable of str or RequestedOutput, optional
            Which to return; all of the model's by default.
        model_version : str, optional
            The server chooses by default.
        request_id : str, optional
            Comes back as the result's ``id``, and stands in the server's log.
        parameters : mapping of str to bool, int, float or str, optional
            For the model.
        priority : int, default 0
            1 is the highest; 0 leaves it to the model. For models that batch dynamically.
        queue_timeout : float, seconds, optional
            How long the request may wait in the server's queue. ``timeout`` is the one that ends
            the call.
        timeout : float, seconds, optional
            When to give up, everywhere: on connecting, sending, waiting, receiving. The client's
            by default; infinity for no limit.
        headers : mapping or iterable of pairs, optional
            To send with this call, beside the client's.
        compression : {"gzip", "deflate"} or None, optional
            Of this request. The client's by default.
        out : mapping of str to numpy.ndarray, optional
            Arrays to write outputs to, which must have their dtype and shape, or torch tensors on
            the CPU. C-contiguous ones are received into without another copy. Their contents are
            undefined if the call fails.
        split : bool, default False
            Cut a batch that is larger than the model takes along its first axis, and join the
            answers in place. Several pieces are on their way at a time. Inputs mean what they mean
            otherwise; and one may be a list of samples, arrays without the batch dimension. If a
            piece fails, its number is in the error, which is raised when no piece is running any
            more.

        Returns
        -------
        InferResult
            The outputs, by name.

        Raises
        ------
        InvalidTensor
            If an input cannot be sent, or is not what the model takes as far as that is known; or
            if ``out`` cannot take the answer.
        InvalidOption
            If another argument is wrong.
        ServerError
            The subclass of the server's status: `NotFound`, `InvalidArgument`, `Unavailable`,
            `DeadlineExceeded`, ….
        WireError
            If the answer makes no sense.
        ClosedError
            If the client is closed, before or during the call.

        Notes
        -----
        Any number of threads may call it at a time.
        """
        prepared = self._prepared.get(
            model, model_version, outputs, parameters, priority, queue_timeout
        )
        options = self._endpoint.options(prepared.call, timeout, headers, compression)
        if out is not None:
            out = checked_out(out)
        if split is not False and checked_flag(split, "split"):
            from .split import infer_split  # noqa: PLC0415 - imported on use

            return infer_split(self._endpoint, prepared, inputs, request_id, options, out)
        return self._endpoint.infer(prepared, inputs, request_id, options, out)

    def open_stream(
        self,
        *,
        timeout: float | None = None,
        headers: HeaderSource | None = None,
        buffer_size: int = 64 << 20,
    ) -> Stream:
        """Return a stream that many requests share.

        Parameters
        ----------
        timeout : float, seconds, optional
            When it must be over. The client's by default; infinity for no limit.
        headers : mapping or iterable of pairs, optional
            To send with it, beside the client's.
        buffer_size : int, bytes, default 64 MiB
            How much of answers may wait for those who read them before reading stops.

        Returns
        -------
        Stream
            Nothing is sent before its first request.

        Raises
        ------
        InvalidOption, ClosedError
            As in `infer`.
        """
        return self._open_stream("ModelStreamInfer", timeout, headers, buffer_size)

    def _open_stream(
        self, call: str, timeout: float | None, headers: HeaderSource | None, buffer_size: int
    ) -> Stream:
        """Return a stream for one call or for many, which is told by the name of the call."""
        raise NotImplementedError

    def stream(self, *args: Any, **kwargs: Any) -> Any:
        """Run a model that may give many answers, and iterate over them."""
        raise NotImplementedError

    def generate(
        self,
        model: str,
        prompt: str,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        options: Mapping[str, Any] | None = None,
        mapping: TextMapping | None = None,
        model_version: str = "",
        request_id: str = "",
        parameters: Mapping[str, Any] | None = None,
        priority: int = 0,
        queue_timeout: float | None = None,
        timeout: float | None = None,
        headers: HeaderSource | None = None,
    ) -> Generation:
        """Have a model generate text, and iterate over the events as they come.

        Parameters
        ----------
        model : str
            Its name.
        prompt : str
            What to continue or answer, in the form that the model takes: no template is applied.
        max_tokens : int, optional
            How long the text may become. This and what follows is the model's by default.
        temperature, top_p : float, optional
            How the next token is drawn.
        top_k : int, optional
            Among how many; what -1 and 0 mean is the model's.
        seed : int, optional
            Of the random numbers.
        stop : str or iterable of str, optional
            Texts at which to stop.
        options : mapping of str to bool, int, float, str or list, optional
            Further ones, as the model calls them (``"repetition_penalty"``).
        mapping : TextMapping, optional
            How the model calls its tensors: `VLLM`, `TENSORRT_LLM`, `PLAIN_TEXT` or one of your
            own. Left out, what the model says of its tensors decides.
        model_version, request_id, parameters, priority, queue_timeout, headers
            As in `infer`.
        timeout : float, seconds, optional
            When the text must be complete, from the first event that is asked for. The client's by
            default; infinity for no limit.

        Returns
        -------
        Generation
            An iterator of one `Started`, any number of `Token`, and one `Finished`. A
            model that is not decoupled gives one `Token`. Closing it early, or leaving its
            ``with`` block, cancels the request.

        Raises
        ------
        InvalidOption
            If an argument makes no sense; when the first event is asked for, if the model cannot be
            given an option, or it cannot be told which of its tensors are what.
        ServerError, WireError, InvalidTensor, ClosedError
            As in `stream`, when an event is asked for.

        Notes
        -----
        The first call for a model asks the server what it is like.

        Examples
        --------
        >>> for event in client.generate("llama", "Once", max_tokens=64):  # doctest: +SKIP
        ...     if isinstance(event, Token):
        ...         print(event.text, end="", flush=True)
        """
        from ..text.generation import Generation  # noqa: PLC0415 - imported on use
        from ..text.text_request import TextRequest  # noqa: PLC0415

        request = TextRequest(
            model,
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop,
            options=options,
            mapping=mapping,
            model_version=model_version,
            request_id=request_id,
            parameters=parameters,
            priority=priority,
            queue_timeout=queue_timeout,
            timeout=timeout,
            headers=headers,
        )
        return Generation(self, self._text_models, request)

    def sequence(
        self,
        model: str,
        *,
        sequence_id: int | str | None = None,
        model_version: str = "",
        outputs: Outputs | None = None,
        parameters: Mapping[str, Any] | None = None,
        priority: int = 0,
        queue_timeout: float | None = None,
        timeout: float | None = None,
        headers: HeaderSource | None = None,
        resume: bool = False,
        stream: bool = True,
    ) -> InferSequence:
        """Return a sequence of requests to a model that keeps state between them.

        Parameters
        ----------
        model, model_version, outputs, parameters, priority, queue_timeout
            Of every request; as in `infer`.
        sequence_id : int or str, optional
            What the server knows it by; a random number by default, which nobody else has. Triton
            takes those that the model's configuration says, numbers or strings: to a model that
            takes strings give one, ``str(uuid.uuid4())``, say.
        timeout : float, seconds, optional
            For every request that does not say otherwise. The client's by default; infinity for
            no limit.
        headers : mapping or iterable of pairs, optional
            To send with the calls, beside the client's.
        resume : bool, default False
            Whether to go on with the sequence that the server knows by this ``sequence_id``, which
            was begun by another object, or in another process, and not ended: none of the requests
            starts it. It is ended as any other, if a request was made here; to leave it to somebody
            else, do not close it.
        stream : bool, default True
            Whether the requests share one call, which goes to one server whatever lies in between.
            Otherwise each is a call, which a load balancer may send anywhere.

        Returns
        -------
        InferSequence
            A context manager. Nothing is sent before its first request.

        Raises
        ------
        InvalidOption
            If an argument is wrong.
        ClosedError
            If the client is closed, here or when a request is made.

        Examples
        --------
        >>> with client.sequence("accumulator") as sequence:  # doctest: +SKIP
        ...     for chunk in chunks:
        ...         result = sequence.infer({"INPUT": chunk})
        ...         total = result["OUTPUT"]
        """
        from ..streaming.sequence import InferSequence  # noqa: PLC0415 - imported on use
        from ..streaming.sequence_requests import SequenceRequests  # noqa: PLC0415

        requests = SequenceRequests(
            self._endpoint.codec,
            model,
            model_version,
            outputs,
            parameters,
            priority,
            queue_timeout,
            sequence_id,
            resume=checked_flag(resume, "resume"),
            streamed=checked_flag(stream, "stream"),
        )
        limit = own_seconds(timeout, "timeout")
        sent = checked_headers(headers)
        shared = self.open_stream(timeout=math.inf, headers=sent) if stream else None
        return InferSequence(self._endpoint, requests, shared, limit, sent)

    def model(
        self,
        name: str,
        version: str = "",
        *,
        outputs: Outputs | None = None,
        parameters: Mapping[str, Any] | None = None,
        priority: int = 0,
        queue_timeout: float | None = None,
    ) -> Model:
        """Return a callable for one model, with everything that stays the same encoded once.

        Parameters
        ----------
        name, version : str
            Which model.
        outputs, parameters, priority, queue_timeout
            Of every call; see `infer`.

        Returns
        -------
        Model
            Asks the server for the model's signature at its first call, and holds every call
            against it before anything is sent.
        """
        from .model import Model  # noqa: PLC0415 - imported on use

        prepared = prepare(
            self._endpoint.codec, name, version, outputs, parameters, priority, queue_timeout
        )
        return Model(self._endpoint, prepared)

    def health(self, *, timeout: float | None = 5.0, headers: HeaderSource | None = None) -> Health:
        """Return how the server and its models are, as a value.

        Parameters
        ----------
        timeout : float, seconds, default 5
            For everything that is asked, whatever the client's own is: a server that hangs is
            unhealthy, and not waited for. None for the client's own, infinity for no limit.
        headers : mapping or iterable of pairs, optional
            To send along.

        Returns
        -------
        Health
            Healthy, degraded (it answers, but it or a model is not ready), or unhealthy (not
            reached, not in time, or not live), and what was seen.

        Raises
        ------
        InvalidOption, ClosedError
            As in `infer`. No error of the server's or the network's is raised.

        Source
        ------
        inference.proto, ServerLive, ServerReady, RepositoryIndex.
        """
        from ..management.health_check import check_health  # noqa: PLC0415 - management only

        return check_health(self._endpoint, timeout, headers)

    def is_live(self, *, timeout: float | None = None, headers: HeaderSource | None = None) -> bool:
        """Return whether the server is up.

        Parameters
        ----------
        timeout : float, seconds, optional
            The client's by default; infinity for no limit.
        headers : mapping or iterable of pairs, optional
            To send along.

        Returns
        -------
        bool
            False also if no server is reached, or none answers in time.

        Raises
        ------
        ServerError
            If the server refuses to tell (restricted access, say).

        Source
        ------
        inference.proto, ServerLive.
        """
        from ..management.server import server_live  # noqa: PLC0415 - management only

        return self._ask(server_live(), timeout, headers)

    def is_ready(
        self, *, timeout: float | None = None, headers: HeaderSource | None = None
    ) -> bool:
        """Return whether the server takes requests; see `is_live`."""
        from ..management.server import server_ready  # noqa: PLC0415 - management only

        return self._ask(server_ready(), timeout, headers)

    def is_model_ready(
        self,
        name: str,
        version: str = "",
        *,
        timeout: float | None = None,
        headers: HeaderSource | None = None,
    ) -> bool:
        """Return whether a model takes requests; see `is_live`. False also if there is no such."""
        from ..management.server import model_ready  # noqa: PLC0415 - management only

        return self._ask(model_ready(name, version), timeout, headers)

    def server_metadata(
        self, *, timeout: float | None = None, headers: HeaderSource | None = None
    ) -> ServerMetadata:
        """Return the server's name, version and extensions.

        Parameters
        ----------
        timeout, headers
            As in `is_live`.

        Raises
        ------
        ServerError, WireError, ClosedError
            As in `infer`.

        Source
        ------
        inference.proto, ServerMetadata.
        """
        from ..management.server import server_metadata  # noqa: PLC0415 - management only

        return self._ask(server_metadata(), timeout, headers)

    def model_metadata(
        self,
        name: str,
        version: str = "",
        *,
        timeout: float | None = None,
        headers: HeaderSource | None = None,
    ) -> ModelMetadata:
        """Return what a model takes and gives. From then on `infer` checks calls against it.

        Parameters
        ----------
        name, version : str
            Which model; the server chooses the version by default.
        timeout, headers
            As in `is_live`.

        Raises
        ------
        NotFound
            If the server has no such model.
        ServerError, WireError, ClosedError
            As in `infer`.

        Source
        ------
        inference.proto, ModelMetadata.
        """
        from ..management.server import model_metadata  # noqa: PLC0415 - management only

        metadata = self._ask(model_metadata(name, version), timeout, headers)
        self._endpoint.signatures.remember(metadata, name, version)
        return metadata

    def model_config(
        self,
        name: str,
        version: str = "",
        *,
        timeout: float | None = None,
        headers: HeaderSource | None = None,
    ) -> ModelConfig:
        """Return how the server is set up to run a model.

        Parameters
        ----------
        name, version, timeout, headers
            As in `model_metadata`.

        Raises
        ------
        NotFound
            If the server has no such model.
        Unimplemented
            If it is a KServe server other than Triton.
        ServerError, WireError, ClosedError
            As in `infer`.

        Source
        ------
        inference.proto, ModelConfig; Triton's "model configuration extension".
        """
        from ..management.server import model_config  # noqa: PLC0415 - management only

        return self._ask(model_config(name, version), timeout, headers)

    def _ask(
        self,
        query: Query[T],
        timeout: float | None = None,
        headers: HeaderSource | None = None,
    ) -> T:
        self._endpoint.load_messages()
        options = self._endpoint.options(query.call, timeout, headers)
        return self._endpoint.ask(query, options)

    def close(self) -> None:
        """Give the connections back. Calls that are running end with `ClosedError`. Idempotent."""
        self._endpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.url!r}{', closed' if self._endpoint.closed else ''})"

    def __getstate__(self) -> dict[str, Any]:
        # What is left out is made of the endpoint, and made again. A subclass may have more.
        made = ("_prepared", "_text_models")
        return {name: value for name, value in vars(self).items() if name not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Client.__init__(self, state["_endpoint"])
        vars(self).update(state)
