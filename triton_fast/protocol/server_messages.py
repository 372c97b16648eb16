"""What we read out of the texts of a server's errors, where its status says less.

All of it is here, with the server that said so: texts are no contract, and the next version may put
them otherwise. Then an error is of a more general class, or a call is not repeated that could be.
"""

from __future__ import annotations

import re

from ..errors import (
    Internal,
    InvalidArgument,
    NotFound,
    ServerError,
    StatusCode,
    Unavailable,
    add_remark,
    server_error,
)

__all__ = [
    "advise",
    "explain_lost_region",
    "is_restricted",
    "lost_region",
    "model_state",
    "refuses_tensors",
    "region_in_use",
    "request_error",
    "reserves_parameters",
    "too_small_output",
    "unknown_model",
]

# A stream has no status beside a request's error, only Triton's text; these are the texts of its
# frontend and core, by what they stand for. What a model says itself is none of them.
_STATUS_BY_TEXT: tuple[tuple[StatusCode, re.Pattern[str]], ...] = (
    (
        StatusCode.NOT_FOUND,
        re.compile(
            r"unknown model|is not found|has no available versions"
            r"|Unable to find (?:system )?shared memory region"
        ),
    ),
    (
        StatusCode.UNIMPLEMENTED,
        re.compile(r"doesn't support|does not support|not supported|disabled"),
    ),
    (
        StatusCode.UNAVAILABLE,
        re.compile(
            r"not at ready state|Server not ready|shutting down|maximum queue size"
            r"|Request timeout expired|protocol is restricted"
        ),
    ),
    (StatusCode.CANCELLED, re.compile(r"\bcancell?ed\b", re.IGNORECASE)),
    (
        StatusCode.INVALID_ARGUMENT,
        re.compile(
            r"^(?:\[[^\]]*\] )?(?:unexpected |expected |batch-size must|input |inference input"
            r"|inference request |Invalid |invalid |unable to parse "
            r"|parameter keys starting with )|must specify the START flag"
        ),
    ),
)
_PREFIX = re.compile(r"^\[request id: [^\]]*\] ")

# Triton 2.51; the numbers are what to do about it.
_TOO_SMALL = re.compile(
    r"shared memory size specified with the request for output '(?P<name>.*)' \(\d+ bytes\) "
    r"should be at least (?P<size>\d+) bytes"
)
_LOST = re.compile(r"Unable to find (?:system )?shared memory region(?:: '(?P<name>.*)')?")

_EXPLANATION = (
    "a region is known where it was registered, and nowhere else: the server was started anew "
    "since, or several servers answer at this address (a proxy's, or a port that they share); give "
    "the client the address of one of them"
)


def model_state(text: str) -> str:
    """Return a model's state as a repository's index has it, as in ``"READY"``.

    MLServer 1.7 sends the name of Python's enumeration, ``"State.READY"``.
    """
    return text.removeprefix("State.")


def request_error(text: str, call: str, target: str) -> ServerError:
    """Return the error for a text that stands in a stream in place of an answer.

    Parameters
    ----------
    text : str
        ModelStreamInferResponse.error_message.
    call, target : str
        See `triton_fast.errors.ServerError`.

    Returns
    -------
    ServerError
        The subclass that the call would have raised if it were no stream, as far as the text tells;
        `Internal` for what a model says.
    """
    message = _PREFIX.sub("", text)
    for status, pattern in _STATUS_BY_TEXT:
        if pattern.search(message):
            error = server_error(status, message, call=call, target=target)
            advise(error)
            return error
    return server_error(StatusCode.INTERNAL, message, call=call, target=target)


def too_small_output(error: ServerError) -> tuple[str, int] | None:
    """Return which output did not fit into its shared memory, and the bytes that it takes.

    None if the error is another one.
    """
    found = _TOO_SMALL.search(error.message) if isinstance(error, Internal) else None
    return None if found is None else (found["name"], int(found["size"]))


def lost_region(error: ServerError) -> str | None:
    """Return which shared memory region is unknown to the server, as after it was started anew.

    None if the error is another one; empty if the text does not say which. Triton 2.51.
    """
    found = _LOST.search(error.message) if isinstance(error, NotFound) else None
    return None if found is None else found["name"] or ""


# Triton 2.28 to 2.55.
_ADVICE = (
    (
        StatusCode.UNIMPLEMENTED,
        re.compile(r"doesn't support models with decoupled"),
        "call it by stream, which takes any number of answers",
    ),
    (
        StatusCode.INVALID_ARGUMENT,
        re.compile(r"must specify a non-zero or non-empty correlation ID"),
        "a model that keeps state is called by sequence",
    ),
    (
        StatusCode.INVALID_ARGUMENT,
        re.compile(r"must specify the START flag"),
        "the server knows no such sequence (any more); begin another",
    ),
)
_TENSORS = re.compile(
    r"^(?:\[[^\]]*\] )?(?:unexpected inference (?:in|out)put |unexpected shape for input "
    r"|inference input '.*' data-type is |expected (?:\d+|a minimum of \d+|at least \d+) inputs)"
)


def advise(error: BaseException) -> None:
    """Add to a refusal what its caller does about it: the server says only what is wrong."""
    if isinstance(error, ServerError):
        for status, text, remark in _ADVICE:
            if error.status == status and text.search(error.message):
                add_remark(error, remark)
    explain_lost_region(error)


def refuses_tensors(error: BaseException | None) -> bool:
    """Tell whether a request was refused for the names, datatypes or shapes of its tensors."""
    return isinstance(error, InvalidArgument) and _TENSORS.match(error.message) is not None


def unknown_model(error: BaseException | None) -> bool:
    """Tell whether there is no such model, or version of it, at the server."""
    return isinstance(error, NotFound) and "unknown model" in error.message


def explain_lost_region(error: BaseException) -> None:
    """Add to an error of a region that is unknown how that may be: the server says only that."""
    if isinstance(error, ServerError) and lost_region(error) is not None:
        error.add_note(_EXPLANATION)


def reserves_parameters(text: str) -> bool:
    """Tell whether a stream's request was refused for a parameter that later servers know.

    Triton 2.33: "parameter keys starting with 'triton_' are reserved for Triton usage …".
    """
    return text.startswith("parameter keys starting with 'triton_' are reserved")


def region_in_use(error: ServerError) -> bool:
    """Tell whether a region is not unregistered because a call is on it.

    Triton 2.51 and 2.52; later ones put it off.
    """
    return isinstance(error, Internal) and "currently in use" in error.message


def is_restricted(error: ServerError) -> bool:
    """Tell whether a protocol is only for callers with a certain header: the server is there.

    Triton's ``--grpc-restricted-protocol``, 2.51.
    """
    return isinstance(error, Unavailable) and "restricted" in error.message
