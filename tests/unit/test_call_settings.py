"""What calls have in common stays apart from what one of them has of its own."""

from __future__ import annotations

from itertools import permutations

import pytest

from triton_fast import AsyncClient, Client, InvalidOption
from triton_fast.client.call_settings import CallSettings
from triton_fast.inference.request import UNSET

OWN = {
    "nothing": (None, None, None, UNSET),
    "deadline": (5, None, None, UNSET),
    "hooked": (None, {"h": "1"}, None, UNSET),
    "headers": (None, None, {"own": "2"}, UNSET),
    "compression": (None, None, None, "deflate"),
    "no compression": (None, None, None, None),
}
EXPECTED = {
    "nothing": (None, (("all", "0"),), "gzip"),
    "deadline": (5, (("all", "0"),), "gzip"),
    "hooked": (None, (("all", "0"), ("h", "1")), "gzip"),
    "headers": (None, (("all", "0"), ("own", "2")), "gzip"),
    "compression": (None, (("all", "0"),), "deflate"),
    "no compression": (None, (("all", "0"),), None),
}


@pytest.mark.parametrize(("first", "second"), list(permutations(OWN, 2)))
def test_one_call_leaves_nothing_to_the_next(first, second):
    settings = CallSettings(
        timeout=None, headers={"all": "0"}, header_hook=None, compression="gzip"
    )
    for own in (first, second, first):
        options = settings.options("call", *OWN[own])
        assert (options.deadline_ns, tuple(options.headers), options.compression) == EXPECTED[own]
        assert options.call == "call"
    assert settings.options("other", *OWN[second]).call == "other"


@pytest.mark.parametrize("channel", ["native", "grpc"])
@pytest.mark.parametrize("name", ["te", "Content-Type", "host", ":authority", "grpc-timeout"])
def test_headers_of_grpcs_own_are_refused_wherever_they_are_from(channel, name):
    headers = {"fine": "1", name: "x"}
    for face in (Client, AsyncClient):
        with pytest.raises(InvalidOption, match=f"header '{name}' cannot be set"):
            face("localhost:1", channel=channel, headers=headers)
    with Client("localhost:1", channel=channel, header_hook=lambda call: headers) as client:
        with pytest.raises(InvalidOption, match=f"header '{name}' cannot be set"):
            client.is_live()
    with Client("localhost:1", channel=channel) as client:
        for call in (client.is_live, client.open_stream, client.health):
            with pytest.raises(InvalidOption, match=f"header '{name}' cannot be set"):
                call(headers=headers)


def test_any_number_of_calls():
    settings = CallSettings(timeout=None, headers=None, header_hook=None, compression=None)
    for number in range(2000):
        assert settings.options(f"{number}", *OWN["nothing"]).call == f"{number}"
    assert len(settings._plain) < 2000
