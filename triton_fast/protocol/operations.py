"""Management calls as values: what is asked, and how the answer is read.

One description of each serves clients for threads and for coroutines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar

from ..errors import ServerError

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from ..channels.base import CallOptions

__all__ = ["Ask", "Query"]

T = TypeVar("T")


def _raise(error: ServerError) -> NoReturn:
    try:
        raise error
    finally:
        del error  # or it would be kept by a frame of its own traceback, with all that is there


class Query(Generic[T]):
    """A management call.

    Parameters
    ----------
    method : str
        Bare name, ``"ModelReady"``.
    fields : mapping of str
        Of the request's message.
    read : callable
        Makes the result of the answer's message.
    failed : callable
        Makes the result of an error, where one has a meaning; raises it otherwise.
    """

    # No dataclass: making one takes longer than all the rest of this module, for every program.
    __slots__ = ("failed", "fields", "method", "read")

    def __init__(
        self,
        method: str,
        fields: Mapping[str, Any],
        read: Callable[[Any], T],
        failed: Callable[[ServerError], T] = _raise,
    ) -> None:
        self.method = method
        self.fields = fields
        self.read = read
        self.failed = failed

    @property
    def call(self) -> str:
        """What errors call it: ``"ModelReady('resnet')"``."""
        name = self.fields.get("name")
        return self.method if name is None else f"{self.method}({name!r})"

    def ask(
        self,
        exchange: Callable[[str, Mapping[str, Any], CallOptions], Message],
        options: CallOptions,
    ) -> T:
        """Ask it of what makes a call and returns the answer's message."""
        try:
            message = exchange(self.method, self.fields, options)
        except ServerError as error:
            return self.failed(error)
        return self.read(message)


class Ask(Protocol):
    """Makes management calls, as `triton_fast.client.endpoint.Endpoint.ask` does."""

    def __call__(self, query: Query[T], options: CallOptions) -> T:
        """Make a call and wait for its result."""
