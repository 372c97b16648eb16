"""The compiled part: the only bridge between Python and ``csrc``.

Imports neither grpc nor protobuf.
"""

from importlib.util import find_spec
from typing import TypeAlias

Segment: TypeAlias = tuple[int, int]
"""Address and length in bytes of a piece of memory that somebody else keeps alive."""


def __getattr__(name: str) -> object:
    # Asked when a submodule is imported that is not loaded yet, or is not there. A build without
    # _http2 is complete: there is another channel.
    if name in {"_errors", "_shm", "_wire"} and find_spec(f"{__name__}.{name}") is None:
        raise ImportError(
            f"triton_fast was imported from {__file__.rpartition('/triton_fast/')[0]}, where it is "
            "not compiled. If that is a clone of its source, start Python in another folder, or "
            "with -P, to import the triton_fast that is installed; or install it: pip install ."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
