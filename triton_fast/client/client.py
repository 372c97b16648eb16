"""Client, the blocking face: what people import.

Owns how one is made, and the calls that coroutines have otherwise or not at all; the others are in
calls.py. Imports neither grpc nor protobuf.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from ..channels.base import Compression
from ..channels.factory import channel_factory
from ..inference.request import UNSET, Outputs, prepare_streamed
from ..options.headers import HeaderSource
from ..shared_memory.sharing import shared_factory
from . import calls
from .attempt import Out, checked_out
from .call_settings import CallSettings
from .endpoint import Endpoint, HeaderHook

if TYPE_CHECKING:
    from concurrent.futures import Future

    from ..inference.result import InferResult
    from ..options.keepalive import Keepalive
    from ..options.tls import TLS
    from ..streaming.stream import ResponseStream, Stream

__all__ = ["Client"]


class Client(calls.Client):
    """A client of one Triton (or other KServe v2) server.

    Parameters
    ----------
    url : str
        The server's gRPC address: ``"host:port"``, ``"unix:/path"``, ``"dns:///host:port"``,
        ``"ipv4:address:port,address:port"``.
    timeout : float, seconds, optional
        For every call that has none of its own; no limit by default. A call's ``timeout=None`` is
        this one, and infinity lifts it.
    channel : {"auto", "native", "grpc"}, default "auto"
        How bytes travel: ``"native"`` over HTTP/2 sockets of our own, ``"grpc"`` through the grpcio
        package. ``"auto"`` is native for one address in plain text, and grpcio for TLS, several
        addresses, ``dns:`` targets and ``channel_options``, or if this build has no native channel.
    headers : mapping or iterable of pairs, optional
        Sent with every call. Those that gRPC or HTTP/2 set themselves are refused (``host``,
        ``content-type``, ``user-agent``, names that begin with ``grpc-``).
    header_hook : callable, optional
        Called with a description of each call (``"ModelInfer('resnet')"``), on the calling
        thread; returns headers to send with it, or None. For tokens that expire, and tracing.
    compression : {"gzip", "deflate"}, optional
        Of requests, unless a call says otherwise. The server may compress its answers then, too.
        One that does may not have more than 2 GiB, nor, where it has more than 256 MiB, more than a
        hundred times as many bytes as came: that is `ResourceExhausted`.
    tls : TLS or bool, optional
        Encrypt: True for the system's certificates, `TLS` for others, or for mutual TLS.
    keepalive : Keepalive, optional
        HTTP/2 pings on silent connections.
    busy_poll : float, seconds, default 0
        How long a call on the native channel asks for its answer before it sleeps. 50e-6 or so
        takes a third off a small call, and keeps a processor busy meanwhile.
    authority : str, optional
        The name that calls carry as ``:authority``, which HTTP calls ``Host``: what an ingress or a
        proxy in between routes by. The url's own by default, or that of `TLS`.
    channel_options : mapping, optional
        Options of grpcio's channel, by name, over the ones that we set.
    shared_memory : {"auto", True, False}, default "auto"
        Whether large tensors go through shared memory, inputs copied into it once (or not at all,
        see `empty`), outputs written there by the server. ``"auto"`` tries it with the first large
        tensor, and uses the wire if the server does not take it, because it runs elsewhere say,
        or is one of several that answer at this address; True raises an error then that says
        what to change.
    shared_memory_limit : int, bytes, default 1 GiB
        How much of it there may be. Results that are kept alive count. Where all is taken, calls
        use the wire, or, if shared memory is required, wait for some up to their deadline.

    Raises
    ------
    InvalidOption
        If an argument makes no sense.

    Notes
    -----
    Constructing one opens nothing: the first call connects. Thread-safe: any number of threads may
    use one client, and no lock is held while a call waits. After ``os.fork`` the child may go on
    using it, over a connection of its own. `close` gives the connection back; so does leaving the
    ``with`` block. Where gevent has patched sockets and threads, greenlets wait as threads do
    elsewhere. A client that is dropped without either has the server let go of its shared
    memory on a thread of its own, with a ResourceWarning.

    Can be pickled, as its address and settings: what comes out is another client that connects by
    itself. The values of ``headers``, and a private key given as bytes, are in the pickle as they
    are, with a UserWarning; of a ``header_hook`` the name is, and of a file its path.

    Examples
    --------
    >>> with Client("localhost:8001") as client:  # doctest: +SKIP
    ...     result = client.infer("densenet", {"data_0": image})
    ...     scores = result["fc6_1"]
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float | None = None,
        channel: Literal["auto", "native", "grpc"] = "auto",
        headers: HeaderSource | None = None,
        header_hook: HeaderHook | None = None,
        compression: Compression | None = None,
        tls: TLS | bool | None = None,
        keepalive: Keepalive | None = None,
        busy_poll: float = 0.0,
        authority: str | None = None,
        channel_options: Mapping[str, Any] | None = None,
        shared_memory: bool | Literal["auto"] = "auto",
        shared_memory_limit: int = 1 << 30,
    ) -> None:
        new_channel = channel_factory(
            url,
            channel,
            tls=tls,
            keepalive=keepalive,
            busy_poll=busy_poll,
            options=channel_options,
            authority=authority,
        )
        endpoint = Endpoint(
            url,
            new_channel,
            CallSettings(
                timeout=timeout,
                headers=headers,
                header_hook=header_hook,
                compression=compression,
            ),
            shared_factory(url, shared_memory, shared_memory_limit),
        )
        super().__init__(endpoint)

    @classmethod
    def from_env(
        cls,
        prefix: str = "TRITON_FAST_",
        environ: Mapping[str, str] | None = None,
        **overrides: Any,
    ) -> Self:
        """Return a client with the settings that environment variables have.

        Parameters
        ----------
        prefix : str, default "TRITON_FAST_"
            What the variables' names begin with; no others may begin with it.
        environ : mapping of str to str, optional
            The environment; this process's by default.
        **overrides
            Arguments of the class, which win over the variables.

        Raises
        ------
        InvalidOption
            If a variable has a value that makes no sense or a name that is none, or nothing says
            where the server is. It names the variable, and shows no secret.

        Notes
        -----
        The variables, after the prefix; those that are empty count as not set:

        ``URL``, ``TIMEOUT``, ``CHANNEL``, ``COMPRESSION``, ``BUSY_POLL``, ``AUTHORITY``
            As the arguments of that name.
        ``HEADERS``
            A JSON object, ``{"authorization": "Bearer …"}``; values of names that end in ``-bin``
            are in base64.
        ``TLS``
            1 or 0; 0 wins over those that follow.
        ``TLS_ROOT_CERTIFICATES``, ``TLS_PRIVATE_KEY``, ``TLS_CERTIFICATE_CHAIN``
            Paths of PEM files, or the PEM text itself.
        ``TLS_SERVER_NAME``
            As of `TLS`.
        ``KEEPALIVE_TIME``, ``KEEPALIVE_TIMEOUT``
            In seconds, as of `Keepalive`.
        ``SHARED_MEMORY``
            ``auto``, 1 or 0.
        ``SHARED_MEMORY_LIMIT``
            In bytes, or with K, M, G or T: ``512M`` is 512 MiB.
        """
        from ..options.environment import settings_from_environment  # noqa: PLC0415 - imported on use

        return cls(**settings_from_environment(prefix, environ, overrides))

    def submit(
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
    ) -> Future[InferResult]:
        """Run a model without waiting for its answer.

        Parameters
        ----------
        model, inputs, outputs, model_version, request_id, parameters, priority, queue_timeout,
        timeout, headers, compression, out
            As in `infer`. Leave the inputs' memory (and ``out``) alone until the future is done.

        Returns
        -------
        concurrent.futures.Future of InferResult
            Its ``cancel()`` ends the call, on the server too.

        Raises
        ------
        InvalidTensor, InvalidOption, ClosedError
            At once, as in `infer`; all other errors are the future's.
        """
        prepared = self._prepared.get(
            model, model_version, outputs, parameters, priority, queue_timeout
        )
        options = self._endpoint.options(prepared.call, timeout, headers, compression)
        return self._endpoint.submit(prepared, inputs, request_id, options, checked_out(out))

    def stream(
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
    ) -> ResponseStream:
        """Run a model that may give many answers (a decoupled one), and iterate over them.

        Parameters
        ----------
        model, inputs, outputs, model_version, request_id, parameters, priority, queue_timeout,
        headers
            As in `infer`. Inputs may be changed once this has returned.
        timeout : float, seconds, optional
            When the last answer must have come. The client's by default; infinity for no limit.

        Returns
        -------
        ResponseStream
            An iterator of `InferResult`. Closing it early, or leaving its ``with`` block, cancels
            the request on the server.

        Raises
        ------
        InvalidTensor, InvalidOption, ClosedError, ServerError
            As in `infer`, here or when an answer is read. The server gives no status with an
            error in a stream, so the subclass of `ServerError` is told from its text.

        Notes
        -----
        The request has a call and a connection to itself, and is read no faster than its answers
        are taken. Tensors go over the wire. Any model can be called so: one that is not decoupled
        gives one answer.

        Source
        ------
        inference.proto, ModelStreamInfer.
        """
        prepared = prepare_streamed(
            self._endpoint.codec, model, model_version, outputs, parameters, priority, queue_timeout
        )
        stream = self._open_stream(prepared.call, timeout, headers, 1 << 30)
        try:
            return stream._make(prepared, inputs, request_id, last=True)
        except BaseException:
            stream.close()
            raise

    def _open_stream(
        self, call: str, timeout: float | None, headers: HeaderSource | None, buffer_size: int
    ) -> Stream:
        return self._endpoint.open_stream(
            self._endpoint.options(call, timeout, headers), buffer_size
        )
