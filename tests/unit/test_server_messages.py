"""What is read out of the texts of servers' errors; each text is one that Triton 2.51 gave."""

from __future__ import annotations

import pytest

from triton_fast import (
    Cancelled,
    Internal,
    InvalidArgument,
    NotFound,
    ServerError,
    StatusCode,
    Unavailable,
    Unimplemented,
)
from triton_fast.errors import server_error
from triton_fast.protocol.server_messages import (
    is_restricted,
    lost_region,
    region_in_use,
    request_error,
    too_small_output,
)

CALL = "ModelStreamInfer('m')"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Request for unknown model: 'm' is not found", NotFound),
        ("Request for unknown model: 'm' version 7 is not found", NotFound),
        ("Request for unknown model: 'm' has no available versions", NotFound),
        ("Unable to find shared memory region: 'r'", NotFound),
        ("unexpected inference input 'WRONG' for model 'm'", InvalidArgument),
        ("unexpected inference output 'X' for model 'm'", InvalidArgument),
        ("expected 1 inputs but got 0 inputs for model 'm'. Got input(s) []", InvalidArgument),
        ("[request id: 7] expected 1 inputs but got 0 inputs for model 'm'", InvalidArgument),
        ("inference input 'i' data-type is 'FP64', but model 'm' expects", InvalidArgument),
        ("unexpected shape for input 'i' for model 'm'. Expected [-1]", InvalidArgument),
        ("inference request batch-size must be <= 8 for 'm'", InvalidArgument),
        ("input byte size mismatch for input 'i' for model 'm'. Expected 4", InvalidArgument),
        ("Invalid offset + byte size for shared memory region: 'r'", InvalidArgument),
        ("parameter keys starting with 'triton_' are reserved for Triton usage", InvalidArgument),
        ("inference request for sequence 77 to model 'm' must specify the START", InvalidArgument),
        ("Request for model 'm' is not at ready state", Unavailable),
        ("Server not ready", Unavailable),
        ("Exceeds maximum queue size", Unavailable),
        ("Request timeout expired", Unavailable),
        ("This protocol is restricted, expecting header 'triton-grpc-protocol-k'", Unavailable),
        ("GRPC server is shutting down and has stopped accepting new requests.", Unavailable),
        ("ModelInfer RPC doesn't support models with decoupled policy", Unimplemented),
        ("request was cancelled", Cancelled),
        ("Canceled by the caller", Cancelled),
        ("it broke", Internal),
        ("the model expected more", Internal),
        ("", Internal),
    ],
)
def test_what_a_text_stands_for(text, kind):
    error = request_error(text, CALL, "host:1")
    assert type(error) is kind
    assert error.status == kind.default_status != StatusCode.OK
    assert (error.call, error.target) == (CALL, "host:1")
    assert "request id" not in error.message
    assert isinstance(error, ServerError)


def error(status, text):
    return server_error(status, text, call=CALL, target="host:1")


TOO_SMALL = (
    "shared memory size specified with the request for output 'it's' (8 bytes) should be at least "
    "1024 bytes to hold the results"
)


def test_an_output_that_is_too_small():
    assert too_small_output(error(StatusCode.INTERNAL, TOO_SMALL)) == ("it's", 1024)
    # A model may say what it likes, but not with this status; nor is there a number in any text.
    assert too_small_output(error(StatusCode.INVALID_ARGUMENT, TOO_SMALL)) is None
    assert too_small_output(error(StatusCode.INTERNAL, TOO_SMALL.replace("1024", "more"))) is None


@pytest.mark.parametrize("what", ["shared memory region", "system shared memory region"])
def test_a_region_that_is_lost(what):
    text = f"Unable to find {what}: 'r'"
    assert lost_region(error(StatusCode.NOT_FOUND, text)) == "r"
    assert lost_region(error(StatusCode.NOT_FOUND, text[:-5])) == ""
    assert lost_region(error(StatusCode.INTERNAL, text)) is None
    assert lost_region(error(StatusCode.NOT_FOUND, "Request for unknown model: 'm'")) is None
    # In a stream too the server says only that.
    assert "several servers" in request_error(text, CALL, "host:1").__notes__[0]


def test_a_region_that_a_call_is_on():
    text = "Cannot unregister shared memory region 'r', it is currently in use."
    assert region_in_use(error(StatusCode.INTERNAL, text))
    assert not region_in_use(error(StatusCode.INTERNAL, "it broke"))


def test_a_restricted_protocol_is_there():
    text = "This protocol is restricted, expecting header 'triton-grpc-protocol-k'"
    assert is_restricted(error(StatusCode.UNAVAILABLE, text))
    assert not is_restricted(error(StatusCode.UNAVAILABLE, "failed to connect"))
