"""Regions that a pool has given up, until no server has them any more.

Owns what is known of the servers behind the address, too: that there are several comes out by what
they have of our regions. See `triton_fast.shared_memory.several_servers`.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from ..channels.base import CallOptions
from ..errors import TritonFastError
from .registration import LETTING_GO_PAUSE_S, LETTING_GO_S, NOT_NOW, Registry
from .several_servers import LOOKS, look, take_back

__all__ = ["LOOKS", "GivenUp"]

_log = logging.getLogger("triton_fast")

# When it is tried again to have several servers let go of what they have kept, as one does while a
# call is on it: twice as late each time, and after these times only when the pool is closed.
_AGAIN_S = 0.05
_MOST_TRIES = 10
# How many names of regions are kept that a server has lost: one for each time that it was started
# anew, and more where several are behind one address, until that comes out.
_MOST_LOST = 256
# How long a server may be about to register a region, having been asked and not answered.
_LATE_S = 60.0
# Of how many such regions one takes note. Each is asked for once, and again when all is given up.
_MOST_LATE = 16


@dataclass(slots=True)
class _Region:
    byte_size: int
    in_doubt: bool  # whether a server may still be at it: for a call, or one that was given up
    asked: bool = False  # whether a server was told to let go of it
    missed: bool = False  # whether one had not got it before any was
    # When it was given up, if it was never seen to be registered, and may be yet.
    late_since: float | None = None

    @property
    def is_late_and_asked(self) -> bool:
        return self.asked and self.late_since is not None


class GivenUp:
    """Regions that are of no more use to a pool, and that a server has, or may have.

    Parameters
    ----------
    registry : Registry
        Where they are registered.

    Attributes
    ----------
    doubtful : bool
        Whether it is to be found out why a region is unknown.
    several : bool
        Whether several servers are there, by all that was seen.

    Notes
    -----
    Not thread-safe, but for those two, and what is said of them.
    """

    def __init__(self, registry: Registry) -> None:
        self.doubtful = False
        self.several = False
        self._registry = registry
        self._leaving: dict[str, _Region] = {}  # those that the server still has, by name
        self._gone: dict[str, _Region] = {}  # those that it did not know when it should have
        self._kept = False  # whether several servers are to be told again
        self._tries = 0
        self._again_ns = 0

    def __bool__(self) -> bool:
        return bool(self._leaving or self._gone)

    @property
    def byte_size(self) -> int:
        """How much the server keeps, by all we know."""
        return sum(region.byte_size for region in self._leaving.values())

    @property
    def unsettled(self) -> bool:
        """Whether there is something to find out with `look`, or it is time for `take_back`."""
        if self.several:
            return self._kept and time.monotonic_ns() >= self._again_ns
        return self.doubtful

    def add(self, name: str, byte_size: int, *, in_doubt: bool, lost: bool) -> None:
        """Take note of a region.

        Parameters
        ----------
        name : str
            What servers call it.
        byte_size : int, bytes
            How large it is.
        in_doubt : bool
            Whether a server may still be at it: for a call, or one that was given up.
        lost : bool
            Whether the server does not know it any more. Another one may.
        """
        region = _Region(byte_size, in_doubt)
        if lost:
            self._miss(name, region)
        else:
            self._leaving[name] = region

    def add_late(self, name: str) -> None:
        """Take note of a region that a server may yet register: it has not answered.

        It has nothing to map by then, and most say so.
        """
        late = [one for one, region in self._leaving.items() if region.late_since is not None]
        if len(late) >= _MOST_LATE:
            del self._leaving[late[0]]
        self._leaving[name] = _Region(0, in_doubt=False, late_since=time.monotonic())

    def _miss(self, name: str, region: _Region) -> None:
        if len(self._gone) >= _MOST_LOST:
            del self._gone[next(iter(self._gone))]
        self._gone[name] = region

    def look(self, options: CallOptions, ours: set[str], lost: set[str], times: int) -> set[str]:
        """Look for regions at the server; return those that it never had.

        Parameters
        ----------
        options, ours, lost, times
            As of `several_servers.look`. What was given up and lost need not be named.
        """
        if self.several:
            return set()
        seen = look(self._registry, options, ours, lost | self._gone.keys(), times)
        self.several = seen.several
        return seen.missing

    def unregister(self, options: CallOptions, *, at_close: bool = False) -> bool:
        """Have the server let go of regions. What it keeps counts as used.

        Parameters
        ----------
        options : CallOptions
            Of the calls.
        at_close : bool
            Whether nobody does it later.

        Returns
        -------
        bool
            Whether to ask again soon: something is left that it will let go of.
        """
        going = [name for name, region in self._leaving.items() if not region.in_doubt]
        if len(going) < len(self._leaving) and self._registry.survives_removal(options):
            going = list(self._leaving)
        if not at_close:
            going = [name for name in going if not self._leaving[name].is_late_and_asked]
        if not going:
            return False
        unasked = {
            name
            for name, region in self._leaving.items()
            if name in going and not region.asked and region.late_since is None
        }
        for name in self.look(options, unasked, set(), 1):
            self._leaving[name].missed = self.doubtful = True
        if self.several:
            return False
        try:
            for name in going:
                self._leaving[name].asked = True
                try:
                    self._registry.unregister(name, options)
                except NOT_NOW as error:
                    _log.debug("region %s is still in use: %s", name, str(error))
            known = self._registry.regions(options)
            for name, region in self._leaving.items():
                if region.is_late_and_asked and name in known:  # in between
                    region.late_since = None
                    self._registry.unregister(name, options)
        except TritonFastError as error:
            _log.debug("regions %s stay registered for now: %s", going, str(error))
            return True
        for name, region in list(self._leaving.items()):
            if name in known:
                region.late_since = None
            elif region.late_since is None or time.monotonic() - region.late_since > _LATE_S:
                del self._leaving[name]
                if region.missed:
                    self._miss(name, region)
        return any(name in self._leaving for name in going)

    def take_back(self, options: CallOptions, *, more: bool = False) -> bool:
        """Have all of several servers let go of regions, those that one has lost too.

        Parameters
        ----------
        options : CallOptions
            Of the calls.
        more : bool
            Whether the pool has others, which calls or arrays are on, for another time.

        Returns
        -------
        bool
            Whether to ask again: one may have some still.
        """
        regions = self._gone | self._leaving
        in_doubt = {name: region.in_doubt for name, region in regions.items()}
        left = take_back(self._registry, in_doubt, options) if regions else set()
        self._gone.clear()
        self._leaving = {name: regions[name] for name in left}
        self._tries += 1
        self._again_ns = time.monotonic_ns() + round(_AGAIN_S * 2**self._tries * 1e9)
        self._kept = (more or bool(left)) and self._tries < _MOST_TRIES
        return bool(left)

    def let_go(self, options: CallOptions) -> None:
        """Do all of it, for a pool that is closed, for as long as a server may need."""
        end = last = time.monotonic() + LETTING_GO_S
        if options.deadline_ns is not None:
            last = max(end, options.deadline_ns * 1e-9)
        while not self.several and self.unregister(options, at_close=True):
            # A call that was given up may go on for ever. Of what was answered the server lets go
            # in a moment, which is a long one on a busy machine.
            answered = any(
                not region.in_doubt and region.late_since is None
                for region in self._leaving.values()
            )
            if time.monotonic() >= (last if answered else end):
                break
            time.sleep(LETTING_GO_PAUSE_S)
        if self.several or self._gone:
            while self.take_back(options) and time.monotonic() < end:
                time.sleep(LETTING_GO_PAUSE_S)
