"""Which channel a client gets. Imports each channel's module only when it is chosen."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import InvalidOption
from ..options.deadline import seconds
from ..options.target import checked_authority, checked_target
from ..options.values import instead, one_of
from .base import AsyncChannel, Channel

if TYPE_CHECKING:
    from ..options.keepalive import Keepalive
    from ..options.tls import TLS

__all__ = ["AsyncChannelFactory", "ChannelFactory", "async_channel_factory", "channel_factory"]

# A processor is kept busy as long; who writes 50 means microseconds.
_LONGEST_POLL_S = 1.0

ChannelFactory: TypeAlias = Callable[[], Channel]
AsyncChannelFactory: TypeAlias = Callable[[], AsyncChannel]


def channel_factory(
    target: str,
    choice: str,
    *,
    tls: TLS | bool | None,
    keepalive: Keepalive | None,
    busy_poll: float,
    options: Mapping[str, Any] | None,
    authority: str | None = None,
) -> ChannelFactory:
    """Return what makes a client's channel, in forked children and, pickled, elsewhere too.

    Parameters
    ----------
    target, choice, tls, keepalive, busy_poll, options, authority
        ``url``, ``channel`` and the rest of `triton_fast.Client`.

    Raises
    ------
    InvalidOption
        If they do not go together.
    """
    _check_keepalive(keepalive)
    authority = checked_authority(authority)
    busy = seconds(busy_poll, "busy_poll") or 0.0
    if (not busy and busy_poll) or busy > _LONGEST_POLL_S:
        raise InvalidOption(
            f"busy_poll must be a short time in seconds, such as 50e-6, got {instead(busy_poll)}"
        )
    obstacle = _why_grpcio(target, choice, tls, options)
    if obstacle is not None:
        if busy:
            raise InvalidOption(f"busy_poll is the native channel's; {obstacle}")
        return partial(
            _open_grpc,
            target,
            tls=tls,
            keepalive=keepalive,
            options=options,
            authority=authority,
        )
    return partial(
        _open_native,
        target,
        keepalive=keepalive,
        authority=authority,
        busy_poll_ns=round(busy * 1e9),
    )


def async_channel_factory(
    target: str,
    choice: str,
    *,
    tls: TLS | bool | None,
    keepalive: Keepalive | None,
    options: Mapping[str, Any] | None,
    authority: str | None = None,
) -> AsyncChannelFactory:
    """Return what makes a coroutines' client's channel; see `channel_factory`.

    Parameters
    ----------
    target, choice, tls, keepalive, options, authority
        ``url``, ``channel`` and the rest of `triton_fast.AsyncClient`.

    Raises
    ------
    InvalidOption
        If they do not go together, or want grpcio where gevent has patched threads.
    """
    _check_keepalive(keepalive)
    authority = checked_authority(authority)
    obstacle = _why_grpcio(target, choice, tls, options)
    if obstacle is not None:
        if _greenlets_wait():
            raise InvalidOption(
                f"{obstacle}, and grpcio's asyncio does not run where gevent has patched threads, "
                "for it has one of its own; use a Client there, or channel='native'"
            )
        from .grpcio.channel_async import AsyncGrpcChannel  # noqa: PLC0415

        return partial(
            AsyncGrpcChannel,
            target,
            tls=tls,
            keepalive=keepalive,
            options=options,
            authority=authority,
        )
    from .native.channel_async import AsyncNativeChannel  # noqa: PLC0415

    return partial(AsyncNativeChannel, target, keepalive=keepalive, authority=authority)


def _open_native(target: str, **settings: Any) -> Channel:
    if _greenlets_wait():
        from .native.channel_gevent import GeventNativeChannel  # noqa: PLC0415

        return GeventNativeChannel(target, **settings)
    from .native.channel import NativeChannel  # noqa: PLC0415

    return NativeChannel(target, **settings)


def _open_grpc(target: str, **settings: Any) -> Channel:
    if _greenlets_wait():
        from .grpcio.channel_gevent import GeventGrpcChannel  # noqa: PLC0415

        return GeventGrpcChannel(target, **settings)
    from .grpcio.channel import GrpcChannel  # noqa: PLC0415

    return GrpcChannel(target, **settings)


def _greenlets_wait() -> bool:
    """Return whether those who wait are greenlets; asked whenever a channel is made."""
    if "gevent.monkey" not in sys.modules:
        return False
    from .greenlets import are_patched  # noqa: PLC0415 - for nobody else

    return are_patched()


def _why_grpcio(
    target: str, choice: str, tls: TLS | bool | None, options: Mapping[str, Any] | None
) -> str | None:
    """Return why a client uses grpcio; None if it uses the native channel."""
    one_of(choice, "channel", ("auto", "native", "grpc"))
    checked_target(target)
    obstacle = _obstacle(target, tls, options)
    if choice == "native":
        if obstacle is not None:
            raise InvalidOption(f"channel='native': {obstacle}; use channel='grpc'")
        return None
    if choice == "grpc":
        return "this client uses grpcio"
    if obstacle is None:
        from .native.channel import why_not_native  # noqa: PLC0415

        obstacle = why_not_native()
    return obstacle


def _obstacle(target: str, tls: TLS | bool | None, options: Mapping[str, Any] | None) -> str | None:
    """Return why only grpcio can do what is asked; None if the native channel can."""
    from .native.channel import native_address  # noqa: PLC0415

    if tls is not None and tls is not False:
        from ..options.tls import checked_tls  # noqa: PLC0415

        checked_tls(tls)
        return "it does not speak TLS"
    if options is not None and not (isinstance(options, Mapping | Sequence) and not options):
        return "channel_options are grpcio's"
    if native_address(target) is None:
        return f"target {target!r} is not one address"
    return None


def _check_keepalive(keepalive: Keepalive | None) -> None:
    if keepalive is None:
        return
    from ..options.keepalive import Keepalive  # noqa: PLC0415 - imported on use

    if not isinstance(keepalive, Keepalive):
        raise InvalidOption(
            f"keepalive must be a Keepalive, such as Keepalive(30), got {instead(keepalive)}"
        )
