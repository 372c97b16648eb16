"""Which channel a client gets. Imports each channel's module only when it is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from ..deadline import seconds
from ..errors import InvalidOption
from ..target import checked_target
from .base import Channel

if TYPE_CHECKING:
    from ..keepalive import Keepalive
    from ..tls import TLS

__all__ = ["ChannelFactory", "channel_factory"]

ChannelFactory: TypeAlias = Callable[[], Channel]


def channel_factory(
    target: str,
    choice: str,
    *,
    tls: TLS | None,
    keepalive: Keepalive | None,
    busy_poll: float,
    options: Mapping[str, Any] | None,
) -> ChannelFactory:
    """Return what makes a client's channel, in this process and in forked children.

    Parameters
    ----------
    target, choice, tls, keepalive, busy_poll, options
        ``url``, ``channel`` and the rest of `triton_fast.Client`.

    Raises
    ------
    InvalidOption
        If they do not go together.
    """
    if choice not in {"auto", "native", "grpc"}:
        raise InvalidOption(f"channel is 'auto', 'native' or 'grpc', not {choice!r}")
    busy = seconds(busy_poll, "busy_poll") or 0.0
    checked_target(target)
    obstacle = _obstacle(target, tls, options)
    if choice == "native" and obstacle is not None:
        raise InvalidOption(f"channel='native': {obstacle}; use channel='grpc'")
    if choice == "auto" and obstacle is None:
        from .native import why_not_native  # noqa: PLC0415

        obstacle = why_not_native()
    if choice == "grpc" or obstacle is not None:
        if busy:
            raise InvalidOption(
                "busy_poll is the native channel's; "
                + ("this client uses grpcio" if choice == "grpc" else str(obstacle))
            )
        from .grpc import GrpcChannel  # noqa: PLC0415

        return lambda: GrpcChannel(target, tls=tls, keepalive=keepalive, options=options)
    from .native import NativeChannel  # noqa: PLC0415

    return lambda: NativeChannel(target, keepalive=keepalive, busy_poll_ns=round(busy * 1e9))


def _obstacle(target: str, tls: TLS | None, options: Mapping[str, Any] | None) -> str | None:
    """Return why only grpcio can do what is asked; None if the native channel can."""
    from .native import native_address  # noqa: PLC0415

    if tls is not None:
        return "it does not speak TLS"
    if options:
        return "channel_options are grpcio's"
    if native_address(target) is None:
        return f"target {target!r} is not one address"
    return None
