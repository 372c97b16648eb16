"""The network as Triton's Python backend runs it: this file is copied beside its weights.

It runs inside the server, in a Python process that has numpy, and no scikit-learn and no client.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]


class TritonPythonModel:
    """What the Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the weights of this version of the model."""
        with np.load(Path(args["model_repository"], args["model_version"], "weights.npz")) as file:
            self.weights = dict(file)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request: IMAGE, shape (N, 8, 8), gives SCORES (N, 10) and DIGIT (N, 1)."""
        responses = []
        for request in requests:
            images = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
            scores = self.scores(images.reshape(len(images), -1))
            digits = scores.argmax(axis=1, keepdims=True)
            outputs = [pb_utils.Tensor("SCORES", scores), pb_utils.Tensor("DIGIT", digits)]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses

    def scores(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return each digit's probability: one hidden layer (ReLU), then softmax."""
        weights = self.weights
        hidden = np.maximum(pixels @ weights["hidden"] + weights["hidden_bias"], 0)
        output = hidden @ weights["output"] + weights["output_bias"]
        scores: np.ndarray[Any, Any] = np.exp(output - output.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        return scores
