"""The server that an example talks to: yours, or a real Triton that it starts itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from triton_fast.testing import TritonServer, TritonServerError

__all__ = ["server_url"]


@contextmanager
def server_url(*models: str, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """Give the URL on the command line, or that of a Triton which runs as long as the block.

    Parameters
    ----------
    *models : str
        What a Triton of our own serves, of the test models in `triton_fast.testing`.
    env : mapping of str to str, optional
        Environment variables for it.
    """
    if len(sys.argv) > 1:
        yield sys.argv[1]
        return
    server = TritonServer(models=models, env=env)
    try:
        server.start()
    except TritonServerError as error:
        sys.exit(f"✗ {error}")
    with server:
        yield server.grpc_url
