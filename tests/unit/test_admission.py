"""Who waits to be let in and gives up; tests/aio/test_aio_admission.py has all else."""

from __future__ import annotations

import asyncio
import time

import pytest

from triton_fast import DeadlineExceeded
from triton_fast.channels.base import CallOptions
from triton_fast.client.admission import Admission


@pytest.mark.parametrize("how", ["cancelled", "too late"])
def test_who_gives_up_holds_nobody_back(run, how):
    """A large call waits for room, and behind it small ones for which there is some."""

    async def main():
        admission = Admission(10, 100)
        assert admission.enter(60)
        soon = time.monotonic_ns() + 10_000_000 if how == "too late" else None
        large = asyncio.ensure_future(admission.wait(90, CallOptions(deadline_ns=soon), "host:1"))
        while not admission._waiting:
            await asyncio.sleep(0)
        small = [asyncio.ensure_future(admission.wait(1, CallOptions(), "host:1")) for _ in "ab"]
        while len(admission._waiting) == 1:
            await asyncio.sleep(0)
        if how == "cancelled":
            large.cancel()
        with pytest.raises((asyncio.CancelledError, DeadlineExceeded)):
            await large
        assert (admission.calls, admission.byte_size) == (3, 62)
        await asyncio.gather(*small)

    run(main())
