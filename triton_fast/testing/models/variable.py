"""The test model ``variable``: the outputs' shapes follow the inputs. Runs inside the server."""

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
            row = pb_utils.get_input_tensor_by_name(request, "ROW").as_numpy()
            count = int(pb_utils.get_input_tensor_by_name(request, "COUNT").as_numpy()[0])
            outputs = [
                pb_utils.Tensor("TWICE", np.concatenate([row, row])),
                pb_utils.Tensor("TILED", np.tile(row, (count, 1))),
            ]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses
