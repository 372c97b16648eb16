"""Several servers behind one address, and one that was started anew: servers in memory.

tests/peers/test_two_tritons.py has real ones, behind proxies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
from support.blocking_face import BlockingFace
from support.memory_channel import AsyncMemoryChannel, MemoryChannel, RegisterScript
from support.process import segments
from support.sharing import pool
from support.waiting import until

from triton_fast import Client, FailedPrecondition, NotFound, Tensor
from triton_fast.channels.base import CallOptions
from triton_fast.client import client as client_module
from triton_fast.client import client_async as client_async_module
from triton_fast.protocol.messages import message_class
from triton_fast.shared_memory import given_up
from triton_fast.shared_memory import pool as pools
from triton_fast.shared_memory.pool import Slot, SlotPool, WaitPolicy
from triton_fast.shared_memory.registration import Registry

OPTIONS = CallOptions(call="ModelInfer('m')")
LARGE = np.zeros(64 << 10, np.uint8)
REGION = "shared_memory_region"


class Triton(RegisterScript):
    """A server that runs a model, if it knows the regions of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inferences = 0  # those that were asked for
        self.through_regions = 0  # those of them that it has run, with inputs in shared memory
        self.kept: list[NotFound] | None = None  # the errors that it has given, if they are kept

    def __call__(self, method: str, request: Any) -> Any:
        if method != "ModelInfer":
            return super().__call__(method, request)
        self.inferences += 1
        names = [
            i.parameters[REGION].string_param for i in request.inputs if REGION in i.parameters
        ]
        for name in names:
            if name not in self.regions:
                error = NotFound(f"Unable to find shared memory region: '{name}'")
                if self.kept is not None:
                    self.kept.append(error)
                return error
        self.through_regions += bool(names)
        answer = message_class("ModelInferResponse")(model_name="m", raw_output_contents=[b"done"])
        answer.outputs.add(name="y", datatype="INT32", shape=[1])
        return answer


def lease(slots: SlotPool, byte_size: int = 5) -> list[Slot]:
    found = slots.lease([byte_size], OPTIONS, WaitPolicy.WAIT, required=True)
    assert found is not None
    return found


class Address:
    """Servers behind one address.

    Parameters
    ----------
    count : int
        How many.
    per_call : bool
        Whether each call goes to the next one; it is each connection else.
    """

    def __init__(self, count: int, *, per_call: bool = True) -> None:
        self.servers = [Triton() for _ in range(count)]
        self.channels: list[MemoryChannel] = []
        self.per_call = per_call
        self._next = 0

    def next(self) -> Triton:
        self._next += 1
        return self.servers[self._next % len(self.servers)]

    def answer(self, method: str, request: Any) -> Any:
        return self.next()(method, request)

    def new_channel(self) -> MemoryChannel:
        server = self.next()
        self.channels.append(MemoryChannel(self.answer if self.per_call else server))
        return self.channels[-1]

    @contextlib.contextmanager
    def ask_afresh(self) -> Iterator[Any]:
        yield self.new_channel().ask

    def new_pool(self, ask: Any) -> SlotPool:
        return SlotPool(Registry(ask, self.ask_afresh), 64 << 20, lambda: OPTIONS)

    @property
    def regions(self) -> list[set[str]]:
        return [set(server.regions) for server in self.servers]

    @property
    def inferences(self) -> int:
        return sum(server.inferences for server in self.servers)


@pytest.fixture(autouse=True)
def _small_regions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pools, "_FIRST_REGION", 128 << 10)
    yield
    assert not segments()


@pytest.fixture(params=["blocking", "coroutines"])
def open_at(request: Any) -> Iterator[Callable[..., Any]]:
    with contextlib.ExitStack() as opened:

        def open_one(address: Address, **settings: Any) -> Any:
            new = address.new_channel
            with (
                mock.patch.object(client_module, "channel_factory", return_value=new),
                mock.patch.multiple(
                    client_async_module,
                    async_channel_factory=mock.Mock(return_value=lambda: AsyncMemoryChannel(new())),
                    channel_factory=mock.Mock(return_value=new),
                ),
            ):
                face = Client if request.param == "blocking" else BlockingFace
                return opened.enter_context(face("localhost:1", timeout=60, **settings))

        yield open_one


def infer(client: Any, *more: Any) -> None:
    inputs = {f"x{number}": value for number, value in enumerate((LARGE, *more))}
    assert client.infer("m", inputs)["y"].tobytes() == b"done"


def shared(client: Any) -> SlotPool:
    found: SlotPool = pool(getattr(client, "_client", client))
    return found


# --- Several --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
def test_each_call_to_another_server(open_at: Any, caplog: Any, count: int) -> None:
    address = Address(count)
    client = open_at(address)
    for _ in range(5):
        infer(client)
        assert address.regions == [set()] * count
    assert address.inferences == 5, "it is known before the first call"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "localhost:1: tensors go over the wire, for several servers" in record.getMessage()


def test_two_that_cannot_be_told_apart_at_first(
    open_at: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call that finds out is made again, over the wire."""
    monkeypatch.setattr(pools, "_LOOKS_AT_NEW", 0)
    address = Address(2)
    client = open_at(address)
    for _ in range(5):
        infer(client)
    assert address.regions == [set(), set()]
    assert address.inferences <= 6
    assert len(caplog.records) == 1


def test_submitted_calls(caplog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_LOOKS_AT_NEW", 0)
    address = Address(2)
    with mock.patch.object(client_module, "channel_factory", return_value=address.new_channel):
        client = Client("localhost:1", timeout=60)
    with client:
        for _ in range(4):
            assert client.submit("m", {"x": LARGE}).result(60)["y"].tobytes() == b"done"
        until(lambda: infer(client) or address.regions == [set(), set()])
    assert len(caplog.records) == 1


@pytest.mark.parametrize("kept", [False, True])
def test_each_connection_to_another_server(open_at: Any, caplog: Any, kept: bool) -> None:
    """What one server has lost, and another has still, tells; whoever has tracebacks of calls."""
    address = Address(2, per_call=False)
    for server in address.servers:
        server.kept = [] if kept else None
    client = open_at(address)
    infer(client)
    calls = address.channels[0]
    one, other = address.servers if calls._script is address.servers[0] else address.servers[::-1]
    for server in (other, one, other, one):
        calls._script = server  # it has connected anew
        infer(client)
    assert len(caplog.records) == 1
    assert address.regions == [set(), set()]
    assert shared(client).several


def test_what_is_at_another_server_when_a_client_is_closed(caplog: Any) -> None:
    address = Address(2, per_call=False)
    channel = address.new_channel()
    pool = address.new_pool(channel.ask)
    lease(pool)
    channel._script = address.next()
    assert sum(map(len, address.regions)) == 1
    pool.close()
    assert address.regions == [set(), set()]


def test_where_shared_memory_is_required(open_at: Any) -> None:
    address = Address(2)
    client = open_at(address, shared_memory=True)
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="several servers answer at this address.*one"):
            infer(client)
    assert client.infer("m", {"x": LARGE[:10]})["y"].tobytes() == b"done"
    assert address.regions == [set(), set()]


class Call:
    """A call that has slots."""

    def __init__(self, slots: Any) -> None:
        self.slots = slots
        self.over = False


def test_regions_that_calls_are_on_are_kept_until_these_are_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(given_up, "_AGAIN_S", 0.0)
    address = Address(2, per_call=False)
    one, other = address.servers
    channel = MemoryChannel(one)
    pool = address.new_pool(channel.ask)
    slots = lease(pool)
    region = slots[0].region
    call = Call(slots)
    pool.calls.add(call)
    other.regions.update(one.regions)
    one.regions.clear()
    pool.forget([region])
    channel._script = other
    for _ in range(2):
        assert pool.unsettled
        assert pool.settle(OPTIONS, WaitPolicy.WORK, required=False)
        assert pool.several
        assert address.regions == [set(), {region}]
    call.over = True
    assert pool.settle(OPTIONS, WaitPolicy.WORK, required=False)
    assert address.regions == [set(), set()]
    assert pool.unsettled, "our own memory is to go with what is on it"
    del call, slots
    assert pool.settle(OPTIONS, WaitPolicy.WORK, required=False)
    assert not pool.unsettled
    assert not pool.is_used
    pool.close()


class All:
    """The names of all regions that there are."""

    def __contains__(self, name: object) -> bool:
        return True


def test_what_a_server_keeps_for_a_while(open_at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does while a call is on it. A later call has it let go of that."""
    monkeypatch.setattr(given_up, "_AGAIN_S", 0.0)
    address = Address(2)
    for server in address.servers:
        server.in_use = All()  # type: ignore[assignment]
    client = open_at(address)
    for _ in range(2):
        infer(client)
        assert sum(map(len, address.regions)) == 1
    for server in address.servers:
        server.in_use = set()
    infer(client)
    assert address.regions == [set(), set()]
    assert not shared(client).unsettled


@pytest.mark.parametrize("versions", [("2.51.0", "2.52.0"), ("2.51.0", "2.50.0")])
def test_no_server_is_told_what_would_kill_it(versions: tuple[str, str]) -> None:
    """Whichever gets the call: one of them might die of it."""
    address = Address(2)
    for server, version in zip(address.servers, versions, strict=True):
        server.version = version
    pool = address.new_pool(MemoryChannel(address.servers[0]).ask)
    given_up = lease(pool)
    pool.quarantine(given_up)
    pool._registry._ask = address.new_channel().ask
    pool.forget([given_up[0].region])
    pool.close()
    assert address.regions[1] == set()
    assert address.regions[0] == ({given_up[0].region} if "2.50.0" in versions else set())


def test_what_it_takes_leaves_time_for_the_call(open_at: Any) -> None:
    address = Address(2)
    client = open_at(address)
    infer(client)
    asked = [
        (method, options.deadline_ns)
        for channel in address.channels
        for (method, _), options in zip(channel.asked, channel.options, strict=True)
    ]
    (deadline_ns,) = {deadline for method, deadline in asked if method == "ModelInfer"}
    looks = {deadline for method, deadline in asked if "Status" in method or "Unreg" in method}
    assert looks
    assert max(looks) < deadline_ns - 50 * 10**9


# --- One ------------------------------------------------------------------------------------------


def test_a_server_that_was_started_anew(open_at: Any, caplog: Any) -> None:
    """All regions are lost at once, and one call is made twice."""
    address = Address(1)
    client = open_at(address)
    (server,) = address.servers
    held = [lease(shared(client), 100_000 << number) for number in range(5)]
    infer(client)
    assert len(server.regions) > 4
    del held
    for regions in range(1, 3):
        server.regions.clear()
        server.inferences = server.through_regions = 0
        for _ in range(6):
            infer(client)
        assert (server.inferences, server.through_regions) == (7, 6), regions
        assert len(server.regions) == 1
    assert not caplog.records
    assert not shared(client).several


def test_a_server_that_knows_no_region_for_long(open_at: Any, caplog: Any) -> None:
    """The call goes over the wire in the end."""
    address = Address(1)
    (server,) = address.servers
    server.before = lambda method, request: server.regions.clear()
    client = open_at(address)
    infer(client)
    assert server.inferences == 5
    required = open_at(address, shared_memory=True)
    with pytest.raises(NotFound, match="Unable to find") as caught:
        infer(required)
    assert "several servers" in caught.value.__notes__[0]


def test_a_region_of_the_callers_own_that_is_unknown(open_at: Any) -> None:
    """It is the caller's to register it; ours are not in doubt for that."""
    address = Address(1)
    client = open_at(address)
    parameters = {REGION: "camera", "shared_memory_byte_size": 4}
    for others in ({}, {"x": LARGE}):
        address.servers[0].inferences = 0
        camera = Tensor(None, "FP32", [1], parameters=parameters)
        with pytest.raises(NotFound, match="'camera'") as caught:
            client.infer("m", {**others, "camera": camera})
        assert "was started anew since, or several servers" in caught.value.__notes__[0]
        assert address.inferences == 1
    assert not shared(client).unsettled
