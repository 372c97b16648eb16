"""The grpcio channel where gevent has patched sockets: a greenlet waits, and the others go on.

grpcio knows gevent, if it is told (`prepare_for_gevent`). Each wait in its core takes one of
the ten threads of gevent's hub then, and must be seen to its end, for what is waited for is freed
if the greenlet is ended meanwhile. So there is one such wait for a whole channel, by a greenlet of
grpcio's own that nobody else can end, and those who call wait for that one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...options.keepalive import Keepalive
from ...options.tls import TLS
from ..base import Call, CallOptions, Incoming, Outgoing, StreamIncoming
from .channel import GrpcChannel
from .common import SINGLE_READER, ChannelOptions, prepare_for_gevent

if TYPE_CHECKING:
    from .stream import GrpcStream

__all__ = ["GeventGrpcChannel"]


class GeventGrpcChannel(GrpcChannel):
    """A `GrpcChannel` for greenlets.

    Parameters
    ----------
    target, tls, options, keepalive, authority
        As in `GrpcChannel`.
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
        super().__init__(target, tls=tls, options=options, keepalive=keepalive, authority=authority)
        own = self._endpoint.options
        self._endpoint.options = tuple(option for option in own if option[0] != SINGLE_READER)

    def call(
        self, method: str, outgoing: Outgoing, incoming: Incoming, options: CallOptions
    ) -> None:
        """Make one unary call; see `triton_fast.channels.base.Channel.call`."""
        prepare_for_gevent(options, self.target)
        super().call(method, outgoing, incoming, options)

    def start(
        self,
        method: str,
        outgoing: Outgoing,
        incoming: Incoming,
        options: CallOptions,
        on_done: Callable[[BaseException | None], None],
    ) -> Call:
        """Start one unary call; see `triton_fast.channels.base.Channel.start`."""
        prepare_for_gevent(options, self.target)
        return super().start(method, outgoing, incoming, options, on_done)

    def open_stream(
        self, method: str, incoming: StreamIncoming[Any], options: CallOptions
    ) -> GrpcStream:
        """Return a call with many messages; see `triton_fast.channels.base.Channel.open_stream`."""
        prepare_for_gevent(options, self.target)
        return super().open_stream(method, incoming, options)

    def _call(self, method: str, outgoing: Outgoing, options: CallOptions) -> bytes:
        return self._call_as_future(method, outgoing, options, as_stream=False)
