"""Fails unless the triton_fast that is installed has its native channel, and can use it."""

from __future__ import annotations

import triton_fast
from triton_fast import Client
from triton_fast.channels.native.channel import why_not_native

if obstacle := why_not_native():
    raise SystemExit(f"{triton_fast.__file__} has no native channel: {obstacle}")
# Nobody listens there: the call goes through all of the channel but an answer.
with Client("127.0.0.1:9", channel="native", timeout=5) as client:
    if client.is_live():
        raise SystemExit("127.0.0.1:9 must have no server, got an answer from one")
print(f"triton_fast {triton_fast.__version__} has its native channel")
