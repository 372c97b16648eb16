"""What lets Triton's Python backend work with numpy 2: appended to its own Python module.

The stub processes in the nvidia-pytriton wheel were built for numpy 1 and read numpy 2's arrays
wrongly, without an error. The size of an element is elsewhere in numpy 2, and what they take for it
is 0: every input tensor would come out as copies of its first element, every output tensor would
have no bytes. So here

- what makes the arrays of inputs is told nothing of strides, which the stub has computed from that
  size;
- outputs of numbers go through the stub's DLPack functions, which do not touch numpy's memory
  layout;
- the encoded bytes of outputs of strings get a type of element whose size the stub reads right.

Models are written as for any Triton server. Not needed, and not used, when the server's Python has
numpy 1.

Runs inside the server, once for each Python model, before the model sees its first tensor.
"""

import ctypes
import importlib
import struct
from typing import Any

import c_python_backend_utils  # type: ignore[import-not-found]
import numpy as np

# What was built for numpy 1 gets the table of numpy's C functions from here; other code gets it
# from elsewhere, and sees nothing of the stub's own copy.
_multiarray: Any = importlib.import_module("numpy.core.multiarray")
_TABLE_SIZE = 283  # it uses none beyond
_NEW_FROM_DESCR = 94
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

_address = _get_pointer(_multiarray._ARRAY_API, None)
_table = (ctypes.c_void_p * _TABLE_SIZE).from_buffer_copy(
    (ctypes.c_void_p * _TABLE_SIZE).from_address(_address)
)
# type, element type, dimensions, shape, strides, data, flags, object -> array
_NewFromDescr: Any = ctypes.PYFUNCTYPE(
    ctypes.c_void_p,
    *[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p],
    *[ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p],
)
_new_from_descr = _NewFromDescr(_table[_NEW_FROM_DESCR])


def _new_without_strides(
    kind: Any, element: Any, dimensions: Any, shape: Any, _: Any, data: Any, flags: Any, other: Any
) -> Any:
    return _new_from_descr(kind, element, dimensions, shape, None, data, flags, other)


_new_function = _NewFromDescr(_new_without_strides)
_table[_NEW_FROM_DESCR] = ctypes.cast(_new_function, ctypes.c_void_p).value
_multiarray._ARRAY_API = _new_capsule(ctypes.addressof(_table), None, None)


_NATIVE: Any = c_python_backend_utils.Tensor
# The stub calls a capsule that it has used by a wrong name, and numpy complains.
_USED = b"used_dltensor"
_name_capsule = ctypes.pythonapi.PyCapsule_SetName
_name_capsule.argtypes = [ctypes.py_object, ctypes.c_char_p]
# Where numpy 1 has the size of an element, numpy 2 has flags; pickle's state of a type has them
# last. (1 says that elements refer to objects. These do not, and who would follow never gets them.)
_ONE_BYTE = (3, "|", None, ("byte",), {"byte": (np.dtype(np.uint8), 0)}, 1, 1, 1)


class _Tensor(_NATIVE):  # type: ignore[misc]
    """Makes the native tensors: has no instances of its own."""

    def __new__(cls, name: str, array: Any) -> Any:
        array = np.require(array, requirements=["C", "W"])
        if array.dtype == np.object_:
            return _NATIVE(name, array)
        capsule = array.__dlpack__()
        tensor = _NATIVE.from_dlpack(name, capsule)
        _name_capsule(capsule, _USED)
        return tensor


def serialize_byte_tensor(array: Any) -> Any:
    """Return the encoded bytes of an output of strings."""
    encoded = bytearray()
    for item in array.ravel().tolist():
        string = item if isinstance(item, bytes) else str(item).encode()
        encoded += struct.pack("<I", len(string)) + string
    element: Any = np.dtype([("byte", np.uint8)])
    served = np.frombuffer(encoded, element)
    element.__setstate__(_ONE_BYTE)
    return served


# The stub takes the name that models use from here.
c_python_backend_utils.Tensor = _Tensor
