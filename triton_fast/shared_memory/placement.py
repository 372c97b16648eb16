"""What of a call travels in shared memory, in slots of the pool.

Inputs are copied into one, or lie in one already; outputs are written there by the server. Owns
what is known of the size of models' outputs, and the decision for the wire where shared memory is
not to be had. `Placement` is one call's slots.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..channels.base import CallOptions
from ..errors import (
    Cancelled,
    ClosedError,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    ServerError,
    SharedMemoryError,
    Unavailable,
    Unknown,
    printable,
)
from ..inference.request import Prepared, shared_memory_parameters
from ..inference.tensor import InputTensor, new_array
from ..protocol.server_messages import lost_region, too_small_output
from .pool import Refused, Slot, SlotPool, WaitPolicy, WouldBlock

if TYPE_CHECKING:
    from ..inference.result import InferResult
    from ..protocol.codec import Header

__all__ = ["Placement", "SharedMemory"]

_log = logging.getLogger("triton_fast")

# From here up a tensor is faster in a slot than on the wire: see benchmarks/README.md.
_THRESHOLD = 64 << 10
# Of models that are called by name; somebody may put a counter into the name.
_MOST_MODELS = 1024

# What is copied at once at most by those who must not be kept, in bytes: a millisecond or so.
_LONG_COPY = 4 << 20
# How long a /dev/shm that was full is left alone, in nanoseconds.
_FULL_NS = 5 * 10**9
# How often a server may take as long to register a region, and longer, before it is asked for none
# any more. A call that has less time says nothing of the server.
_LATE_NS = 250_000_000
_MOST_LATE = 3


@dataclass(slots=True)
class _Output:
    """What the last answer had of one output."""

    byte_size: int  # 0 for one that is better left on the wire
    batch: int | None  # its first dimension, where that was the first input's too


class Placement:
    """One call's slots, from the moment they are leased until the call is over.

    Attributes
    ----------
    tensors : list of InputTensor
        The inputs; those in slots have parameters in place of a payload.
    header : Header
        Asks for the outputs, some of them in slots.
    outputs : dict of str to Slot
        Where the server is to write.
    slots : list of Slot
        All of them.
    over : bool
        Whether the call is; then slots that the server may still be at are in quarantine.
    """

    __slots__ = ("__weakref__", "header", "outputs", "over", "slots", "tensors")

    def __init__(
        self,
        tensors: list[InputTensor],
        header: Header,
        outputs: dict[str, Slot],
        slots: list[Slot],
    ) -> None:
        self.tensors = tensors
        self.header = header
        self.outputs = outputs
        self.slots = slots
        self.over = False


class SharedMemory:
    """Decides what of a client's calls goes through shared memory. Thread-safe.

    Parameters
    ----------
    pool : SlotPool
        Where slots are from.
    required : bool
        Whether it is an error that the server takes no shared memory; the wire is used otherwise.
    url : str
        For errors.
    """

    def __init__(self, pool: SlotPool, *, required: bool, url: str) -> None:
        self._pool = pool
        self._required = required
        self._url = url
        self._answers: dict[tuple[Any, ...], dict[str, _Output]] = {}
        self._told: set[str] = set()  # what was logged already
        self._refused = False
        self._full_until_ns = 0
        self._late = 0

    @property
    def required(self) -> bool:
        """Whether it is an error that the server takes no shared memory."""
        return self._required

    @property
    def pool(self) -> SlotPool:
        """Where slots are from."""
        return self._pool

    def place(
        self,
        prepared: Prepared,
        tensors: list[InputTensor],
        out: Mapping[str, np.ndarray[Any, Any]] | None,
        options: CallOptions,
        patience: WaitPolicy = WaitPolicy.WAIT,
    ) -> Placement | None:
        """Put a call's large tensors into slots; None if it goes on the wire as it is.

        Raises
        ------
        WouldBlock
            If that takes more patience; nothing was done then.
        Refused, ResourceExhausted, SharedMemoryError
            If shared memory is required, and not to be had.
        DeadlineExceeded
            If the deadline passed before there was room.
        """
        if self._refused and not self._pool.unsettled:
            return None
        large = [tensor for tensor in tensors if tensor.byte_size >= _THRESHOLD]
        expected = self._expected(prepared, tensors)
        if (not large and not expected) or not self._takes_any(options, patience):
            return None
        inputs = {tensor.name: self._found(tensor) for tensor in large}
        outputs = {name: self._found_out(name, size, out) for name, size in expected.items()}
        sizes = [tensor.byte_size for tensor in large if inputs[tensor.name] is None]
        if patience is WaitPolicy.NONE and sum(sizes) > _LONG_COPY:
            raise WouldBlock
        sizes += [size for name, size in expected.items() if outputs[name] is None]
        leased = self._lease(sizes, options, patience) if sizes else []
        if leased is None:
            if not any(inputs.values()):
                return None
            # What lies in a slot already need not be copied to the wire for want of others.
            leased, outputs = [], {}
        placement = self._placement(prepared, tensors, inputs, outputs, leased)
        if not self._pool.several:
            return placement
        # That came out meanwhile, and the server may be told to let go of the regions any moment.
        del placement
        self._lease([1], options, patience)  # which says so
        return None

    def _takes_any(self, options: CallOptions, patience: WaitPolicy) -> bool:
        """Whether slots are worth asking for, once what is in doubt has been found out."""
        if self._pool.unsettled:
            settled = self._pool.settle(options, patience, required=self._required)
            if not settled and not self._required:
                return False  # for this call
        return not self._refused

    def _placement(
        self,
        prepared: Prepared,
        tensors: list[InputTensor],
        inputs: Mapping[str, Slot | None],
        outputs: Mapping[str, Slot | None],
        leased: list[Slot],
    ) -> Placement:
        fresh = iter(leased)
        placed = []
        slots = []
        for tensor in tensors:
            slot = None
            if tensor.name in inputs:
                slot = inputs[tensor.name]
                if slot is None and leased:
                    slot = next(fresh)
                    assert slot.lease is not None
                    slot.lease.copy_from(tensor.payload)
            if slot is None:
                placed.append(tensor)
                continue
            slots.append(slot)
            parameters = {**(tensor.parameters or {}), **_parameters(slot)}
            placed.append(tensor._replace(payload=None, parameters=parameters))
        written = {}
        for name, found in outputs.items():
            slot = next(fresh) if found is None else found
            written[name] = slot
            slots.append(slot)
        placement = Placement(placed, self._header(prepared, written), written, slots)
        self._pool.calls.add(placement)
        return placement

    def _header(self, prepared: Prepared, written: Mapping[str, Slot]) -> Header:
        """Return a header that asks for some outputs in slots, and for all that is wanted."""
        if not written:
            return prepared.header
        requested = prepared.requested or [
            (name, None) for name in self._answers.get(_key(prepared), ())
        ]
        known = {name for name, _ in requested}
        return prepared.asking_for(
            [
                (name, {**(own or {}), **_parameters(written[name])} if name in written else own)
                for name, own in requested
            ]
            # Only if another thread has just unlearnt what this one went by.
            + [(name, _parameters(slot)) for name, slot in written.items() if name not in known]
        )

    def _lease(
        self, sizes: Sequence[int], options: CallOptions, patience: WaitPolicy
    ) -> list[Slot] | None:
        began = time.monotonic_ns()
        if not self._required and began < self._full_until_ns:
            return None
        try:
            return self._pool.lease(sizes, options, patience, required=self._required)
        except Refused as refusal:
            if self._required:
                raise
            self._refused = True
            self._tell(f"{self._url}: tensors go over the wire, for {printable(refusal.message)}")
        except (SharedMemoryError, ResourceExhausted) as error:
            if self._required:
                raise
            self._full_until_ns = time.monotonic_ns() + _FULL_NS
            self._tell(f"{self._url}: tensors go over the wire for now, for {error}")
        except ClosedError:
            # A program's own exit hooks that were registered earlier run later, and may make calls.
            if self._required or not self._pool.interpreter_ends:
                raise
            self._refused = True
        except ServerError as error:
            if self._required:
                raise
            if not isinstance(error, Unavailable):  # which the call itself says better
                self._full_until_ns = time.monotonic_ns() + _FULL_NS
                if not isinstance(error, DeadlineExceeded):
                    self._tell(
                        f"{self._url}: tensors go over the wire for now, for the server has not "
                        f"registered shared memory: {printable(error.message)}"
                    )
                elif time.monotonic_ns() - began >= _LATE_NS:
                    self._late += 1
                    self._refused = self._late >= _MOST_LATE
                    for_now = "" if self._refused else " for now"
                    self._tell(
                        f"{self._url}: tensors go over the wire{for_now}, for the server takes "
                        "long to register shared memory"
                    )
        return None

    def _tell(self, text: str, level: int = logging.WARNING) -> None:
        if text not in self._told and len(self._told) < _MOST_MODELS:
            self._told.add(text)
            _log.log(level, "%s", text)

    def _found(self, tensor: InputTensor) -> Slot | None:
        array = tensor.payload
        if not isinstance(array, np.ndarray):
            return None
        return self._pool.locate(array.__array_interface__["data"][0], array.nbytes)

    def _found_out(
        self, name: str, byte_size: int, out: Mapping[str, np.ndarray[Any, Any]] | None
    ) -> Slot | None:
        array = None if out is None else out.get(name)
        if not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
            return None
        if array.nbytes != byte_size or array.dtype.hasobject or not array.dtype.isnative:
            return None
        return self._pool.locate(array.__array_interface__["data"][0], byte_size)

    def _expected(self, prepared: Prepared, tensors: Sequence[InputTensor]) -> dict[str, int]:
        """Return the outputs to have in slots, and how large they will be by all we know."""
        answer = self._answers.get(_key(prepared))
        if answer is None or "sequence_id" in (prepared.settings["parameters"] or ()):
            # Where an output turns out larger the model runs twice, and one with state would count
            # the request twice.
            return {}
        batch = _batch(tensors)
        own = {name for name, parameters in prepared.requested if parameters}
        expected = {}
        for name, output in answer.items():
            size = output.byte_size
            if output.batch and batch:
                size = size // output.batch * batch
            if size >= _THRESHOLD and name not in own:
                expected[name] = size
        return expected

    def learn(
        self, prepared: Prepared, tensors: Sequence[InputTensor], result: InferResult
    ) -> None:
        """Take note of how large a model's outputs are."""
        key = _key(prepared)
        if key not in self._answers and result.nbytes < _THRESHOLD:
            return
        if len(self._answers) >= _MOST_MODELS:
            self._answers.clear()
        batch = _batch(tensors)
        answer = {}
        for name, array in result.items():
            with_batch = batch and array.ndim and array.shape[0] == batch
            size = 0 if array.dtype.hasobject else array.nbytes
            answer[name] = _Output(size, batch if with_batch else None)
        self._answers[key] = answer

    def conclude(self, prepared: Prepared, placement: Placement, error: BaseException) -> bool:
        """Draw the conclusions of a failed call; say whether another placement may do better.

        Slots that the server may still be at are never leased again. It is
        `triton_fast.client.repeats` that decides whether the call is made again.
        """
        if not isinstance(error, ServerError) or isinstance(error, _NOT_OVER):
            self._pool.quarantine(placement.slots)
            return False
        lost = lost_region(error)
        if lost is not None:
            ours = {slot.region for slot in placement.slots}
            if lost and lost not in ours:
                return False  # the caller's own
            self._pool.forget(ours)
            return True
        if small := too_small_output(error):
            name, byte_size = small
            output = self._answers.get(_key(prepared), {}).get(name)
            if output is None or name not in placement.outputs:
                return False
            output.byte_size, output.batch = byte_size, None
            self._tell(
                f"{self._url}: output {name!r} of model {prepared.model_name!r} was larger than "
                "its last ones, so that the model ran twice; this may happen again",
                logging.INFO,
            )
            return True
        if isinstance(error, InvalidArgument) and placement.outputs and not prepared.requested:
            # The model may have been replaced by one that has not the outputs we asked for.
            return self._answers.pop(_key(prepared), None) is not None
        return False

    def is_used(self) -> bool:
        """Whether the server may know regions of ours."""
        return self._pool.is_used

    def close(self) -> None:
        """Have the server let go of our regions; see `SlotPool.close`."""
        self._pool.close()

    def empty(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        options: CallOptions,
        patience: WaitPolicy = WaitPolicy.WAIT,
    ) -> np.ndarray[Any, Any]:
        """Return an array in a slot of its own, or an ordinary one; see `place`."""
        slots = None
        if (not self._refused or self._pool.unsettled) and self._takes_any(options, patience):
            slots = self._lease([math.prod(shape) * dtype.itemsize], options, patience)
        if slots is None:
            return new_array(shape, dtype)
        return np.ndarray(shape, dtype, slots[0].lease)  # type: ignore[arg-type]  # it has a buffer


# The server may not be done with such a call, and what it does later nobody tells.
_NOT_OVER = (Cancelled, DeadlineExceeded, Unavailable, Unknown)


def _key(prepared: Prepared) -> tuple[Any, ...]:
    return (prepared.model_name, prepared.model_version, prepared.output_names)


def _batch(tensors: Sequence[InputTensor]) -> int | None:
    """Return what would be the size of the batch, if the model takes batches."""
    return tensors[0].shape[0] if tensors and tensors[0].shape else None


def _parameters(slot: Slot) -> dict[str, str | int]:
    return shared_memory_parameters(slot.region, slot.offset, slot.byte_size)
