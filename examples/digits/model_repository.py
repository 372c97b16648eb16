"""The folder that Triton serves: the digits network, and an identity to measure the way there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from triton_fast.testing import write_test_models

if TYPE_CHECKING:
    from training import Array

__all__ = ["MAX_BATCH_SIZE", "write_model_repository"]

MAX_BATCH_SIZE = 256

_CONFIG = f"""\
backend: "python"
max_batch_size: {MAX_BATCH_SIZE}
input [
  {{ name: "IMAGE", data_type: TYPE_FP32, dims: [ 8, 8 ] }}
]
output [
  {{ name: "SCORES", data_type: TYPE_FP32, dims: [ 10 ] }},
  {{ name: "DIGIT", data_type: TYPE_INT64, dims: [ 1 ] }}
]
instance_group [ {{ kind: KIND_CPU, count: 1 }} ]
"""


def write_model_repository(folder: Path, weights: dict[str, Array]) -> None:
    """Write a model repository.

    ::

        digits/config.pbtxt      its name, tensors and backend
        digits/1/model.py        version 1: the code,
        digits/1/weights.npz     and the weights
        identity_fp32/           gives back what it gets; from triton_fast.testing

    Parameters
    ----------
    folder : Path
        Where to.
    weights : dict of str to ndarray
        The network's.
    """
    version = folder / "digits" / "1"
    version.mkdir(parents=True)
    (folder / "digits" / "config.pbtxt").write_text(_CONFIG, encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("model.py"), version / "model.py")
    np.savez(version / "weights.npz", **weights)  # type: ignore[arg-type]  # allow_pickle is a bool
    write_test_models(folder, ["identity_fp32"])
