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
from ..protocol.datatypes import datatype_of
from .ownership import region_name

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
            If the size is not a positive number.
        """
        if isinstance(byte_size, bool) or not isinstance(byte_size, int) or byte_size <= 0:
            raise InvalidOption(f"byte_size must be a number of bytes from 1 up, got {byte_size!r}")
        return cls(Segment.create(byte_size), name or region_name(), 0, owned=True)

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
        """
        segment = Segment.attach(key, byte_size, offset)
        return cls(segment, name or region_name(), offset, owned=False)

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
        regions = client.shared_memory
        return regions.register(self.name, self.key, self.byte_size, self._offset)

    @overload
    def unregister(self, client: Client) -> None: ...
    @overload
    def unregister(self, client: AsyncClient) -> Awaitable[None]: ...
    def unregister(self, client: Client | AsyncClient) -> Awaitable[None] | None:
        """Have a client's server let go of it, once no call uses it any more; see `register`."""
        return client.shared_memory.unregister(self.name)

    def array(self, shape: Sequence[int], dtype: Any, offset: int = 0) -> np.ndarray[Any, Any]:
        """Return an array on its memory, which keeps it from being closed.

        Raises
        ------
        InvalidTensor
            If the region does not reach as far.
        """
        kind = np.dtype(dtype)
        count = math.prod(shape)
        self._check(count * kind.itemsize, offset)
        if count == 0:
            return np.empty(shape, kind)
        # Not np.ndarray, which would keep the segment, but hold no buffer that it could count.
        return np.frombuffer(memoryview(self._segment), kind, count, offset).reshape(shape)

    def tensor(self, shape: Sequence[int], dtype: Any, offset: int = 0) -> Tensor:
        """Return what stands for such an array among a call's inputs.

        Raises
        ------
        InvalidTensor
            If the region does not reach as far, or no datatype has that dtype.
        """
        kind = np.dtype(dtype)
        datatype = datatype_of(kind)
        if datatype is None or datatype == "BYTES":
            raise InvalidTensor(f"dtype {kind} has no datatype of elements of one size")
        byte_size = math.prod(shape) * kind.itemsize
        return Tensor(None, datatype, shape, parameters=self._parameters(byte_size, offset))

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
        self._check(byte_size, offset)
        return shared_memory_parameters(self.name, offset, byte_size)

    def _check(self, byte_size: int, offset: int) -> None:
        if offset < 0 or byte_size < 0 or offset + byte_size > self.byte_size:
            raise InvalidTensor(
                f"{byte_size} bytes at offset {offset} do not lie in the region {self.name!r}, "
                f"which has {self.byte_size}"
            )
