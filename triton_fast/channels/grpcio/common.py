"""What both channels that go through grpcio take from it: options, credentials, errors.

The only module that may import grpc, which the first call does. Owns no channel.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ...errors import (
    ClosedError,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidOption,
    MissingDependency,
    StatusCode,
    TritonFastError,
    server_error,
)
from ...options.keepalive import Keepalive
from ...options.target import checked_target
from ...options.tls import TLS, checked_tls
from ...options.values import checked_text, whole_number
from ..base import CallOptions

__all__ = [
    "SINGLE_READER",
    "ChannelOption",
    "ChannelOptions",
    "Endpoint",
    "algorithm",
    "import_grpc",
    "prepare_for_gevent",
]

ChannelOption: TypeAlias = int | str | bytes | None
"""Value of a grpcio channel option; None leaves the option as grpcio has it."""
ChannelOptions: TypeAlias = Mapping[str, ChannelOption] | Sequence[tuple[str, ChannelOption]]

SINGLE_READER = "SingleThreadedUnaryStream"
"""The option by which who reads a stream asks grpcio's core itself, and so waits there."""

# What every channel starts from; the user's options replace these one by one. Only the last is for
# speed. Of the twenty others that could be (HTTP/2 frame, window and write buffer sizes, BDP probe,
# TCP read chunks and receive buffer, TX zero-copy, retries, minimal stack) none gained more than
# two runs differ, at 64 B, 602,112 B, 4 MB and 16 MB (ratios 0.93 to 1.11 to none of them, without
# a pattern but for the BDP probe: switching it off cost 11 % at 602,112 B and 4 MB). Triton 2.51
# with the C++ identity backend, grpcio 1.85, two cores, 2026-11-21.
_DEFAULT_OPTIONS: Mapping[str, ChannelOption] = {
    "grpc.max_send_message_length": -1,
    "grpc.max_receive_message_length": -1,
    # Compressed answers are ours to decompress: grpcio's core takes them unasked, and any size of
    # them. What max_receive_message_length bounds are the bytes that came (1.85). See answers.py.
    "grpc.per_message_decompression": 0,
    # An error message travels as a header, and Triton's can hold a whole Python traceback. grpcio's
    # own limit of 8 KiB turns those into RESOURCE_EXHAUSTED and loses what the server said.
    "grpc.max_metadata_size": 4 << 20,
    # A connection of our own: channels with equal options would share one otherwise, so that a
    # large tensor of one client holds up another's small one, and a forked child would write to
    # its parent's.
    "grpc.use_local_subchannel_pool": 1,
    # A server that was down for a while is left alone by grpcio for up to two minutes; with these a
    # restarted one is back within a second (0.7 s instead of 4.0 s after 20 s down, 2026-11-21).
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 1000,
    # grpcio's name for it; to channels for coroutines it means nothing. Who reads a stream of
    # answers to one message gets them from grpcio's core, and not from another thread.
    SINGLE_READER: 1,
}

_REFUSED_HEADERS = "Invalid metadata"  # in grpcio's words
_NOT_REACHED = (
    "failed to connect to all addresses",
    "errors resolving",
    "DNS resolution failed",
    "empty address list",
)


class Endpoint:
    """One server, and how grpcio is to talk to it.

    Parameters
    ----------
    target, tls, options, keepalive, authority
        As in `triton_fast.channels.grpcio.channel.GrpcChannel`.

    Attributes
    ----------
    target : str
        As given.
    options : tuple of (str, int, str or bytes)
        Of grpcio's channel.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: TLS | bool | None = None,
        options: ChannelOptions | None = None,
        keepalive: Keepalive | None = None,
        authority: str | None = None,
    ) -> None:
        self.target = target
        self._address = checked_target(target)
        tls = checked_tls(tls)
        if tls is not None:
            tls.read()  # so that a missing file is found here, not by the first call
        self._tls = tls
        merged = dict(_DEFAULT_OPTIONS)
        if keepalive is not None:
            merged.update(_keepalive_options(keepalive))
        if tls is not None and tls.server_name is not None:
            merged["grpc.ssl_target_name_override"] = tls.server_name
            merged["grpc.default_authority"] = tls.server_name
        if authority is not None:
            merged["grpc.default_authority"] = authority
        merged.update(_checked_options(options))
        self.options = tuple((name, value) for name, value in merged.items() if value is not None)

    def connect(self, kind: Any) -> Any:
        """Return a new grpcio channel; ``kind`` is the module ``grpc`` or ``grpc.aio``."""
        if self._tls is None:
            return kind.insecure_channel(self._address, self.options)
        pem = self._tls.read()
        credentials = import_grpc().ssl_channel_credentials(
            pem.root_certificates, pem.private_key, pem.certificate_chain
        )
        return kind.secure_channel(self._address, credentials, self.options)

    def remaining(self, options: CallOptions) -> float | None:
        """Return the seconds to the deadline, or raise if there are none."""
        if options.deadline_ns is None:
            return None
        remaining = (options.deadline_ns - time.monotonic_ns()) * 1e-9
        if remaining <= 0:
            raise DeadlineExceeded(
                "the deadline passed before the request was sent",
                call=options.call,
                target=self.target,
            )
        return remaining

    def failure(
        self, error: Any, options: CallOptions, ended: str | None, *, cancelled: bool = False
    ) -> TritonFastError:
        """Return our error for one of grpcio's, or for a grpcio call that has failed.

        Parameters
        ----------
        error : grpc.RpcError, grpc.Future, grpc.aio.BaseError, ValueError or TypeError
            What came.
        options : CallOptions
            Of the call.
        ended : str or None
            Why no call can be made any more, if the channel was closed.
        cancelled : bool
            Whether it was the caller who cancelled this call.
        """
        if isinstance(error, BaseException):
            # Its traceback ends in grpcio's frames, and those hold the whole request.
            error.__traceback__ = None
        if isinstance(error, ValueError | TypeError) or not hasattr(error, "code"):
            return self._refusal(error, options, ended)
        status = error.code().value[0]
        if status == StatusCode.INTERNAL and error.details() == _REFUSED_HEADERS:
            return self._refusal(error, options, ended)
        if status == StatusCode.CANCELLED and ended is not None and not cancelled:
            return ClosedError(ended)
        message = error.details() or ""
        if status == StatusCode.DEADLINE_EXCEEDED and message == "Deadline Exceeded":
            message = "the deadline passed before the server answered"
        if status == StatusCode.UNAVAILABLE:
            message += self._advice(message)
        return server_error(status, message, call=options.call, target=self.target)

    def _refusal(self, error: Any, options: CallOptions, ended: str | None) -> TritonFastError:
        """Return the error for a call that grpcio would not begin."""
        if ended is not None:
            return ClosedError(ended)
        if isinstance(error, ValueError):
            # Older ones say which header they refuse with its value, and that may be a secret.
            error.args = (_REFUSED_HEADERS,)
        if not options.headers:
            return Internal(f"grpcio: {error}", call=options.call, target=self.target)
        names = ", ".join(sorted({str(header[0]) for header in options.headers}))
        return InvalidOption(
            f"{options.call or 'the call'} cannot be sent with these headers: {names}"
        )

    def _advice(self, message: str) -> str:
        """Say what to look at, where grpcio reached no server at all."""
        if not message.startswith(_NOT_REACHED):
            return ""
        if self._address.startswith("unix:"):
            where = "that the socket is its gRPC one"
        else:
            where = "that this is its gRPC port (8001 unless set otherwise; 8000 is HTTP)"
        if "andshake" in message or "ssl" in message.lower():
            where += ", and that server and client agree on TLS and certificates"
        elif "Socket closed" in message:
            where += ", and whether it expects TLS"
        proxies = [
            name for name in ("grpc_proxy", "https_proxy", "http_proxy") if os.environ.get(name)
        ]
        if proxies and not self._address.startswith("unix:"):
            where += f", and the proxy in {proxies[0]}, which grpcio goes through"
        return f" (check that the server runs, {where})"


def algorithm(grpc: Any, options: CallOptions) -> Any:
    """Return how grpcio is to compress a call's request; None for not at all."""
    if options.compression is None:
        return None
    return grpc.Compression.Gzip if options.compression == "gzip" else grpc.Compression.Deflate


def import_grpc() -> Any:
    """Return grpcio's package, or say how to get it."""
    try:
        import grpc  # noqa: PLC0415  the point of it: not before the first call
    except ImportError as error:
        why = "is not installed" if error.name == "grpc" else f"cannot be imported ({error})"
        raise MissingDependency(
            f"the gRPC channel needs grpcio, which {why}; install it with: pip install grpcio"
        ) from error
    return grpc


def prepare_for_gevent(options: CallOptions, target: str) -> None:
    """See to it that grpcio knows of gevent, and that this thread is the one where it waits.

    Parameters
    ----------
    options, target
        Of the call that is to be made, for errors.

    Raises
    ------
    FailedPrecondition
        If it was not told in time, before anything of its own is made, which may be when others
        have imported it; or in another thread.
    """
    if "grpc" not in sys.modules:
        import_grpc()
        from grpc.experimental.gevent import init_gevent  # noqa: PLC0415 - for nobody else

        init_gevent()
    why = _why_not_in_greenlet(import_grpc()._cython.cygrpc)
    if why is not None:
        raise FailedPrecondition(why, call=options.call, target=target)


def _why_not_in_greenlet(core: Any) -> str | None:
    from ..greenlets import is_own  # noqa: PLC0415 - for nobody else

    # Neither name is public: where there is none, what it says is not known.
    if not getattr(core, "g_gevent_activated", True):
        return (
            "gevent has patched this process, and grpcio, which was imported already, does not "
            "know: call grpc.experimental.gevent.init_gevent() right after monkey.patch_all(), or "
            "use channel='native'"
        )
    pool = getattr(core, "g_gevent_threadpool", None)
    if pool is not None and not is_own(pool.hub):
        return (
            "where gevent has patched a process, grpcio can be used in one thread: the one that "
            "it was first used in, or grpc.experimental.gevent.init_gevent() was called in; make "
            "the call there, or use channel='native'"
        )
    return None


def _checked_options(
    options: ChannelOptions | None,
) -> dict[str, ChannelOption]:
    """Return the user's channel options by name, or say which one grpcio would choke on."""
    checked: dict[str, ChannelOption] = {}
    if options is None:
        return checked
    given: Any = options
    if isinstance(given, str | bytes) or not isinstance(given, Mapping | Sequence):
        raise InvalidOption(
            "channel_options must be a mapping or (name, value) pairs, got "
            f"{type(options).__name__}"
        )
    for pair in given.items() if isinstance(given, Mapping) else given:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise InvalidOption(
                "channel_options must be a mapping or (name, value) pairs, and has "
                f"{type(pair).__name__} in it"
            )
        name, value = pair
        checked_text(name, "the name of a channel option")
        checked[name] = _checked_option(f"channel option {name}", value)
    return checked


def _checked_option(what: str, value: Any) -> ChannelOption:
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return checked_text(value, what, empty=True)
    if not hasattr(type(value), "__index__"):
        raise InvalidOption(f"{what} must be an int or a str, got {type(value).__name__}")
    # grpcio takes True for 1.
    number = int(value) if isinstance(value, bool) else value
    return whole_number(number, f"{what} must fit into 32 bits", -(2**31), 2**31 - 1)


def _keepalive_options(keepalive: Keepalive) -> dict[str, ChannelOption]:
    """Return the settings as grpcio channel options."""
    return {
        "grpc.keepalive_time_ms": round(keepalive.time * 1000),
        "grpc.keepalive_timeout_ms": round(keepalive.timeout * 1000),
        # What grpcio goes by in fact, and 60 s unless set (tried with 1.60, 1.73 and 1.85).
        "grpc.http2.ping_timeout_ms": round(keepalive.timeout * 1000),
        # As many as it takes: grpcio's own limit is two, and a call may take longer than that.
        "grpc.http2.max_pings_without_data": 0,
    }
