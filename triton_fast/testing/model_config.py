"""What a built-in test model is: its tensors, its backend, and the text of its configuration.

Which models there are is `triton_fast.testing.catalogue`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CONFIG_TYPES", "ENSEMBLE", "PYTHON", "Model", "Signature"]

PYTHON = "python"
ENSEMBLE = "ensemble"

# Triton's name of a datatype on the wire, and its name in a model's configuration.
CONFIG_TYPES = {
    "BOOL": "TYPE_BOOL",
    "INT8": "TYPE_INT8",
    "INT16": "TYPE_INT16",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "UINT8": "TYPE_UINT8",
    "UINT16": "TYPE_UINT16",
    "UINT32": "TYPE_UINT32",
    "UINT64": "TYPE_UINT64",
    "FP16": "TYPE_FP16",
    "FP32": "TYPE_FP32",
    "FP64": "TYPE_FP64",
    "BF16": "TYPE_BF16",
    "BYTES": "TYPE_STRING",
}


@dataclass(frozen=True)
class Signature:
    """One tensor of a model's configuration.

    Attributes
    ----------
    name : str
        The tensor's name.
    datatype : str
        Its datatype, as on the wire.
    dims : tuple of int
        Its shape without a batch dimension; -1 where any size will do.
    optional : bool
        Whether an input may be left out.
    labels : str
        The file with the names of an output's classes, in the model's folder; "" for none.
    """

    name: str
    datatype: str
    dims: tuple[int, ...] = (-1,)
    optional: bool = False
    labels: str = ""

    def config(self) -> str:
        """Return the tensor's part of the configuration."""
        dims = ", ".join(map(str, self.dims))
        optional = ", optional: true" if self.optional else ""
        labels = f', label_filename: "{self.labels}"' if self.labels else ""
        return (
            f'  {{ name: "{self.name}", data_type: {CONFIG_TYPES[self.datatype]}, '
            f"dims: [ {dims} ]{optional}{labels} }}"
        )


@dataclass(frozen=True)
class Model:
    """One model.

    Attributes
    ----------
    inputs, outputs : tuple of Signature
        Its tensors.
    backend : str
        The backend's name, or `ENSEMBLE`.
    max_batch_size : int
        The largest batch; 0 for a model without a batch dimension.
    instances : int
        How many calls it runs at a time.
    more : str
        What else its configuration says.
    by_default : bool
        Whether it is served where nobody has chosen models.
    files : mapping of str to str
        Further files of its folder, and what is in them.
    code : str
        Of a Python model: the file in ``models/`` that has its code, without ``.py``.
    parts : tuple of str
        Of an ensemble: the models that it is made of.
    """

    inputs: tuple[Signature, ...]
    outputs: tuple[Signature, ...]
    backend: str
    max_batch_size: int = 0
    instances: int = 1
    more: str = ""
    by_default: bool = True
    files: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    parts: tuple[str, ...] = ()

    def config(self) -> str:
        """Return the text of ``config.pbtxt``."""
        inputs = ",\n".join(tensor.config() for tensor in self.inputs)
        outputs = ",\n".join(tensor.config() for tensor in self.outputs)
        runs_on = f'backend: "{self.backend}"\n'
        # Without this, a server with a GPU would make one instance for each GPU.
        instances = f"instance_group [ {{ kind: KIND_CPU, count: {self.instances} }} ]\n"
        if self.backend == ENSEMBLE:
            runs_on, instances = f'platform: "{ENSEMBLE}"\n', ""
        return (
            f"{runs_on}"
            f"max_batch_size: {self.max_batch_size}\n"
            f"input [\n{inputs}\n]\n"
            f"output [\n{outputs}\n]\n"
            f"{instances}"
            f"{self.more}"
        )
