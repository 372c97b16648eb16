"""Whether a server marks the last answer of a stream's request. Owns what one has said of it.

A request asks for the mark by a parameter. Tritons before 2.35 have none; 2.33 refuses all of whose
names begin as that one's does, and such a request is to be sent again without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..protocol.server_messages import reserves_parameters

if TYPE_CHECKING:
    from ..protocol.codec import Codec

__all__ = ["FinalAnswers"]


class FinalAnswers:
    """What is known of one server; made by an endpoint, for all its streams.

    Parameters
    ----------
    codec : Codec
        The protocol that requests are in.

    Attributes
    ----------
    refused : bool
        Whether it has refused a request that asked for the mark.
    """

    __slots__ = ("_codec", "refused")

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.refused = False

    def take_note(self, responses: Iterable[Any], requests: Iterable[bytes]) -> bool:
        """Say whether the first answers of a stream refuse what its requests have asked for.

        They may refuse another parameter of such a name, one of the caller's: then it is not known.
        """
        if not any(reserves_parameters(response.error_message) for response in responses):
            return False
        for request in requests:
            names = self._codec.parameter_names(self.unasked(request))
            if any(name.startswith("triton_") for name in names):
                return False
        self.refused = True
        return True

    def unasked(self, message: bytes) -> bytes:
        """Return a request as it is without asking."""
        return self._codec.without_final_answer(message)
