"""What a client's arguments say of shared memory. Imports what it takes only if it is used."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ..channels.native.channel import native_address
from ..errors import InvalidOption, InvalidTensor
from ..inference.tensor import checked_shape
from ..options.values import instead, whole_number

if TYPE_CHECKING:
    from ..channels.base import CallOptions
    from .placement import SharedMemory
    from .registration import Registry

__all__ = ["SharedFactory", "array_layout", "shared_factory"]

_MOST_DIMENSIONS = 32  # numpy 1's; numpy 2 has 64

SharedFactory: TypeAlias = "Callable[[Registry, Callable[[], CallOptions]], SharedMemory]"
"""Given the server's register, and what returns the options of the calls that closing takes."""


def shared_factory(
    url: str, shared_memory: bool | Literal["auto"], limit: int
) -> SharedFactory | None:
    """Return what makes a client's use of shared memory; None for a client without. Can be pickled.

    Parameters
    ----------
    url, shared_memory, limit
        ``url``, ``shared_memory`` and ``shared_memory_limit`` of `triton_fast.Client`.

    Raises
    ------
    InvalidOption
        If they make no sense, or not together.
    """
    checked: Any = shared_memory
    if not isinstance(checked, bool) and not (isinstance(checked, str) and checked == "auto"):
        raise InvalidOption(
            f"shared_memory must be 'auto', True or False, got {instead(shared_memory)}"
        )
    limit = whole_number(limit, "shared_memory_limit must be a number of bytes", 0)
    if not shared_memory or not limit:
        return None
    required = shared_memory is True
    if native_address(url) is None:
        # Each of several servers would have to know our regions. That several answer at one
        # address comes out when it is used: see several_servers.py.
        if required:
            raise InvalidOption(f"shared_memory=True: target {url!r} is not one address")
        return None
    return partial(_open_shared, url, limit, required)


def _open_shared(
    url: str,
    limit: int,
    required: bool,
    registry: Registry,
    closing_options: Callable[[], CallOptions],
) -> SharedMemory:
    from .placement import SharedMemory  # noqa: PLC0415 - imported on use
    from .pool import SlotPool  # noqa: PLC0415

    pool = SlotPool(registry, limit, closing_options)
    return SharedMemory(pool, required=required, url=url)


def array_layout(shape: int | Sequence[int], dtype: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and dtype of an array that is asked for; see `triton_fast.Client.empty`.

    Raises
    ------
    InvalidTensor
        If there are no such arrays in shared memory.
    """
    try:
        kind = np.dtype(dtype)
    except Exception as error:
        raise InvalidTensor(f"dtype must be one of numpy's, got {instead(dtype)}") from error
    one = isinstance(shape, numbers.Integral) and not isinstance(shape, bool)
    dimensions = checked_shape((shape,) if one else shape)
    if kind.hasobject:
        raise InvalidTensor(f"there are no shared arrays of {kind} {list(dimensions)}")
    if len(dimensions) > _MOST_DIMENSIONS:
        raise InvalidTensor(f"there are no arrays of {len(dimensions)} dimensions")
    if math.prod(dimensions) * kind.itemsize >= 1 << 63:
        raise InvalidTensor(f"there is no memory for arrays of {kind} {list(dimensions)}")
    return dimensions, kind
