"""The test model ``cancel_aware_python``: takes time, notices cancellation. Runs in the server."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]

_LOOK = 0.01


class TritonPythonModel:
    """What the Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002
        """Begin with nothing seen."""
        self._completed = 0
        self._cancelled = 0

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request when its time is over, or when it is cancelled."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        seconds = pb_utils.get_input_tensor_by_name(request, "SECONDS").as_numpy()
        if seconds.size != 1:
            message = f"SECONDS has {seconds.size} elements instead of one"
            failure = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=failure)
        start = time.monotonic()
        end = start + float(seconds[0])
        if seconds[0] >= 0:
            while not (cancelled := request.is_cancelled()) and time.monotonic() < end:
                time.sleep(min(_LOOK, max(0.0, end - time.monotonic())))
            if cancelled:
                self._cancelled += 1
                failure = pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED)
                return pb_utils.InferenceResponse(error=failure)
            self._completed += 1
        values = {
            "COMPLETED": np.array([self._completed], np.int64),
            "CANCELLED": np.array([self._cancelled], np.int64),
            "TOOK": np.array([time.monotonic() - start], np.float32),
        }
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, value) for name, value in values.items()]
        )
