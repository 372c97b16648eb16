"""The compiled part: the only bridge between Python and ``csrc``.

Imports neither grpc nor protobuf.
"""

from typing import TypeAlias

Segment: TypeAlias = tuple[int, int]
"""Address and length in bytes of a piece of memory that somebody else keeps alive."""
