"""The golden files: bytes that must be written and read today as they were when they were made.

`wire_golden.py` makes them. Those called ``triton_*`` are what a real server sent.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from tritonclient.grpc.service_pb2 import ModelInferRequest
from wire_golden import (
    ANSWERS,
    FOLDER,
    REQUESTS,
    RESPONSES,
    as_json,
    render,
    shared_memory_of,
)
from wire_oracle import answer, canonical, decode, every_byte, parse
from wire_strategies import official_request

FILES = sorted(path.stem for path in FOLDER.glob("*.bin"))
READ: dict[str, Any] = json.loads(ANSWERS.read_text("utf-8"))


def golden(name: str) -> bytes:
    return (FOLDER / f"{name}.bin").read_bytes()


def test_all_are_there() -> None:
    """None is missing, and none is there that no test reads."""
    captured = {name for name in FILES if name.startswith("triton_")}
    assert len(captured) >= 6
    assert set(FILES) == REQUESTS.keys() | RESPONSES.keys() | captured
    assert READ.keys() == RESPONSES.keys() | captured


@pytest.mark.parametrize("name", REQUESTS)
def test_request(name: str) -> None:
    """Ours writes these bytes, and to the official package they are that request."""
    case = REQUESTS[name]
    assert render(case) == golden(name)
    assert canonical(ModelInferRequest.FromString(golden(name))) == canonical(
        official_request(case)
    )


@pytest.mark.parametrize("name", READ)
def test_response(name: str) -> None:
    """Both read in these bytes what was read in them before."""
    encoded = golden(name)
    shared_memory = shared_memory_of(name)
    message = parse(encoded)
    assert message is not None
    assert as_json(answer(message, shared_memory)) == READ[name]
    assert as_json(decode(encoded, shared_memory=shared_memory)) == READ[name]
    assert as_json(decode(encoded, every_byte(encoded), shared_memory=shared_memory)) == READ[name]


@pytest.mark.parametrize("name", RESPONSES)
def test_response_is_what_would_be_written(name: str) -> None:
    """The files have not fallen behind the script."""
    made = parse(RESPONSES[name])
    stored = parse(golden(name))
    assert made is not None
    assert stored is not None
    assert answer(stored) == answer(made)
