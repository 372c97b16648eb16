"""The test model ``text_numbers``: strings to numbers and back. Runs inside the server."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]


class TritonPythonModel:
    """What the Python backend looks for."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request; a text that is no number is the model's error."""
        responses = []
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "TEXT").as_numpy()
            value = pb_utils.get_input_tensor_by_name(request, "VALUE").as_numpy()
            written = [repr(float(number)).encode() for number in value]
            outputs = [
                pb_utils.Tensor("PARSED", np.array([float(item) for item in text], np.float64)),
                pb_utils.Tensor("WRITTEN", np.array(written, dtype=np.object_)),
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
