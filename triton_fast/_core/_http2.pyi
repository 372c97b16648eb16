from collections.abc import Sequence
from typing import Any, Self

from ._wire import Response

def versions() -> tuple[str, str]: ...

class Pool:
    def __new__(
        cls, host: str, port: str, unix_path: bytes, authority: str, most: int, idle_ns: int
    ) -> Self: ...
    def close(self) -> None: ...
    @property
    def inherited(self) -> bool: ...

class Call:
    def __new__(
        cls,
        pool: Pool,
        path: str,
        outgoing: Any,
        incoming: Response | None,
        metadata: Sequence[tuple[str, str]],
        encoding: str,
        deadline_ns: int | None,
        keepalive: tuple[int, int],
        busy_ns: int,
    ) -> Self: ...
    def run(self) -> None: ...
    def end(self) -> tuple[int, str, bool, str, bytes | None]: ...
    def cancel(self) -> None: ...
