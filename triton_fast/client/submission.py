"""An inference that nobody waits for: from its start until its future is settled."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..inference.result import InferResult
from ..protocol.server_messages import refuses_tensors, unknown_model
from .future import CallFuture
from .repeats import Repeats, distrust

if TYPE_CHECKING:
    from ..channels.base import CallOptions, Channel
    from ..inference.request import Prepared
    from ..inference.tensor import InputTensor
    from ..shared_memory.placement import SharedMemory
    from .attempt import Attempt

__all__ = ["Submission"]


class Submission:
    """One inference on its way.

    Parameters
    ----------
    attempt : Attempt
        Its first try; released here.
    prepared : Prepared
        What was asked for.
    tensors : list of InputTensor
        The inputs.
    shared : SharedMemory or None
        The client's use of shared memory.
    make_again : callable
        Makes the call again and waits, by the rules that it is given.
    explain : callable
        Asks the server what a refusal leaves unsaid, and waits; raises what is to be told in place.

    Attributes
    ----------
    future : CallFuture
        Of the result.
    """

    def __init__(
        self,
        attempt: Attempt,
        prepared: Prepared,
        tensors: list[InputTensor],
        shared: SharedMemory | None,
        make_again: Callable[[Repeats], InferResult],
        explain: Callable[[BaseException], None],
    ) -> None:
        self.future: CallFuture[InferResult] = CallFuture()
        self._attempt = attempt
        self._prepared = prepared
        self._tensors = tensors
        self._shared = shared
        self._make_again = make_again
        self._explain = explain
        self._repeats: Repeats

    def start(self, channel: Channel, method: str, options: CallOptions) -> None:
        """Start the call; see `triton_fast.channels.base.Channel.start`.

        Raises
        ------
        ClosedError
            If the channel is closed.
        """
        attempt = self._attempt
        future = self.future  # not this object, which nothing of its own is to hold on to
        self._repeats = Repeats(options.deadline_ns, lambda: not future.cancelled())
        try:
            call = channel.start(method, attempt.request, attempt.response, options, self._on_done)
            self.future.attach(call)
        except BaseException:
            attempt.release()
            raise

    def _on_done(self, error: BaseException | None) -> None:
        """Take the call's end, on a thread that must not wait."""
        result = None
        pause = None
        attempt = self._attempt
        if error is None:
            try:
                result = attempt.result()
            except Exception as failure:  # noqa: BLE001 - it is the future's now
                error = failure
                distrust(failure, self._shared, self._prepared, attempt.placement)
        else:
            pause = self._repeats.after(error, self._shared, self._prepared, attempt.placement)
        attempt.release()
        # Rare, and on threads of their own: those of the channel, which tell the end of calls, must
        # not wait for one. Where there is no thread to be had, the error is told as it is.
        if pause is not None and _start(self._repeat, pause):
            return
        if (refuses_tensors(error) or unknown_model(error)) and _turns:
            with contextlib.suppress(IndexError):
                _turns.pop()
                if _start(self._settle_explained, error):
                    return
                _turns.append(None)
        if self._shared is not None and result is not None:
            self._shared.learn(self._prepared, self._tensors, result)
        self.future.settle(result, error)
        del error  # it may lead here

    def _repeat(self, pause: float) -> None:
        time.sleep(pause)
        try:
            result = self._make_again(self._repeats)
        except BaseException as failure:  # noqa: BLE001 - it is the future's now
            self.future.settle(None, failure)
        else:
            self.future.settle(result, None)

    def _settle_explained(self, error: BaseException) -> None:
        try:
            self._explain(error)
        except BaseException as found:  # noqa: BLE001 - it is the future's now
            self.future.settle(None, found)
        else:
            self.future.settle(None, error)
        finally:
            _turns.append(None)


# As many as there are futures whose errors are explained at a time; those of others are told as
# they are. A list, for a lock might be taken when the process is forked.
_turns = [None] * 8


def _start(work: Callable[..., None], *arguments: object) -> bool:
    """Have a thread do something; say whether there was one to be had."""
    try:
        threading.Thread(target=work, args=arguments, name="triton_fast", daemon=True).start()
    except RuntimeError:
        return False
    return True
