"""Triton's datatypes and numpy's dtypes: the one table of which is which.

Imports nothing from the package. ``csrc/wire`` has the datatypes' names and sizes too; a test holds
the two against each other.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

__all__ = ["DATATYPES", "datatype_of", "dtype_of"]

# In the order of KServe's "Open Inference Protocol". BF16 and BYTES are special: numpy has no
# bfloat16 of its own, and a BYTES element has no fixed size.
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
_DATATYPES: Final[dict[np.dtype[Any], str]] = {
    dtype: datatype for datatype, dtype in _DTYPES.items()
}

DATATYPES: Final[tuple[str, ...]] = (*_DTYPES, "BF16")
"""Every datatype that can be sent and received, in Triton's spelling."""


def datatype_of(dtype: np.dtype[Any]) -> str | None:
    """Return the datatype that an array of this dtype is sent as.

    Parameters
    ----------
    dtype : numpy.dtype
        In native byte order.

    Returns
    -------
    str or None
        ``"BYTES"`` for object, ``S``, ``U`` and numpy 2's ``StringDType``; None if no datatype
        holds such elements (complex, datetime, records, a foreign byte order).
    """
    datatype = _DATATYPES.get(dtype)
    if datatype is not None:
        return datatype
    if dtype.kind in "SUT":
        return "BYTES"
    if dtype.name == "bfloat16" and dtype.itemsize == 2 and dtype.isnative:
        return "BF16"
    return None


def dtype_of(datatype: str) -> np.dtype[Any]:
    """Return the dtype of the array that a tensor of this datatype is received as.

    Parameters
    ----------
    datatype : str
        In Triton's spelling, as in ``"FP32"``.

    Returns
    -------
    numpy.dtype
        ``bfloat16`` for BF16 if ml_dtypes is installed, else ``uint16`` with the same bits; object
        for BYTES.

    Raises
    ------
    KeyError
        If there is no such datatype.
    """
    if datatype == "BF16":
        return _bfloat16()
    return _DTYPES[datatype]


def _bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes  # noqa: PLC0415 - an extra, and slow to import
    except ImportError:
        return np.dtype(np.uint16)
    bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return bfloat16
