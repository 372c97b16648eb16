"""Which regions a pool of slots registers, keeps, wears out and gives up: a register in memory."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.memory_channel import MemoryChannel, RegisterScript
from support.process import segments
from support.waiting import until, within

from triton_fast.channels.base import CallOptions
from triton_fast.errors import (
    ClosedError,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from triton_fast.shared_memory import given_up
from triton_fast.shared_memory import pool as pools
from triton_fast.shared_memory.pool import Refused, Slot, SlotPool, WaitPolicy, WouldBlock
from triton_fast.shared_memory.registration import Registry

PAGE = 4096
FIRST = 1 << 20  # of the tests' pools
OPTIONS = CallOptions(call="ModelInfer('m')")


class Server(RegisterScript):
    """A register, and the pools that have it."""

    def __init__(self) -> None:
        super().__init__()
        self.channel = MemoryChannel(self)
        self.pools: list[SlotPool] = []

    def pool(self, limit: int = 64 * FIRST) -> SlotPool:
        self.pools.append(SlotPool(Registry(self.channel.ask), limit, lambda: OPTIONS))
        return self.pools[-1]

    @property
    def sizes(self) -> list[int]:
        return [region.byte_size for region in self.regions.values()]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(pools, "_FIRST_REGION", FIRST)
    server = Server()
    yield server
    server.in_use.clear()
    for pool in server.pools:
        pool.close()
    assert not segments()


def lease(
    pool: SlotPool,
    *sizes: int,
    patience: WaitPolicy = WaitPolicy.WAIT,
    required: bool = True,
    deadline_ns: int | None = None,
) -> list[Slot] | None:
    options = CallOptions(deadline_ns=deadline_ns, call=OPTIONS.call)
    return pool.lease(sizes, options, patience, required=required)


def slot(pool: SlotPool, size: int) -> Slot:
    found = lease(pool, size)
    assert found is not None
    return found[0]


def test_one_region_serves_many_and_its_file_is_gone(register: Server) -> None:
    seen: list[bool] = []

    def look(method: str, request: Any) -> None:
        if method == "SystemSharedMemoryRegister":
            seen.append(request.key[1:] in segments())

    register.before = look
    pool = register.pool()
    assert register.channel.asked == []  # nothing before it is needed
    one, two = lease(pool, 100, 3 * PAGE) or []
    three = slot(pool, 5)
    assert (one.byte_size, two.byte_size, three.byte_size) == (100, 3 * PAGE, 5)
    assert register.channel.methods[0] == "SystemSharedMemoryRegister"
    assert set(register.channel.methods[1:]) == {"SystemSharedMemoryStatus"}
    assert seen == [True]  # the server found it, and nobody does any more
    assert not segments()
    assert {one.region, two.region, three.region} == register.regions.keys()
    assert register.sizes == [FIRST]


def test_each_further_region_is_as_large_as_all_before_it(register: Server) -> None:
    pool = register.pool(limit=7 * FIRST)
    kept = [slot(pool, FIRST) for _ in range(4)]
    assert register.sizes == [FIRST, FIRST, 2 * FIRST]
    # No more than is left, and no less than is wanted.
    kept.append(slot(pool, PAGE))
    assert register.sizes[3:] == [3 * FIRST]
    with pytest.raises(DeadlineExceeded):
        lease(pool, 3 * FIRST, deadline_ns=0)
    del kept
    big = slot(pool, 3 * FIRST)
    assert big.region == list(register.regions)[3]


def test_what_is_too_much(register: Server) -> None:
    pool = register.pool(limit=2 * FIRST)
    with pytest.raises(ResourceExhausted, match=rf"{2 * FIRST + PAGE} bytes .*{2 * FIRST}") as told:
        lease(pool, 2 * FIRST, 1, required=False)
    assert told.value.call == OPTIONS.call
    assert register.channel.asked == []
    kept = slot(pool, 2 * FIRST)
    assert lease(pool, 1, required=False) is None
    with pytest.raises(DeadlineExceeded, match=rf"for 1 bytes: .*{2 * FIRST} bytes are leased, in"):
        lease(pool, 1, deadline_ns=within(0.01))
    with pytest.raises(WouldBlock) as blocked:
        lease(pool, 1, patience=WaitPolicy.WORK)
    assert isinstance(blocked.value.deadline_error, DeadlineExceeded)
    generation = blocked.value.generation
    del kept
    gc.collect()
    pool.wait(generation, within(30))  # it has come back since: no wait
    with pytest.raises(WouldBlock):
        lease(register.pool(), 1, patience=WaitPolicy.NONE)
    assert register.channel.methods.count("SystemSharedMemoryRegister") == 1


def test_who_needs_a_slot_waits_for_one(register: Server) -> None:
    pool = register.pool(limit=FIRST)
    kept = [slot(pool, FIRST)]
    found: list[Slot] = []
    waiting = threading.Thread(target=lambda: found.append(slot(pool, PAGE)))
    waiting.start()
    time.sleep(0.02)
    assert not found
    kept.clear()
    waiting.join(30)
    assert len(found) == 1


def test_one_thread_registers_and_others_use_it(register: Server) -> None:
    """Those that need it wait for that; the others go on without."""
    pool = register.pool()
    go_on = threading.Event()
    register.before = lambda method, request: go_on.wait(30)
    found: list[Slot] = []
    threads = [threading.Thread(target=lambda: found.append(slot(pool, PAGE))) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: register.channel.asked)
    assert lease(pool, PAGE, required=False) is None
    with pytest.raises(DeadlineExceeded):
        lease(pool, PAGE, deadline_ns=within(0.01))
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert len({(one.region, one.offset) for one in found}) == 4
    assert len(register.regions) == 1


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Unimplemented("off"), "--allow-client-shm=true"),
        (Internal("Unable to open"), "--ipc=host"),
        (InvalidArgument("Unable to open"), "--ipc=host"),
        (PermissionDenied("no"), "--ipc=host"),
        (Unavailable("gone"), None),
    ],
)
def test_a_server_that_does_not_take_it(
    register: Server, error: BaseException, says: str | None
) -> None:
    pool = register.pool()
    register.refusal = error
    with pytest.raises(type(error) if says is None else Refused, match=says):
        slot(pool, 1)
    assert not segments()
    register.refusal = None
    assert slot(pool, 1)


def test_a_region_that_is_registered_when_nobody_waits_any_more(register: Server) -> None:
    """It counts for nothing, and the server is told to let go of it when it has it."""
    pool = register.pool(limit=FIRST)
    register.refusal = DeadlineExceeded("late")
    with pytest.raises(DeadlineExceeded):
        slot(pool, FIRST)
    register.refusal = None
    (asked,) = [request for method, request in register.channel.asked if "Register" in method]
    worn = slot(pool, FIRST)
    register.regions[asked.name] = asked
    pool.quarantine([worn])
    del worn
    assert slot(pool, FIRST)
    assert asked.name not in register.regions


@pytest.mark.parametrize("closed", [True, False])
def test_one_that_never_is(register: Server, monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    pool = register.pool(limit=FIRST)
    register.refusal = DeadlineExceeded("late")
    with pytest.raises(DeadlineExceeded):
        slot(pool, FIRST)
    register.refusal = None
    if not closed:
        monkeypatch.setattr(given_up, "_LATE_S", 0)
        held = slot(pool, FIRST)
        assert len(pool._given_up._leaving) == 0
        del held
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 1.5
    assert not register.regions


def test_slots_in_quarantine_wear_a_region_out(register: Server) -> None:
    """From a quarter of it up: no more of it is leased, and it goes when nothing is on it."""
    pool = register.pool(limit=3 * FIRST)
    given_up = [slot(pool, FIRST // 4 - PAGE), slot(pool, PAGE)]
    worn = given_up[0].region
    pool.quarantine(given_up[:1])
    held = slot(pool, FIRST // 4)
    fresh = slot(pool, FIRST)  # a further region; the first is not worn yet
    assert slot(pool, PAGE).region == worn == held.region
    pool.quarantine(given_up[1:])
    full = slot(pool, FIRST)  # now it is
    assert len({worn, fresh.region, full.region}) == 3
    with pytest.raises(DeadlineExceeded, match=f"{FIRST // 4} bytes are not used any more"):
        lease(pool, PAGE, deadline_ns=within(0.01))
    assert worn in register.regions
    del held
    assert slot(pool, PAGE).region not in {worn, fresh.region, full.region}
    assert worn not in register.regions


def test_what_the_server_keeps_counts(register: Server) -> None:
    pool = register.pool(limit=FIRST)
    given_up = slot(pool, FIRST)
    register.in_use.add(given_up.region)
    pool.quarantine([given_up])
    del given_up
    with pytest.raises(DeadlineExceeded, match=f"{FIRST} bytes are of regions that the server has"):
        lease(pool, PAGE, deadline_ns=within(0.01))
    register.in_use.clear()
    assert slot(pool, PAGE).region in register.regions
    assert len(register.regions) == 1


class Call:
    """A call that the server may be at."""

    over = False

    def __init__(self, *slots: Slot) -> None:
        self.slots = slots


OLD = ["2.50.0", "2.28.0", "1.9", "2.5"]
LATER = ["2.51.0", "2.69.0dev", "3.0", "24.10", "a version of its own"]


@pytest.mark.parametrize("version", OLD + LATER)
def test_what_the_server_may_be_at_stays_where_that_would_kill_it(
    register: Server, version: str
) -> None:
    register.version = version
    pool = register.pool()
    fine, given_up, running = (slot(pool, size) for size in (FIRST, FIRST, 2 * FIRST))
    assert len({fine.region, given_up.region, running.region}) == 3
    pool.quarantine([given_up])
    call = Call(running)
    pool.calls.add(call)
    kept = {given_up.region, running.region} if version in OLD else set()
    began = time.monotonic()
    pool.close()
    assert set(register.regions) == kept
    assert time.monotonic() - began < 30
    del call


def test_a_worn_region_stays_too(register: Server) -> None:
    """What the server keeps counts, as ever."""
    register.version = "2.50.0"
    pool = register.pool(limit=FIRST)
    given_up = slot(pool, FIRST)
    pool.quarantine([given_up])
    region = given_up.region
    del given_up
    with pytest.raises(DeadlineExceeded, match=f"{FIRST} bytes are of regions that the server has"):
        lease(pool, PAGE, deadline_ns=within(0.01))
    assert set(register.regions) == {region}


def test_a_server_that_does_not_say_which_it_is(register: Server) -> None:
    pool = register.pool()
    given_up = slot(pool, PAGE)
    pool.quarantine([given_up])
    known, register.version = register.version, Unavailable("gone")
    pool.close()
    assert given_up.region in register.regions
    register.version = known


def test_a_region_that_the_server_has_lost(register: Server) -> None:
    """It was started anew: arrays on it stay, and nothing more is asked of it."""
    pool = register.pool()
    lost = slot(pool, PAGE)
    array = np.frombuffer(lost.lease, np.uint8)
    address = array.ctypes.data
    array[:] = 7
    register.regions.clear()
    assert pool.locate(address, 10) == lost._replace(byte_size=10, lease=None)
    pool.forget([lost.region])
    assert pool.locate(address, 10) is None
    new = slot(pool, PAGE)
    assert new.region != lost.region
    assert (array == 7).all()
    pool.close()
    left = [request.name for method, request in register.channel.asked if "Unreg" in method]
    assert left == [new.region]


def test_places_of_memory(register: Server) -> None:
    pool = register.pool()
    mine = slot(pool, PAGE)
    address = np.frombuffer(mine.lease, np.uint8).ctypes.data
    assert pool.locate(address + 100, 3996) == Slot(
        mine.region, mine.arena, mine.offset + 100, 3996, None
    )
    assert pool.locate(address + 100, 3997) is None
    assert pool.locate(np.zeros(1).ctypes.data, 8) is None


def test_closing(register: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is asked until it lets go, for a while; who has an array keeps it."""
    monkeypatch.setattr(given_up, "LETTING_GO_S", 30)
    unused = SlotPool(Registry(register.channel.ask), FIRST, options_of_closing)
    unused.close()
    assert register.channel.asked == []
    pool = register.pool()
    kept = slot(pool, 4)
    array = np.frombuffer(kept.lease, np.uint8)
    register.in_use.add(kept.region)
    asked: list[str] = []

    def answered(method: str, request: object) -> None:
        asked.append(method)
        if asked.count("SystemSharedMemoryUnregister") == 3:
            register.in_use.clear()

    register.before = answered
    pool.close()
    pool.close()
    assert asked.count("SystemSharedMemoryUnregister") == 3
    assert not register.regions
    array[:] = 1
    for use in (lambda: slot(pool, 1), lambda: slot(pool, 2 * FIRST)):
        with pytest.raises(ClosedError):
            use()


def options_of_closing() -> CallOptions:
    raise AssertionError("nothing is asked of the server")


def test_closing_has_until_its_deadline_where_no_call_is_left(
    register: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server lets go of what it has answered, when it gets to it."""
    monkeypatch.setattr(given_up, "LETTING_GO_S", 0.0)
    options = CallOptions(deadline_ns=time.monotonic_ns() + 60 * 10**9, call="close")
    pool = SlotPool(Registry(register.channel.ask), FIRST, lambda: options)
    register.in_use.add(slot(pool, 4).region)
    gc.collect()
    asked: list[str] = []

    def answered(method: str, request: object) -> None:
        asked.append(method)
        if asked.count("SystemSharedMemoryUnregister") == 20:
            register.in_use.clear()

    register.before = answered
    pool.close()
    assert not register.regions


def test_closing_ends_although_the_server_keeps_it(
    register: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(given_up, "LETTING_GO_S", 0.05)
    pool = register.pool()
    register.in_use.add(slot(pool, 4).region)
    gc.collect()
    began = time.monotonic()
    pool.close()
    assert 0.05 <= time.monotonic() - began < 30
    assert len(register.regions) == 1
