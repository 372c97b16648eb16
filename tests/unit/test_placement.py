"""What of a call goes through shared memory, and what a failed call says of that: no server."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.memory_channel import MemoryChannel, RegisterScript
from support.process import segments

from triton_fast import errors
from triton_fast.channels.base import CallOptions
from triton_fast.inference.request import RequestedOutput, encode_request, prepare
from triton_fast.inference.result import InferResult
from triton_fast.inference.tensor import input_tensor
from triton_fast.protocol.grpc.codec import GRPC
from triton_fast.protocol.messages import decode
from triton_fast.shared_memory import placement as placements_module
from triton_fast.shared_memory import pool as pools
from triton_fast.shared_memory.placement import Placement, SharedMemory
from triton_fast.shared_memory.pool import Refused, SlotPool, WaitPolicy, WouldBlock
from triton_fast.shared_memory.registration import Registry

OPTIONS = CallOptions(call="ModelInfer('m')")
LARGE = 64 << 10  # bytes: from here up a tensor goes into a slot
MODEL = prepare(GRPC, "m", "", None, None, 0, None)


class Sharing:
    """A client's use of shared memory, with a register in memory."""

    def __init__(self, *, required: bool = False, limit: int = 64 << 20) -> None:
        self.register = RegisterScript()
        self.channel = MemoryChannel(self.register)
        self.pool = SlotPool(Registry(self.channel.ask), limit, lambda: OPTIONS)
        self.shared = SharedMemory(self.pool, required=required, url="host:1")

    def place(
        self,
        inputs: dict[str, Any],
        *,
        prepared: Any = MODEL,
        out: dict[str, Any] | None = None,
        patience: WaitPolicy = WaitPolicy.WAIT,
    ) -> Placement | None:
        tensors = [input_tensor(name, value) for name, value in inputs.items()]
        return self.shared.place(prepared, tensors, out, OPTIONS, patience)

    def placed(self, inputs: dict[str, Any], **more: Any) -> Placement:
        placement = self.place(inputs, **more)
        assert placement is not None
        return placement

    def learn(self, inputs: dict[str, Any], outputs: dict[str, Any], prepared: Any = MODEL) -> None:
        tensors = [input_tensor(name, value) for name, value in inputs.items()]
        self.shared.learn(prepared, tensors, InferResult("m", "1", "", {}, outputs))

    def leased(self) -> int:
        return self.pool._arenas.figures()["leased"]

    def empty(self, elements: int) -> Any:
        return self.shared.empty((elements,), np.dtype(np.float32), OPTIONS)


@pytest.fixture
def open_sharing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(pools, "_FIRST_REGION", 1 << 20)
    opened = []

    def open_one(**settings: Any) -> Sharing:
        opened.append(Sharing(**settings))
        return opened[-1]

    yield open_one
    for sharing in opened:
        sharing.pool.close()
    assert not segments()


@pytest.fixture
def sharing(open_sharing: Any) -> Sharing:
    return open_sharing()


def array(byte_size: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 255, byte_size, np.uint8)


def sent(placement: Placement) -> Any:
    """Return the request that a placement amounts to, as the server reads it."""
    request = encode_request(placement.header, "", placement.tensors)
    try:
        return decode("ModelInferRequest", request.render())
    finally:
        request.release()


def place_of(tensor: Any) -> tuple[str, int, int] | None:
    """Return region, offset and size of a tensor of a request; None if it is on the wire."""
    names = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")
    if names[0] not in tensor.parameters:
        return None
    region, offset, size = (tensor.parameters[name] for name in names)
    return region.string_param, offset.int64_param, size.int64_param


# --- Inputs ---------------------------------------------------------------------------------------


def test_what_is_small_goes_on_the_wire(sharing: Sharing) -> None:
    assert sharing.place({"a": array(LARGE - 1)}) is None
    assert sharing.place({}) is None
    assert sharing.channel.asked == []


def test_what_is_large_is_copied_into_a_slot(sharing: Sharing) -> None:
    data = array(LARGE)
    placement = sharing.placed({"a": data, "b": array(10), "c": [b"x" * LARGE]})
    request = sent(placement)
    slot, text = placement.slots
    assert [place_of(tensor) for tensor in request.inputs] == [
        (slot.region, slot.offset, LARGE),
        None,
        (text.region, text.offset, LARGE + 4),
    ]
    assert request.raw_input_contents == [array(10).tobytes()]
    assert bytes(memoryview(slot.lease)) == data.tobytes()
    assert bytes(memoryview(text.lease))[4:] == b"x" * LARGE
    del placement, slot, text
    assert sharing.leased() == 0


def test_what_lies_in_a_slot_stays_there(sharing: Sharing) -> None:
    """A part of it too; and it need not be copied to the wire where there is no room for others."""
    mine = sharing.empty(LARGE)
    leased = sharing.leased()
    placement = sharing.placed({"a": mine, "b": mine[5 : 5 + LARGE // 4]})
    assert sharing.leased() == leased
    whole, part = (place_of(tensor) for tensor in sent(placement).inputs)
    assert whole is not None
    assert part == (whole[0], whole[1] + 20, LARGE)

    def no_room(*_: Any, **__: Any) -> None:
        return None

    sharing.pool.lease = no_room  # type: ignore[method-assign]
    request = sent(sharing.placed({"a": mine, "b": array(LARGE)}))
    assert [place_of(tensor) is None for tensor in request.inputs] == [False, True]
    assert request.raw_input_contents == [array(LARGE).tobytes()]
    assert sharing.place({"b": array(LARGE)}) is None


def test_who_must_not_be_kept_copies_little(sharing: Sharing) -> None:
    with pytest.raises(WouldBlock):
        sharing.place({"a": array(LARGE)}, patience=WaitPolicy.NONE)  # there is no region
    assert sharing.channel.asked == []
    mine = sharing.empty(2 << 20)
    sharing.placed({"a": array(LARGE)})
    assert sharing.place({"a": array(LARGE)}, patience=WaitPolicy.NONE)
    assert sharing.place({"a": mine}, patience=WaitPolicy.NONE)  # is not copied
    with pytest.raises(WouldBlock):
        sharing.place({"a": array((4 << 20) + 1)}, patience=WaitPolicy.NONE)


# --- Outputs --------------------------------------------------------------------------------------


def test_outputs_go_where_the_last_ones_would_have(sharing: Sharing) -> None:
    """Large ones into slots; all others are asked for too, as the model gives them."""
    inputs = {"a": array(LARGE)}
    text = np.full(LARGE, b"x", object)
    sharing.learn(inputs, {"y": array(2 * LARGE), "s": array(8), "t": text})
    placement = sharing.placed(inputs)
    assert [slot.byte_size for slot in placement.outputs.values()] == [2 * LARGE]
    places = {output.name: place_of(output) for output in sent(placement).outputs}
    slot = placement.outputs["y"]
    assert places == {"y": (slot.region, slot.offset, 2 * LARGE), "s": None, "t": None}
    # Of another version, or where others are asked for, nothing is known.
    for other in (
        prepare(GRPC, "m", "2", None, None, 0, None),
        prepare(GRPC, "m", "", ["y"], None, 0, None),
    ):
        assert sharing.placed(inputs, prepared=other).outputs == {}


def test_outputs_grow_with_the_batch(sharing: Sharing) -> None:
    def batch(rows: int) -> dict[str, Any]:
        return {"a": np.zeros((rows, 4), np.float32)}

    sharing.learn(batch(4), {"y": array(4 * LARGE).reshape(4, LARGE), "z": array(LARGE)})
    sizes = {name: slot.byte_size for name, slot in sharing.placed(batch(6)).outputs.items()}
    assert sizes == {"y": 6 * LARGE, "z": LARGE}


def test_outputs_that_are_left_alone(sharing: Sharing) -> None:
    inputs = {"a": array(10)}
    answer = {"y": array(LARGE)}
    state = prepare(GRPC, "m", "", None, {"sequence_id": 1}, 0, None)
    sharing.learn(inputs, answer, state)
    assert sharing.place(inputs, prepared=state) is None  # it must not run twice
    own = prepare(GRPC, "m", "", [RequestedOutput("y", class_count=3)], None, 0, None)
    sharing.learn(inputs, answer, own)
    assert sharing.place(inputs, prepared=own) is None
    sharing.learn(inputs, answer)
    assert sharing.place(inputs)
    sharing.learn(inputs, {"y": array(10)})
    assert sharing.place(inputs) is None


def test_arrays_of_the_caller_that_the_server_can_write_to(sharing: Sharing) -> None:
    inputs = {"a": array(10)}
    sharing.learn(inputs, {"y": np.zeros(LARGE // 4, np.float32)})
    mine = sharing.empty(LARGE)
    there = sharing.pool.locate(mine.ctypes.data, LARGE)
    leased = sharing.leased()
    placement = sharing.placed(inputs, out={"y": mine[: LARGE // 4]})
    assert placement.outputs == {"y": there}
    assert sharing.leased() == leased
    for unfit in (
        np.zeros(LARGE // 4, np.float32),  # in no slot
        mine[: LARGE // 2 : 2],
        mine[:5],
        mine[: LARGE // 4].view(">f4"),
    ):
        assert sharing.placed(inputs, out={"y": unfit}).outputs["y"].lease is not None


def test_a_server_that_takes_long_to_register(
    sharing: Sharing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The call goes over the wire in time, and from the third time on all do."""
    monkeypatch.setattr(placements_module, "_FULL_NS", 0)
    sharing.register.refusal = errors.DeadlineExceeded("late")
    for _ in range(9):  # of calls that have no time themselves
        assert sharing.place({"a": array(LARGE)}) is None
    assert not caplog.records
    monkeypatch.setattr(placements_module, "_LATE_NS", 0)
    for _ in range(3):
        began = time.monotonic_ns()
        options = CallOptions(deadline_ns=began + 1_000_000_000, call=OPTIONS.call)
        tensors = [input_tensor("a", array(LARGE))]
        assert sharing.shared.place(MODEL, tensors, None, options) is None
        assert sharing.channel.options[-1].deadline_ns < began + 600_000_000
    assert [
        record.message.rpartition(" over ")[2].partition(",")[0] for record in caplog.records
    ] == [
        "the wire for now",
        "the wire",
    ]
    asked = len(sharing.channel.asked)
    sharing.register.refusal = None
    assert sharing.place({"a": array(LARGE)}) is None
    assert len(sharing.channel.asked) == asked


@pytest.mark.parametrize(
    "error",
    [errors.Unknown, errors.Cancelled, errors.Unauthenticated, errors.NotFound, errors.Unavailable],
)
def test_whatever_comes_in_place_of_a_registration(sharing: Sharing, error: Any) -> None:
    """It is no call's failure where shared memory is not required."""
    sharing.register.refusal = error("so")
    assert sharing.place({"a": array(LARGE)}) is None


def test_one_that_does_where_it_is_required(open_sharing: Any) -> None:
    sharing = open_sharing(required=True)
    sharing.register.refusal = errors.DeadlineExceeded("late")
    with pytest.raises(errors.DeadlineExceeded):
        sharing.place({"a": array(LARGE)})
    sharing.register.refusal = None
    assert sharing.place({"a": array(LARGE)})


# --- What a failed call says ----------------------------------------------------------------------


def lost(placement: Placement) -> Any:
    (slot,) = placement.slots
    return errors.NotFound(f"Unable to find shared memory region: '{slot.region}'")


def too_small(name: str, size: int) -> Any:
    return errors.Internal(
        f"shared memory size specified with the request for output '{name}' (1 bytes) should be "
        f"at least {size} bytes to hold the results"
    )


@pytest.mark.parametrize(
    "error",
    [
        errors.Cancelled("given up"),
        errors.DeadlineExceeded("late"),
        errors.Unavailable("gone"),
        errors.Unknown("?"),
        errors.ClosedError("closed"),
        KeyboardInterrupt(),
    ],
)
def test_slots_that_the_server_may_still_be_at(sharing: Sharing, error: BaseException) -> None:
    placement = sharing.placed({"a": array(LARGE)})
    assert not sharing.shared.conclude(MODEL, placement, error)
    assert sharing.pool._arenas.figures()["quarantined"] == 1


def test_a_server_that_was_started_anew(sharing: Sharing) -> None:
    inputs = {"a": array(LARGE)}
    placement = sharing.placed(inputs)
    sharing.register.regions.clear()
    assert sharing.shared.conclude(MODEL, placement, lost(placement))
    assert sharing.placed(inputs).slots[0].region != placement.slots[0].region
    assert sharing.pool._arenas.figures()["quarantined"] == 0


def test_several_servers_that_come_out_while_a_call_is_placed(open_sharing: Any) -> None:
    """Its regions may be let go of before it is seen to be on them: it goes without."""
    for required in (False, True):
        sharing = open_sharing(required=required)
        lease = sharing.pool.lease

        def leased(*arguments: Any, sharing: Any = sharing, lease: Any = lease, **more: Any) -> Any:
            slots = lease(*arguments, **more)
            sharing.pool._given_up.several = True
            return slots

        sharing.pool.lease = leased
        with pytest.raises(Refused) if required else contextlib.nullcontext():
            assert sharing.place({"a": array(LARGE)}) is None
        assert sharing.leased() == 0


def test_an_output_that_outgrew_its_slot(sharing: Sharing, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "triton_fast")
    inputs = {"a": array(10)}
    sharing.learn(inputs, {"y": array(LARGE), "s": array(8)})
    placement = sharing.placed(inputs)
    for other in ("s", "other"):  # which we have not put into slots
        assert not sharing.shared.conclude(MODEL, placement, too_small(other, 3 * LARGE))
    assert sharing.shared.conclude(MODEL, placement, too_small("y", 3 * LARGE))
    assert "output 'y' of model 'm'" in caplog.text
    assert sharing.placed(inputs).outputs["y"].byte_size == 3 * LARGE


def test_a_model_that_was_replaced(sharing: Sharing) -> None:
    """By one that has not the outputs we asked for; if the caller asked, it is the caller's."""
    inputs = {"a": array(10)}
    error = errors.InvalidArgument("unexpected inference output 'y'")
    asked = prepare(GRPC, "m", "", ["y"], None, 0, None)
    for prepared, again in ((MODEL, True), (asked, False)):
        sharing.learn(inputs, {"y": array(LARGE)}, prepared)
        placement = sharing.placed(inputs, prepared=prepared)
        assert sharing.shared.conclude(prepared, placement, error) is again
        assert not sharing.shared.conclude(prepared, placement, error)
    assert sharing.place(inputs) is None  # it is asked for nothing in particular
    sharing.learn({"a": array(LARGE)}, {"y": array(LARGE)})
    sharing.learn({"a": array(LARGE)}, {"y": array(8)})
    placement = sharing.placed({"a": array(LARGE)})
    assert not sharing.shared.conclude(MODEL, placement, error)  # we asked for nothing
    assert not sharing.shared.conclude(MODEL, placement, errors.Internal("the model failed"))
    assert sharing.pool._arenas.figures()["quarantined"] == 0


# --- Servers and machines without -----------------------------------------------------------------


def test_a_server_that_takes_none_is_asked_once(open_sharing: Any, caplog: Any) -> None:
    sharing = open_sharing()
    sharing.register.refusal = errors.Unimplemented("off")
    for _ in range(3):
        assert sharing.place({"a": array(LARGE)}) is None
    assert sharing.channel.methods == ["SystemSharedMemoryRegister"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "host:1: tensors go over the wire" in caplog.text
    required = open_sharing(required=True)
    required.register.refusal = errors.Unimplemented("off")
    for _ in range(2):
        with pytest.raises(Refused):
            required.place({"a": array(LARGE)})


@pytest.mark.parametrize("full", ["limit", "machine"])
def test_where_there_is_no_room_it_is_tried_again_later(
    open_sharing: Any, caplog: Any, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    clock = itertools.count(10**15, 10**9)  # each look takes a second
    monkeypatch.setattr(
        placements_module, "time", SimpleNamespace(monotonic_ns=lambda: next(clock))
    )
    attempts = []

    def no_more(*_: Any, **__: Any) -> None:
        attempts.append(next(clock))
        if full == "machine":
            raise errors.SharedMemoryError(28, "No space left on device")
        raise errors.ResourceExhausted("raise its shared_memory_limit")

    sharing, required = open_sharing(), open_sharing(required=True)
    sharing.pool.lease = required.pool.lease = no_more
    for _ in range(8):
        assert sharing.place({"a": array(LARGE)}) is None
    assert [round((now - then) * 1e-9) for then, now in itertools.pairwise(attempts)] == [7]
    assert len(caplog.records) == 1
    for _ in range(2):
        with pytest.raises((errors.SharedMemoryError, errors.ResourceExhausted)):
            required.place({"a": array(LARGE)})
