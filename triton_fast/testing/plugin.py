"""pytest fixtures for a real Triton server: ``triton_server`` and ``triton_server_factory``.

pytest loads this in every project that has triton_fast installed: it must import next to nothing,
and it defines no options, no hooks and no markers.

On a machine without a Triton server the fixtures skip, and say how to get one. In CI (``CI`` is
set) they fail instead, because a level of tests that is silently skipped there proves nothing;
``TRITON_FAST_REQUIRE_SERVER=1`` asks for that anywhere, and ``=0`` for skipping in CI too.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from triton_fast.testing.server import TritonServer

__all__ = ["triton_server", "triton_server_factory"]

_FALSE = ("", "0", "false", "no", "off")


@pytest.fixture(scope="session")
def triton_server_factory() -> Iterator[Callable[..., TritonServer]]:
    """Start servers: takes what `triton_fast.testing.TritonServer` takes, returns a ready one.

    Each runs until the end of the session, or until it is stopped; it is a context manager too::

        def test_restart(triton_server_factory):
            with triton_server_factory(models=["add_sub"]) as server:
                ...
    """
    from triton_fast.testing.errors import TritonServerNotFound  # noqa: PLC0415 - see above
    from triton_fast.testing.server import TritonServer  # noqa: PLC0415 - see above

    with contextlib.ExitStack() as servers:

        def start(*args: Any, **kwargs: Any) -> TritonServer:
            server = TritonServer(*args, **kwargs)
            try:
                server.start()
            except TritonServerNotFound as error:
                if _required():
                    pytest.fail(f"a Triton server is required here: {error}", pytrace=False)
                pytest.skip(str(error))
            # Not stop(): the server takes seconds over that, and nothing is left of it either way.
            servers.callback(server.kill)
            return server

        yield start


@pytest.fixture(scope="session")
def triton_server(triton_server_factory: Callable[..., TritonServer]) -> TritonServer:
    """Serve the built-in test models that are served by default, `TEST_MODELS`, for the session.

    Tests that stop, kill or starve a server take one of their own from `triton_server_factory`.
    """
    return triton_server_factory()


def _required() -> bool:
    chosen = os.environ.get("TRITON_FAST_REQUIRE_SERVER")
    if chosen is None:
        chosen = os.environ.get("CI", "")
    return chosen.strip().lower() not in _FALSE
