"""A thread that shows whether a native call lets others run."""

from __future__ import annotations

import gc
import sys
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self


class Bystander:
    """A thread that counts whenever the interpreter lets it, which it does only when told to.

    With a switch interval of minutes nobody is interrupted: the count moves during a native call if
    and only if that call lets go of the interpreter. Nor is garbage collected meanwhile: what other
    tests have left may let go of it too, as a channel does.
    """

    def __init__(self) -> None:
        self.count = 0
        self._stopped = False
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stopped:
            self.count += 1
            time.sleep(0)

    def __enter__(self) -> Self:
        self._interval = sys.getswitchinterval()
        self._collects = gc.isenabled()
        gc.disable()
        sys.setswitchinterval(600)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        sys.setswitchinterval(self._interval)
        if self._collects:
            gc.enable()
        self._stopped = True
        self._thread.join()

    def moves_during(self, call: Callable[[], object]) -> bool:
        time.sleep(0)
        before = self.count
        call()
        return self.count != before

    def moves_in_time(self, call: Callable[[], object]) -> bool:
        """Whether it moves during one call of many: a busy machine may not get round to it."""
        return any(self.moves_during(call) for _ in range(50))
