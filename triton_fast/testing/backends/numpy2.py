"""What lets Triton's Python backend work with numpy 2: appended to its own Python module.

The stub processes in the nvidia-pytriton wheel were built for numpy 1 and read numpy 2's arrays
wrongly, without an error: every input tensor comes out as copies of its first element, every output
tensor has no bytes. Their DLPack functions do not touch numpy's memory layout and are right. So
here both ways go through DLPack; models are written as for any Triton server. Strings have no
DLPack form, and are refused. Not needed, and not used, when the server's Python has numpy 1.

Runs inside the server, once for each Python model, before the model sees its first tensor.
"""

import ctypes
from typing import Any

import c_python_backend_utils  # type: ignore[import-not-found]
import numpy as np

_NATIVE: Any = c_python_backend_utils.Tensor
_STRINGS = "with numpy 2, Python models of this Triton server cannot have tensors of strings"
# The stub calls a capsule that it has used by a wrong name, and numpy complains.
_USED = b"used_dltensor"
_name_capsule = ctypes.pythonapi.PyCapsule_SetName
_name_capsule.argtypes = [ctypes.py_object, ctypes.c_char_p]


class _Tensor(_NATIVE):  # type: ignore[misc]
    """Makes the native tensors: has no instances of its own."""

    def __new__(cls, name: str, array: Any) -> Any:
        array = np.require(array, requirements=["C", "W"])
        if array.dtype.kind in "OSUT":
            raise TypeError(f"output {name!r}: {_STRINGS}")
        capsule = array.__dlpack__()
        tensor = _NATIVE.from_dlpack(name, capsule)
        _name_capsule(capsule, _USED)
        return tensor


def _as_numpy(self: Any) -> Any:
    return np.array(np.from_dlpack(self))


def deserialize_bytes_tensor(encoded: Any) -> Any:  # noqa: ARG001 - the stub's own name and signature
    """Refuse an input of strings, before the model is asked."""
    raise TypeError(_STRINGS)


_NATIVE.as_numpy = _as_numpy
# The stub takes the name that models use from here.
c_python_backend_utils.Tensor = _Tensor
