"""Several servers behind one address: how that comes out, and how all let go of a region.

A proxy, or a port that servers share, has each call or each connection answered by another server,
and nothing that a server says of itself tells. What tells are our regions, whose names nobody else
has, and which are registered once: a server that has said that it knows one, or does not, and now
says the opposite, is not the same server. Owns nothing.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import NamedTuple

from ..channels.base import CallOptions
from ..errors import TritonFastError
from .registration import NOT_NOW, Registry

__all__ = ["LOOKS", "Seen", "look", "take_back"]

_log = logging.getLogger("triton_fast")

# How often the register is looked at where servers may differ. Of two that are asked by turns, the
# first two looks show it; of two that are asked at random, all but one series in 128.
LOOKS = 8
# How many connections are made, one after the other, so that each server is at the end of one. At
# the last, each question is asked as often, for servers of which each call is given to another.
_CONNECTIONS = 8
# At how many of the last ones nothing must have been found.
_CLEAN = 3


class Seen(NamedTuple):
    """What the register was seen to have."""

    several: bool  # whether that was not one server's
    missing: set[str]  # of the regions that it should have, those that it never had


def look(
    registry: Registry, options: CallOptions, ours: set[str], lost: set[str], times: int
) -> Seen:
    """Look at the register a number of times.

    Parameters
    ----------
    registry : Registry
        What is at the address.
    options : CallOptions
        Of the calls. One that fails ends the looking.
    ours : set of str
        Regions that were registered, and that it should have.
    lost : set of str
        Regions that were registered, and unknown later: it cannot have them.
    times : int
        How often.
    """
    shown: set[str] = set()
    missing: set[str] = set()
    for _ in range(times):
        try:
            known = set(registry.regions(options))
        except TritonFastError as error:
            _log.debug("the server does not say which regions it has: %s", str(error))
            break
        shown |= ours & known
        missing |= ours - known
        if shown & missing or lost & known:
            return Seen(True, missing - shown)
    return Seen(False, missing)


def take_back(registry: Registry, regions: Mapping[str, bool], options: CallOptions) -> set[str]:
    """Have all servers at an address let go of regions; return those that one may still have.

    Parameters
    ----------
    registry : Registry
        What is at the address.
    regions : mapping of str to bool
        Their names, and whether a server may be at work on one, which not every Triton survives.
    options : CallOptions
        Of the calls. One that fails ends it, as there may be no server any more.
    """
    left: set[str] = set()
    try:
        # As long as there is one that does not survive it, nobody knows which is asked.
        careful = any(regions.values()) and not all(
            registry.says_that_it_survives(options) for _ in range(LOOKS)
        )
        for turn in range(1, _CONNECTIONS + 1):
            with registry.afresh() as one:
                found: set[str] = set()
                for _ in range(turn):
                    found |= regions.keys() & one.regions(options).keys()
                for name in found:
                    if regions[name] and (careful or not one.survives_removal(options)):
                        continue
                    # The calls for one region in a row: servers that are asked by turns are all
                    # asked for each.
                    for _ in range(turn):
                        with contextlib.suppress(*NOT_NOW):
                            one.unregister(name, options)
            if turn > _CONNECTIONS - _CLEAN:
                left |= found
    except TritonFastError as error:
        # Its text: who keeps the record would keep what its traceback leads to.
        _log.debug("regions %s may stay registered: %s", list(regions), str(error))
        return set(regions)
    return left
