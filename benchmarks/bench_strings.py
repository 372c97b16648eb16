"""BYTES tensors encoded and decoded again, with no server between."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import tritonclient.utils
from contenders import Case, strings
from sampling import Plan, Samples, alternate

from triton_fast._core import _wire

GROUP = "encode + decode, 10,000 of 20 B"


def _ours(case: Case) -> Callable[[], np.ndarray[Any, Any]]:
    def call() -> np.ndarray[Any, Any]:
        payload = _wire.encode_objects(case.array)
        answer = np.empty(case.array.shape, np.object_)
        _wire.decode_elements(payload, answer)
        return answer

    return call


def _tritonclient(case: Case) -> Callable[[], np.ndarray[Any, Any]]:
    # What InferInput.set_data_from_numpy and InferResult.as_numpy do.
    def call() -> np.ndarray[Any, Any]:
        payload = tritonclient.utils.serialize_byte_tensor(case.array).item()
        answer: np.ndarray[Any, Any] = tritonclient.utils.deserialize_bytes_tensor(payload)
        return answer.reshape(case.array.shape)

    return call


CODECS = {"triton_fast": _ours, "tritonclient.grpc": _tritonclient}


@cache
def _measured(plan: Plan) -> dict[str, Samples]:
    case = strings(10_000, 20, GROUP)
    calls = {name: codec(case) for name, codec in CODECS.items()}
    for name, call in calls.items():
        assert np.array_equal(call(), case.array), name
    return alternate(calls, plan)


@pytest.mark.parametrize("contender", CODECS)
def bench_strings(
    contender: str, plan_of: Callable[[Plan], Plan], record: Callable[..., None]
) -> None:
    record(GROUP, contender, _measured(plan_of(Plan(100, 2, 5)))[contender])
