"""The test model ``strings``: upper case and length of strings. Runs inside the server."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]


class TritonPythonModel:
    """What the Python backend looks for."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request."""
        responses = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
            upper = [item.decode().upper().encode() for item in text]
            outputs = [
                pb_utils.Tensor("UPPER", np.array(upper, dtype=np.object_)),
                pb_utils.Tensor("LENGTH", np.array([len(item) for item in text], dtype=np.int32)),
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
