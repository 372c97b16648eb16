"""Shared memory by hand, for those who want to place their tensors themselves."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np

from .._core._shm import Segment
from ..errors import InvalidOption, InvalidTensor
from ..inference.request import RequestedOutput, shared_memory_parameters
from ..inference.tensor import Tensor
from ..options.values import checked_text, instead, whole_number
from ..protocol.datatypes import datatype_of
from .ownership import region_name
from .regions import Regions
from .regions_async import AsyncRegions
from .sharing import array_layout

if TYPE_CHECKING:
    from ..client.client import Client
    from ..client.client_async import AsyncClient

__all__ = ["SharedMemoryRegion"]


class SharedMemoryRegion:
    """A piece of system shared memory that servers can be told of.

    Made by `create` or `attach`. A `Client` needs none: it has regions of its own. This is for
    tensors that another process writes or reads, a camera's driver say.

    Attributes
    ----------
    name : str
        What requests call it, once it is registered.
    key : str
        Its POSIX name, as for shm_open(3).
    byte_size : int, bytes
        How large it is.

    Notes
    -----
    Owns its mapping until `close`, which refuses while arrays on it are alive, and the file if it
    has made it, until `unlink`; leaving the ``with`` block does both. Servers on which it is
    registered keep the memory until `unregister`.

    Examples
    --------
    >>> with SharedMemoryRegion.create(2 * 602_112) as region:  # doctest: +SKIP
    ...     region.register(client)
    ...     region.array((1, 3, 224, 224), np.float32)[:] = image
    ...     inputs = {"data_0": region.tensor((1, 3, 224, 224), np.float32)}
    ...     scores = region.output("fc6_1", byte_size=4000, offset=602_112)
    ...     client.infer("densenet", inputs, outputs=[scores])
    ...     region.array((1000,), np.float32, offset=602_112).argmax()
    ...     region.unregister(client)
    """

    def __init__(self, segment: Segment, name: str, offset: int, *, owned: bool) -> None:
        self._segment = segment
        self._owned = owned
        self._offset = offset  # in the POSIX object
        self.name = name

    @classmethod
    def create(cls, byte_size: int, *, name: str | None = None) -> Self:
        """Return a new region, readable and writable for this user only.

        Parameters
        ----------
        byte_size : int, bytes
            All of it is allocated at once.
        name : str, optional
            What requests will call it; by default something that nobody else has.

        Raises
        ------
        SharedMemoryError
            If the system has not as much; ``errno`` says why.
        InvalidOption
            If the size is not a positive number, or the name no str.
        """
        size = whole_number(byte_size, "byte_size must be a number of bytes", 1)
        named = _named(name)
        return cls(Segment.create(size), named, 0, owned=True)

    @classmethod
    def attach(cls, key: str, byte_size: int, *, offset: int = 0, name: str | None = None) -> Self:
        """Return a region that another process has made.

        Parameters
        ----------
        key : str
            Its POSIX name, ``"/camera"``.
        byte_size, offset : int, bytes
            Which part of it; the offset is a multiple of the page size.
        name : str, optional
            What requests will call it; by default something that nobody else has.

        Raises
        ------
        SharedMemoryError
            If there is no such memory, or it is shorter, or not ours to write to.
        InvalidOption
            If an argument is not of its type.
        """
        posix_name = checked_text(key, "key")
        if "\0" in posix_name:
            raise InvalidOption("key must be a POSIX name, and no such name has a NUL in it")
        size = whole_number(byte_size, "byte_size must be a number of bytes", 1)
        first = whole_number(offset, "offset must be a number of bytes", 0)
        named = _named(name)
        return cls(Segment.attach(posix_name, size, first), named, first, owned=False)

    @property
    def key(self) -> str:
        """Its POSIX name."""
        return self._segment.key

    @property
    def byte_size(self) -> int:
        """How large it is, in bytes."""
        return self._segment.byte_size

    @overload
    def register(self, client: Client) -> None: ...
    @overload
    def register(self, client: AsyncClient) -> Awaitable[None]: ...
    def register(self, client: Client | AsyncClient) -> Awaitable[None] | None:
        """Have a client's server map it; to be awaited if it is an `AsyncClient`.

        Raises
        ------
        ServerError
            `AlreadyExists` if the name is taken; `Internal` if the server cannot open the memory,
            because it runs elsewhere say; `Unimplemented` if it takes no shared memory.
        """
        regions = _regions_of(client)
        return regions.register(  # type: ignore[no-any-return]  # of one face or the other
            self.name, self.key, self.byte_size, self._offset
        )

    @overload
    def unregister(self, client: Client) -> None: ...
    @overload
    def unregister(self, client: AsyncClient) -> Awaitable[None]: ...
    def unregister(self, client: Client | AsyncClient) -> Awaitable[None] | None:
        """Have a client's server let go of it, once no call uses it any more; see `register`."""
        return _regions_of(client).unregister(self.name)  # type: ignore[no-any-return]

    def array(self, shape: Sequence[int], dtype: Any, offset: int = 0) -> np.ndarray[Any, Any]:
        """Return an array on its memory, which keeps it from being closed.

        Raises
        ------
        InvalidTensor
            If the region does not reach as far.
        """
        dimensions, kind = array_layout(shape, dtype)
        count = math.prod(dimensions)
        first = self._check(count * kind.itemsize, offset)
        if count == 0 or kind.itemsize == 0:
            return np.empty(dimensions, kind)
        # Not np.ndarray, which would keep the segment, but hold no buffer that it could count.
        return np.frombuffer(memoryview(self._segment), kind, count, first).reshape(dimensions)

    def tensor(self, shape: Sequence[int], dtype: Any, offset: int = 0) -> Tensor:
        """Return what stands for such an array among a call's inputs.

        Raises
        ------
        InvalidTensor
            If the region does not reach as far, or no datatype has that dtype.
        """
        dimensions, kind = array_layout(shape, dtype)
        datatype = datatype_of(kind)
        if datatype is None or datatype == "BYTES":
            raise InvalidTensor(f"dtype {kind} has no datatype of elements of one size")
        byte_size = math.prod(dimensions) * kind.itemsize
        return Tensor(None, datatype, dimensions, parameters=self._parameters(byte_size, offset))

    def output(self, name: str, byte_size: int, offset: int = 0) -> RequestedOutput:
        """Return what asks for an output to be written here.

        Parameters
        ----------
        name : str
            The output's name.
        byte_size, offset : int, bytes
            How much room there is for it, and where.

        Raises
        ------
        InvalidTensor
            If the region does not reach as far.
        """
        return RequestedOutput(name, self._parameters(byte_size, offset))

    def unlink(self) -> None:
        """Remove its file, so that nobody can attach it any more. Idempotent."""
        self._segment.unlink()

    def close(self) -> None:
        """Give out no more arrays; the mapping goes back with this object. Idempotent.

        Raises
        ------
        SharedMemoryError
            If arrays on it are alive; the message says how many.
        """
        self._segment.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._owned:
            self.unlink()
        self.close()

    def __repr__(self) -> str:
        return f"SharedMemoryRegion({self.name!r}, {self.byte_size} bytes at {self.key!r})"

    def _parameters(self, byte_size: int, offset: int) -> dict[str, str | int]:
        size = whole_number(byte_size, "byte_size must be a number of bytes", 0, kind=InvalidTensor)
        return shared_memory_parameters(self.name, self._check(size, offset), size)

    def _check(self, byte_size: int, offset: int) -> int:
        """Return an offset at which the region has so many bytes."""
        first = whole_number(offset, "offset must be a number of bytes", 0, kind=InvalidTensor)
        if first + byte_size > self.byte_size:
            raise InvalidTensor(
                f"{byte_size} bytes at offset {first} do not lie in the region {self.name!r}, "
                f"which has {self.byte_size}"
            )
        return first


def _named(name: str | None) -> str:
    return region_name() if name is None else checked_text(name, "name")


def _regions_of(client: Any) -> Any:
    regions = getattr(client, "shared_memory", None)
    if not isinstance(regions, Regions | AsyncRegions):
        raise InvalidOption(f"client must be a Client or an AsyncClient, got {instead(client)}")
    return regions
