"""What a server is asked about itself and its models, and what answers and errors amount to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from support.memory_channel import MemoryChannel

from triton_fast import errors
from triton_fast.channels.base import CallOptions
from triton_fast.management import server
from triton_fast.protocol.messages import message_class
from triton_fast.protocol.operations import Query
from triton_fast.shared_memory.registration import registration, removal

RESTRICTED = errors.Unavailable("This protocol is restricted, expecting header 'x'")
READINESS = (
    server.server_live,
    server.server_ready,
    lambda: server.model_ready("m", "2"),
)


def ask(query: Query[Any], answer: Any) -> Any:
    return MemoryChannel(lambda method, request: answer).ask(query)


def answer(query: Query[Any], **fields: Any) -> Any:
    return message_class(f"{query.method}Response")(**fields)


@pytest.mark.parametrize("question", READINESS)
@pytest.mark.parametrize("so", [True, False])
def test_readiness_is_what_the_server_says(question: Callable[[], Query[bool]], so: bool) -> None:
    query = question()
    field = "live" if query.method == "ServerLive" else "ready"
    assert ask(query, answer(query, **{field: so})) is so


@pytest.mark.parametrize("question", READINESS)
def test_readiness_without_an_answer(question: Callable[[], Query[bool]]) -> None:
    """Who is not reached is not ready; who refuses the question has been reached."""
    assert ask(question(), errors.Unavailable("connection refused")) is False
    assert ask(question(), errors.DeadlineExceeded("late")) is False
    for error in (RESTRICTED, errors.Internal("?"), errors.Unauthenticated("who?")):
        with pytest.raises(type(error)):
            ask(question(), error)


def test_a_model_that_is_not_there_is_not_ready() -> None:
    assert ask(server.model_ready("m", ""), errors.NotFound("unknown model")) is False
    with pytest.raises(errors.NotFound):
        ask(server.server_ready(), errors.NotFound("?"))
    with pytest.raises(errors.NotFound):
        ask(server.model_metadata("m", ""), errors.NotFound("unknown model"))


def test_what_is_asked_of_models() -> None:
    for question in (server.model_ready, server.model_metadata, server.model_config):
        query: Query[Any] = question("m", "2")
        channel = MemoryChannel(lambda method, request, query=query: answer(query))
        channel.ask(query)
        ((method, request),) = channel.asked
        assert (method, request.name, request.version) == (query.method, "m", "2")
        assert query.call == f"{method}('m')"
        for name, version in ((3, ""), ("m", 2)):
            with pytest.raises(errors.InvalidOption, match=r"must be a str, got \d"):
                question(name, version)


def test_metadata_is_read() -> None:
    query = server.server_metadata()
    assert ask(query, answer(query, name="triton", version="2.51.0")).name == "triton"
    configured = server.model_config("m", "")
    found = ask(configured, answer(configured, config={"name": "m", "max_batch_size": 4}))
    assert (found.name, found.max_batch_size) == ("m", 4)


def test_regions_have_names() -> None:
    """A server lets go of everybody's if none is named."""
    for query in (lambda: registration("", "/key", 1, 0), lambda: removal("")):
        with pytest.raises(errors.InvalidOption, match="region's name must be a str"):
            query()


def test_the_channel_in_memory_keeps_the_contract() -> None:
    channel = MemoryChannel(lambda method, request: message_class(f"{method}Response")())
    with pytest.raises(errors.DeadlineExceeded):
        channel.ask(server.server_metadata(), CallOptions(deadline_ns=0))
    assert channel.asked == []
    channel.close()
    with pytest.raises(errors.ClosedError):
        channel.ask(server.server_metadata())
