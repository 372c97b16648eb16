"""The pool: shared memory regions that one server has mapped, cut into slots that calls lease.

Owns the regions from their creation until the server was told to let go of them. A slot belongs to
its lease, and a lease to the arrays on it: when the last of these dies, the slot can be leased
again. That is done in C++ and takes no lock of Python's, for arrays die anywhere.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, Protocol

from .._core._shm import Arenas, Lease, Segment
from ..channels.base import CallOptions
from ..channels.lifecycle import Phase, run_exit_in_multiprocessing, watch
from ..errors import (
    Cancelled,
    ClosedError,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    SharedMemoryError,
    Unavailable,
    Unimplemented,
    Unknown,
)
from .fork_copies import ForkCopies
from .given_up import LOOKS, GivenUp
from .ownership import region_name, remove_orphans
from .registration import Registry

__all__ = ["Refused", "Slot", "SlotPool", "WaitPolicy", "WouldBlock"]

# What the first region has room for; each further one is as large as all before it together.
_FIRST_REGION = 16 << 20
_PAGE = 4096
# A region of which more than one part in as many is in quarantine is replaced.
_WORN = 4
# How long closing waits for a thread that is registering a region.
_FAREWELL_S = 2.0
# How often it is looked whether a region is there that was registered just now.
_LOOKS_AT_NEW = 4
# How much of a call's time goes at most to finding out about servers, and to what they are told:
# half of what it has, and no more than this.
_SETTLING_S = 1.0

_DISABLED = "start it with --allow-client-shm=true (needed since Triton 2.69)"
_ELSEWHERE = (
    "it must run on this machine and see the same /dev/shm: in a container, start it with "
    "--ipc=host (or the client with --ipc=container:NAME), as the same user or as root"
)
_SEVERAL = (
    "several servers answer at this address: a region of shared memory that one has registered is "
    "unknown to another. Give the client the address of one server to have shared memory with that"
)


class Refused(FailedPrecondition):
    """The server does not take our regions, and would not if it were asked again."""


class WaitPolicy(enum.Enum):
    """How long those that need shared memory can do without the result."""

    NONE = enum.auto()
    """Only what is at hand."""
    WORK = enum.auto()
    """Also calls to the server, and large copies."""
    WAIT = enum.auto()
    """Also waiting for slots to come back, where shared memory is required."""


class WouldBlock(Exception):
    """What was asked for takes more patience.

    Attributes
    ----------
    generation : int
        If it takes a slot that has to come back: for `SlotPool.wait`.
    deadline_error : DeadlineExceeded or None
        If so, the error for a call whose deadline passes before that.
    """

    def __init__(self, generation: int = 0, deadline_error: DeadlineExceeded | None = None) -> None:
        super().__init__("this takes longer than there is time for")
        self.generation = generation
        self.deadline_error = deadline_error


class Slot(NamedTuple):
    """A place in a region that the server knows.

    ``lease`` keeps it; None if that is up to an array of the caller's.
    """

    region: str
    arena: int
    offset: int
    byte_size: int
    lease: Lease | None


@dataclass(slots=True)
class _Region:
    name: str
    segment: Segment
    arena: int
    retired: bool = False  # no more of its slots are leased
    lost: bool = False  # the server does not know it any more, or only one of several does
    left: bool = False  # it was given up, and there only may be arrays on it


class _Call(Protocol):
    """A call that has slots, as long as it is under way."""

    @property
    def slots(self) -> Sequence[Slot]:
        """Those that the server was told of."""

    @property
    def over(self) -> bool:
        """Whether it is not under way any more, though somebody has it still."""


class SlotPool:
    """Slots in memory that this process shares with one server.

    Parameters
    ----------
    registry : Registry
        Where regions are registered.
    limit : int, bytes
        How much all regions may have together, those included that the server has not let go of.
    closing_options : callable
        Returns the options of the calls that closing takes; not asked if there are none to make.

    Attributes
    ----------
    calls : WeakSet
        Those that the server may be at, each with its ``slots``.
    interpreter_ends : bool
        Whether it is closed for that, and not because the client is.

    Notes
    -----
    Thread-safe. Opens nothing before the first lease. Files are unlinked as soon as the server has
    mapped them, so that none is left behind, however the process ends.
    """

    def __init__(
        self, registry: Registry, limit: int, closing_options: Callable[[], CallOptions]
    ) -> None:
        self.calls: weakref.WeakSet[_Call] = weakref.WeakSet()
        self.interpreter_ends = False
        self._registry = registry
        self._limit = limit
        self._closing_options = closing_options
        self._arenas = Arenas()
        _copies.add(self._arenas)
        self._regions: dict[int, _Region] = {}  # by arena
        self._given_up = GivenUp(registry)
        self._lock = threading.Lock()  # of the two above, and of growing
        self._closed = False
        _pools.add(self)

    def lease(
        self,
        sizes: Sequence[int],
        options: CallOptions,
        patience: WaitPolicy,
        *,
        required: bool,
    ) -> list[Slot] | None:
        """Return a slot for each size, all or none.

        Parameters
        ----------
        sizes : sequence of int
            In bytes.
        options : CallOptions
            Of the call that needs them; its deadline ends the wait.
        patience : WaitPolicy
            What may be done for it.
        required : bool
            Whether the call cannot do without, and waits for slots to come back if there are none.

        Returns
        -------
        list of Slot, or None
            None if there is no room, and they are not required.

        Raises
        ------
        Refused
            If the server takes no regions of ours, or there are several servers.
        DeadlineExceeded
            If no room was found until then; the message says what is in the way.
        ResourceExhausted
            If the call needs more than the limit.
        SharedMemoryError
            If the system has not as much.
        WouldBlock
            If it takes more patience.
        """
        while True:
            if self._closed:
                raise ClosedError("the client was closed")
            if self.several:
                raise Refused(_SEVERAL)
            generation = self._arenas.generation
            slots = self.take(sizes)
            if slots is not None:
                return slots
            if patience is WaitPolicy.NONE:
                raise WouldBlock
            if self._grow(sizes, options, patient=required):
                continue
            if not required:
                return None
            deadline_error = DeadlineExceeded(
                f"no shared memory came free for {sum(sizes)} bytes: {self.summary()}",
                call=options.call,
            )
            if options.deadline_ns is not None and time.monotonic_ns() >= options.deadline_ns:
                raise deadline_error
            if patience is WaitPolicy.WORK:
                raise WouldBlock(generation, deadline_error)
            self.wait(generation, options.deadline_ns)

    def wait(self, generation: int, deadline_ns: int | None) -> None:
        """Wait for a deadline, or until a slot has come back since a `WouldBlock` was raised."""
        from ..channels.greenlets import are_patched, in_turns  # noqa: PLC0415 - rare

        if are_patched():
            in_turns(partial(self._arenas.wait, generation), deadline_ns)
        else:
            self._arenas.wait(generation, deadline_ns)

    def take(self, sizes: Iterable[int]) -> list[Slot] | None:
        """Return a slot for each size without waiting; None if not all can be had so."""
        slots = []
        for size in sizes:
            lease = self._arenas.take(size)
            if lease is None:
                return None  # the others go back as the list dies
            region = self._regions.get(lease.arena)
            if region is None:
                raise ClosedError("the client was closed")
            slots.append(Slot(region.name, lease.arena, lease.offset, lease.byte_size, lease))
        return slots

    def locate(self, address: int, byte_size: int) -> Slot | None:
        """Return the place of memory that lies in a slot of ours; None if it does not."""
        found = self._arenas.find(address, byte_size)
        if found is None:
            return None
        arena, offset = found
        region = self._regions.get(arena)
        if region is None or region.lost:
            return None
        return Slot(region.name, arena, offset, byte_size, None)

    def quarantine(self, slots: Iterable[Slot]) -> None:
        """Never lease slots again, for the server may still write to them or read from them."""
        for slot in slots:
            self._arenas.quarantine(slot.arena, slot.offset)

    def forget(self, names: Iterable[str]) -> None:
        """Take no more slots from regions that the server does not know; `settle` finds out why."""
        # Without the lock, which somebody may hold who waits for that server.
        lost = set(names)
        for region in list(self._regions.values()):
            if region.name in lost and not region.lost:
                self._lose(region)
                self._given_up.doubtful = True

    def _lose(self, region: _Region) -> None:
        region.lost = region.retired = True
        with contextlib.suppress(KeyError):  # dropped just now
            self._arenas.retire(region.arena)

    @property
    def several(self) -> bool:
        """Whether there are several servers, so that no call may use a slot."""
        return self._given_up.several

    @property
    def unsettled(self) -> bool:
        """Whether there is something for `settle` to do."""
        return self._given_up.unsettled

    def settle(self, options: CallOptions, patience: WaitPolicy, *, required: bool) -> bool:
        """Find out whether the server was started anew, or is one of several; then act on it.

        Where there are several, they are told to let go of all regions that no call is on. For the
        parameters see `lease`.

        Returns
        -------
        bool
            False if another thread is at it, and this one did not wait.

        Raises
        ------
        WouldBlock
            If it takes more patience.
        """
        if patience is WaitPolicy.NONE:
            raise WouldBlock
        if not self._lock.acquire(timeout=_left(options) if required else 0):
            return False
        try:
            if self._closed:
                return True
            brief = _briefly(options)
            ours = {region.name for region in self._regions.values() if not region.lost}
            self._given_up.doubtful = False
            missing = self._given_up.look(brief, ours, self._lost(), LOOKS)
            for region in self._regions.values():
                if region.name in missing:
                    self._lose(region)
            if self.several:
                self._take_back(brief)
            return True
        finally:
            self._lock.release()

    def _lost(self) -> set[str]:
        return {region.name for region in self._regions.values() if region.lost}

    def _take_back(self, options: CallOptions) -> None:
        """Have all of several servers let go of all regions that no call is on."""
        # That there are several is known by now. A call that has just got slots is put down in
        # `calls` first, and looks at that last: either it is seen here, or it goes without them.
        busy = self._busy()
        for region in list(self._regions.values()):
            self._lose(region)
            if region.name in busy:
                continue
            self._leave(region)
            if self._arenas.idle(region.arena):
                self._arenas.remove(region.arena)
                del self._regions[region.arena]
        self._given_up.take_back(options, more=bool(self._regions))

    def _refuse_several(self, options: CallOptions) -> None:
        if self.several:
            self._take_back(_briefly(options))
            raise Refused(_SEVERAL)

    def _grow(self, sizes: Sequence[int], options: CallOptions, *, patient: bool) -> bool:
        """Add a region if there may be one; say whether there is more room now."""
        wanted = sum(-(-size // _PAGE) * _PAGE for size in sizes)
        if wanted > self._limit:
            raise ResourceExhausted(
                f"the call needs {wanted} bytes of shared memory at once, and the client may have "
                f"{self._limit}: raise its shared_memory_limit",
                call=options.call,
            )
        seen = len(self._regions)
        # Who holds it may be waiting for the server.
        if not self._lock.acquire(timeout=_left(options) if patient else 0):
            return False
        try:
            if self._closed:
                raise ClosedError("the client was closed")
            if self.several:
                raise Refused(_SEVERAL)
            if len(self._regions) > seen:
                return True  # another thread did it meanwhile
            # Who can do without has the call itself to make in what is left of its time.
            setup = options if patient else _briefly(options)
            dropped = self._drop_unused(setup)
            self._refuse_several(options)
            used = self._used()
            if used + wanted > self._limit:
                return dropped
            self._retire_worn()
            live = sum(
                region.segment.byte_size for region in self._regions.values() if not region.retired
            )
            byte_size = max(wanted, min(max(live, _FIRST_REGION), self._limit - used))
            self._add(_segment(byte_size, wanted), setup)
            self._refuse_several(options)
            return True
        finally:
            self._lock.release()

    def _used(self) -> int:
        live = sum(region.segment.byte_size for region in self._regions.values())
        return live + self._given_up.byte_size

    def _add(self, segment: Segment, options: CallOptions) -> None:
        remove_orphans()
        name = region_name()
        try:
            self._registry.register(name, segment.key, segment.byte_size, 0, options)
        except Unimplemented as error:
            raise Refused(f"the server does not take shared memory; {_DISABLED}") from error
        except (Internal, InvalidArgument, PermissionDenied) as error:
            raise Refused(f"the server cannot map our memory; {_ELSEWHERE}") from error
        except (Cancelled, DeadlineExceeded, Unavailable, Unknown) as error:
            if not error.safe_to_retry:
                self._given_up.add_late(name)
            raise
        finally:
            # The server has mapped it, or never will: either way the name has done its work.
            segment.unlink()
        run_exit_in_multiprocessing()
        arena = self._arenas.add(segment)
        self._regions[arena] = _Region(name, segment, arena)
        self._given_up.look(_briefly(options), {name}, self._lost(), _LOOKS_AT_NEW)

    def _retire_worn(self) -> None:
        """Lease no more of regions that have much in quarantine, so that they come to be unused.

        Others would only be added, for calls that are given up again and again.
        """
        for region in self._regions.values():
            quarantined = self._arenas.figures(region.arena)["quarantined_bytes"]
            if not region.retired and quarantined * _WORN >= region.segment.byte_size:
                self._arenas.retire(region.arena)
                region.retired = True

    def retire_all(self) -> None:
        """Lease nothing more of what there is, for a forked child may still look at it."""
        for region in list(self._regions.values()):
            with contextlib.suppress(KeyError):  # dropped just now
                self._arenas.retire(region.arena)
            region.retired = True

    def _drop_unused(self, options: CallOptions) -> bool:
        """Give up regions that are of no more use; say whether there were any."""
        unused = [
            region
            for region in self._regions.values()
            if (region.retired or self._arenas.figures(region.arena)["quarantined"])
            and self._arenas.idle(region.arena)
        ]
        for region in unused:
            # Our mapping goes, and the server's may stay: what it still writes there, of a call
            # that was given up, nobody reads.
            self._arenas.retire(region.arena)
            if not self._arenas.idle(region.arena):
                region.retired = True  # a slot was leased just now
                continue
            self._leave(region)
            self._arenas.remove(region.arena)
            del self._regions[region.arena]
        self._given_up.unregister(options)
        return bool(unused)

    def _leave(self, region: _Region) -> None:
        """Take note that a region is of no more use to us."""
        if region.left:
            return
        region.left = True
        quarantined = self._arenas.figures(region.arena)["quarantined"] > 0
        self._given_up.add(
            region.name,
            region.segment.byte_size,
            in_doubt=quarantined or region.name in self._busy(),
            lost=region.lost,
        )

    def _busy(self) -> set[str]:
        """Return the regions that calls are on."""
        return {slot.region for call in _alive(self.calls) if not call.over for slot in call.slots}

    @property
    def is_used(self) -> bool:
        """Whether the server may know regions of ours."""
        return bool(self._regions or self._given_up)

    def summary(self) -> str:
        """Say how much there is, and who has it."""
        figures = self._arenas.figures()
        leased, count = figures["leased_bytes"], figures["leased"]
        parts = [f"{leased} bytes are leased, in {count} slots of arrays and calls"]
        if figures["quarantined"]:
            parts.append(
                f"{figures['quarantined_bytes']} bytes are not used any more, because calls were "
                "given up that the server may still be at"
            )
        if leaving := self._given_up.byte_size:
            parts.append(f"{leaving} bytes are of regions that the server has not let go of")
        return f"of the client's {self._limit} bytes, " + "; ".join(parts)

    def close(self) -> None:
        """Have the server let go of all regions. Arrays in them stay as they are. Idempotent."""
        closed, self._closed = self._closed, True
        # Also if another thread is at it: who comes later waits for its end.
        if not self._lock.acquire(timeout=_FAREWELL_S):
            return
        try:
            if closed:
                return
            for region in self._regions.values():
                self._arenas.retire(region.arena)
                self._leave(region)
            self._regions.clear()
            if self._given_up:
                self._given_up.let_go(self._closing_options())
        finally:
            self._lock.release()


def _alive(calls: weakref.WeakSet[_Call]) -> list[_Call]:
    while True:
        try:
            return list(calls)
        except RuntimeError:  # a thread has begun one meanwhile
            continue


def _close_own(pool: SlotPool) -> None:
    if not pool._arenas.inherited:
        pool.interpreter_ends = True
        pool.close()


def _retire_all() -> None:
    for pool in list(_pools):
        if not pool._arenas.inherited:
            pool.retire_all()


_pools = watch({Phase.EXIT_SHARED_MEMORY: _close_own})
_copies = ForkCopies(_retire_all)


def _left(options: CallOptions) -> float:
    """Return how many seconds a call has left, as locks want it."""
    if options.deadline_ns is None:
        return -1
    return min(max((options.deadline_ns - time.monotonic_ns()) * 1e-9, 0.0), threading.TIMEOUT_MAX)


def _briefly(options: CallOptions) -> CallOptions:
    """Return options for what must leave time for the call itself."""
    now = time.monotonic_ns()
    left = round(_SETTLING_S * 1e9)
    if options.deadline_ns is not None:
        left = min(left, (options.deadline_ns - now) // 2)
    return replace(options, deadline_ns=now + left)


def _segment(byte_size: int, wanted: int) -> Segment:
    """Return a new segment of a size, or of as much as there is and is wanted at least."""
    while True:
        try:
            return Segment.create(-(-byte_size // _PAGE) * _PAGE)
        except SharedMemoryError as error:
            if error.errno not in {errno.ENOSPC, errno.ENOMEM} or byte_size <= wanted:
                raise
            byte_size = max(wanted, byte_size // 4)
