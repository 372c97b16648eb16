"""What cannot leave its process: the base of calls that are under way. Owns nothing else."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["OneProcess"]


class OneProcess:
    """The base of what stands for a call of this process."""

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} stands for a call of this process, and is not pickled or "
            "copied; pickle the client, and begin another in the other process"
        )
