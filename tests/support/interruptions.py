"""A signal handler's exception at every place where there may be one, one place after the other.

CPython runs the handlers of signals between two instructions: when a call has returned, at the
beginning of a function, and before a loop goes round again (``CHECK_EVAL_BREAKER`` in its ceval.c).
Signals that a test sends hit a few of these places, by chance; here they are counted off.
"""

from __future__ import annotations

import dis
import functools
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import triton_fast

__all__ = ["SLOW_S", "Interrupt", "interrupted", "is_in_package"]

SLOW_S = 15.0
"""What no work takes, on a busy machine either, if its server is well. Deadlines are longer."""

# How often one place counts. Who waits looks again every second, and has the same places each time:
# for a server that does not answer, the work is to come to its deadline, not to one more place.
_MOST_SAME = 3

_FOLDER = str(Path(triton_fast.__file__).parent)
_HANDLED_AFTER = ("CALL", "JUMP_BACKWARD", "JUMP_ABSOLUTE", "RESUME")


class Interrupt(BaseException):
    """What a signal's handler raises: like KeyboardInterrupt, nobody's to catch."""


def interrupted(number: int, work: Callable[[], Any]) -> bool:
    """Do a work whose ``number``-th place is interrupted; return False if it has fewer.

    Places are those in this thread in the package's Python code, and at the beginning of a ``with``
    of its on a `threading.Condition`, which is Python code as well. What an object does as it goes
    (``__del__``) has none: the interpreter would print the exception, and go on. Nor has a call at
    the very end of a ``try``: a tracer, as this is, can only raise where the next instruction is,
    which is out of it.

    Raises
    ------
    AssertionError
        If the work has swallowed the exception, or has waited for a server that does not answer: on
        its way back from a deadline there are places too, and each would take as long to come to.
    """
    tracer = _Tracer(number)
    before = sys.gettrace()
    began = time.monotonic()
    sys.settrace(tracer.enter)
    try:
        work()
    except Interrupt:
        took = time.monotonic() - began
        assert took < SLOW_S, f"place {number} was come to after {took:.0f} s: nobody answers"
        return True
    finally:
        sys.settrace(before)
    assert not tracer.raised, f"the exception at place {number} was swallowed"
    return False


class _Tracer:
    def __init__(self, number: int) -> None:
        self._left = number
        self._last: dict[FrameType, int] = {}  # the instruction that was executed
        self._been: Counter[tuple[CodeType, int]] = Counter()
        self.raised = False

    def enter(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if not is_in_package(frame):
            return None
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        if event == "return":
            self._last.pop(frame, None)
        elif event == "opcode":
            last = self._last.get(frame)
            self._last[frame] = frame.f_lasti
            if last is not None and _is_place(frame.f_code, last, frame.f_lasti):
                place = frame.f_code, last
                self._been[place] += 1
                if self._been[place] > _MOST_SAME:
                    return self._step
                if not self._left and not self.raised:
                    self.raised = True
                    self._last.clear()
                    raise Interrupt
                self._left -= 1
        return self._step


def is_in_package(frame: FrameType | None) -> bool:
    """Tell whether an exception raised in a frame is one in the package, and not in a finalizer."""
    if frame is None or not _is_ours(frame):
        return False
    above: FrameType | None = frame
    while above is not None:
        if above.f_code.co_name == "__del__":
            return False
        above = above.f_back
    return True


def _is_ours(frame: FrameType) -> bool:
    code, caller = frame.f_code, frame.f_back
    if code.co_filename == threading.__file__ and code.co_qualname == "Condition.__enter__":
        # Not what grpcio does with its own, of whose compiled functions there are no frames.
        return (
            caller is not None
            and caller.f_code.co_filename.startswith(_FOLDER)
            and dis.opname[caller.f_code.co_code[caller.f_lasti]] == "BEFORE_WITH"
        )
    return code.co_filename.startswith(_FOLDER)


@functools.cache
def _instructions(code: CodeType) -> dict[int, tuple[bool, object]]:
    """Return of each instruction whether handlers run after it, and who catches what it raises."""
    bytecode = dis.Bytecode(code)
    return {
        one.offset: (
            one.opname.startswith(_HANDLED_AFTER),
            next(
                (
                    entry.target
                    for entry in bytecode.exception_entries
                    if entry.start <= one.offset < entry.end
                ),
                None,
            ),
        )
        for one in bytecode
    }


def _is_place(code: CodeType, last: int, following: int) -> bool:
    instructions = _instructions(code)
    handled, catcher = instructions[last]
    return handled and catcher == instructions[following][1]
