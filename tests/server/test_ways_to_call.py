"""All kinds of caller give the same results: one table of calls, made by each of them.

The results are those of a blocking call, which each of the others is compared with.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from support.event_loops import new_loop

from triton_fast import (
    DATATYPES,
    AsyncClient,
    Client,
    DeadlineExceeded,
    InvalidOption,
    InvalidTensor,
    NotFound,
    RequestedOutput,
    Tensor,
    TritonFastError,
    Unimplemented,
)
from triton_fast.protocol.datatypes import dtype_of

pytestmark = pytest.mark.server

AT_A_TIME = 4


@dataclass
class Case:
    """A call, and what must come of it: outputs by name, or an error."""

    model: str
    inputs: dict[str, Any]
    expected: dict[str, Any] | type[TritonFastError]
    options: dict[str, Any] = field(default_factory=dict)
    out: Callable[[], dict[str, Any]] | None = None
    same_text: bool = True  # of the error
    told: Callable[[Any], Any] = lambda result: None  # what else to compare

    def arguments(self) -> dict[str, Any]:
        out = {} if self.out is None else {"out": self.out()}
        return {"model": self.model, "inputs": self.inputs, **self.options, **out}


def values_of(datatype: str) -> np.ndarray:
    if datatype == "BYTES":
        return np.array([b"", b"a", "é€𝄞".encode(), bytes(range(256))], object)
    dtype = dtype_of(datatype)
    bits = np.arange(64 * dtype.itemsize, dtype=np.uint8)
    return (bits & 1).astype(bool) if datatype == "BOOL" else bits.view(dtype)


RANK3 = np.random.default_rng(1).normal(size=(4, 3, 2)).astype(np.float32)
ROWS = np.random.default_rng(2).normal(size=(20, 16)).astype(np.float32)
PAIR = {"INPUT0": ROWS[:3], "INPUT1": ROWS[3:6]}
MANY = {"INPUT0": ROWS, "INPUT1": ROWS[::-1]}
MIXED = {
    "INPUT0": np.arange(5, dtype=np.float32),
    "INPUT1": np.arange(3, dtype=np.int32),
    "INPUT2": ["x", "yy"],
}
ONE = {"INPUT0": np.array([0.5, 3, 1], np.float32)}
LARGE = np.random.default_rng(3).normal(size=300_000).astype(np.float32)


def sum_and_difference(inputs: dict[str, Any]) -> dict[str, Any]:
    left, right = np.asarray(inputs["INPUT0"]), np.asarray(inputs["INPUT1"])
    return {"OUTPUT0": left + right, "OUTPUT1": left - right}


CASES = {
    **{
        f"identity of {datatype}": Case(
            f"identity_{datatype.lower()}",
            {"INPUT0": values_of(datatype)},
            {"OUTPUT0": values_of(datatype)},
        )
        for datatype in DATATYPES
    },
    **{
        f"none of {datatype}": Case(
            f"identity_{datatype.lower()}",
            {"INPUT0": np.empty(0, dtype_of(datatype))},
            {"OUTPUT0": np.empty(0, dtype_of(datatype))},
        )
        for datatype in ("FP32", "BYTES")
    },
    "Fortran's order": Case(
        "identity_rank3", {"INPUT0": np.asfortranarray(RANK3)}, {"OUTPUT0": RANK3}
    ),
    "big-endian": Case("identity_rank3", {"INPUT0": RANK3.astype(">f4")}, {"OUTPUT0": RANK3}),
    "strided": Case("identity_rank3", {"INPUT0": RANK3[::-2]}, {"OUTPUT0": RANK3[::-2]}),
    "a dimension of none": Case(
        "identity_rank3", {"INPUT0": RANK3[:, :0]}, {"OUTPUT0": RANK3[:, :0]}
    ),
    "large": Case("identity_cpp", {"INPUT0": LARGE}, {"OUTPUT0": LARGE}),
    "large and strided": Case(
        "identity_cpp", {"INPUT0": LARGE[::3]}, {"OUTPUT0": np.ascontiguousarray(LARGE[::3])}
    ),
    "a list of str": Case(
        "identity_bytes", {"INPUT0": ["", "é€𝄞"]}, {"OUTPUT0": [b"", "é€𝄞".encode()]}
    ),
    "an array of fixed width": Case(
        "identity_bytes", {"INPUT0": np.array(["a", "bcd"])}, {"OUTPUT0": [b"a", b"bcd"]}
    ),
    "raw memory": Case(
        "identity_bf16",
        {"INPUT0": Tensor(np.array([1.5, -2], ml_dtypes.bfloat16).view(np.uint16), "BF16", [2])},
        {"OUTPUT0": np.array([1.5, -2], ml_dtypes.bfloat16)},
    ),
    "several tensors": Case(
        "identity_mixed",
        MIXED,
        {"OUTPUT0": MIXED["INPUT0"], "OUTPUT1": MIXED["INPUT1"], "OUTPUT2": [b"x", b"yy"]},
    ),
    "one output of three": Case(
        "identity_mixed", MIXED, {"OUTPUT1": MIXED["INPUT1"]}, {"outputs": ["OUTPUT1"]}
    ),
    "a batch": Case("add_sub", PAIR, sum_and_difference(PAIR)),
    "shapes that the answer tells": Case(
        "variable",
        {"ROW": ONE["INPUT0"], "COUNT": np.array([2], np.int32)},
        {"TWICE": np.tile(ONE["INPUT0"], 2), "TILED": np.tile(ONE["INPUT0"], (2, 1))},
    ),
    "classes": Case(
        "identity_fp32",
        ONE,
        {"OUTPUT0": [b"3.000000:1", b"1.000000:2"]},
        {"outputs": [RequestedOutput("OUTPUT0", class_count=2)]},
        told=lambda result: result.classes("OUTPUT0"),
    ),
    "an id, a version, parameters": Case(
        "identity_fp32",
        ONE,
        {"OUTPUT0": ONE["INPUT0"]},
        {
            "request_id": "request 7",
            "model_version": "1",
            "parameters": {"flag": True, "count": -(2**63), "text": "é", "ratio": 0.1},
            "headers": {"x-one": "1"},
        },
        told=lambda result: [
            result.id,
            result.model_version,
            *(result.parameters[key] for key in ("flag", "count", "text", "ratio")),
        ],
    ),
    "compressed": Case(
        "identity_cpp", {"INPUT0": LARGE}, {"OUTPUT0": LARGE}, {"compression": "gzip"}
    ),
    "priority and a queue": Case(
        "batched_identity_fp32",
        {"INPUT0": ROWS[:1, :3], "DELAY": np.zeros((1, 1), np.float32)},
        {"OUTPUT0": ROWS[:1, :3]},
        {"priority": 1, "queue_timeout": 60},
    ),
    "out": Case(
        "identity_fp32",
        ONE,
        {"OUTPUT0": ONE["INPUT0"]},
        out=lambda: {"OUTPUT0": np.zeros(3, np.float32)},
    ),
    "out, strided": Case(
        "identity_fp32",
        ONE,
        {"OUTPUT0": ONE["INPUT0"]},
        out=lambda: {"OUTPUT0": np.zeros(6, np.float32)[::2]},
    ),
    "out, large": Case(
        "identity_cpp",
        {"INPUT0": LARGE},
        {"OUTPUT0": LARGE},
        out=lambda: {"OUTPUT0": np.zeros_like(LARGE)},
    ),
    "out, strings": Case(
        "identity_bytes",
        {"INPUT0": ["a", "b"]},
        {"OUTPUT0": [b"a", b"b"]},
        out=lambda: {"OUTPUT0": np.empty(2, object)},
    ),
    "split": Case(
        "add_sub",
        MANY,
        sum_and_difference(MANY),
        {"split": True, "request_id": "whole"},
        told=lambda result: result.id,
    ),
    "split, of samples": Case(
        "add_sub",
        {name: list(batch) for name, batch in MANY.items()},
        sum_and_difference(MANY),
        {"split": True},
    ),
    "split, into an array": Case(
        "add_sub",
        MANY,
        {"OUTPUT0": sum_and_difference(MANY)["OUTPUT0"]},
        {"split": True, "outputs": ["OUTPUT0"]},
        out=lambda: {"OUTPUT0": np.zeros((20, 16), np.float32)},
    ),
    "split, one piece": Case("add_sub", PAIR, sum_and_difference(PAIR), {"split": True}),
    "no such model": Case("nope", ONE, NotFound),
    "no such version": Case("identity_fp32", ONE, NotFound, {"model_version": "7"}),
    "no such input": Case("identity_fp32", {"WRONG": ONE["INPUT0"]}, InvalidTensor),
    "no such output": Case("identity_fp32", ONE, InvalidTensor, {"outputs": ["NOPE"]}),
    "another datatype": Case("identity_fp32", {"INPUT0": np.zeros(3, np.int8)}, InvalidTensor),
    "a decoupled model": Case(
        "repeat_int32",
        {
            "IN": np.array([1], np.int32),
            "DELAY": np.array([0], np.uint32),
            "WAIT": np.array([0], np.uint32),
        },
        Unimplemented,
    ),
    "no tensor": Case("identity_fp32", {"INPUT0": object()}, InvalidTensor),
    "a list of numbers": Case("identity_fp32", {"INPUT0": [1.0]}, InvalidTensor),
    "no inputs": Case("identity_fp32", 3, InvalidTensor),  # type: ignore[arg-type]
    "out that does not fit": Case(
        "identity_fp32", ONE, InvalidTensor, out=lambda: {"OUTPUT0": np.zeros(4, np.float32)}
    ),
    "out of an output that is not there": Case(
        "identity_fp32", ONE, InvalidTensor, out=lambda: {"NOPE": np.zeros(3, np.float32)}
    ),
    "out that is read-only": Case(
        "identity_fp32",
        ONE,
        InvalidTensor,
        out=lambda: {"OUTPUT0": np.frombuffer(bytes(12), np.float32)},
    ),
    "a timeout that is none": Case("identity_fp32", ONE, InvalidOption, {"timeout": -1}),
    "a header that is none": Case("identity_fp32", ONE, InvalidOption, {"headers": {"a b": "x"}}),
    "no such compression": Case("identity_fp32", ONE, InvalidOption, {"compression": "zip"}),
    "an option with an argument of its own": Case(
        "identity_fp32", ONE, InvalidOption, {"parameters": {"timeout": 1}}
    ),
    "no time at all": Case("identity_fp32", ONE, DeadlineExceeded, {"timeout": 0}),
    "too late": Case(
        "slow",
        {"INPUT0": ONE["INPUT0"], "DELAY": np.array([60], np.float32)},
        DeadlineExceeded,
        {"timeout": 0.3},
        same_text=False,
    ),
    "split, of a model without batches": Case(
        "identity_cpp", {"INPUT0": ROWS[0]}, InvalidOption, {"split": True}
    ),
    "split, of rows that do not match": Case(
        "add_sub", {"INPUT0": ROWS, "INPUT1": ROWS[1:]}, InvalidTensor, {"split": True}
    ),
    "split, with an output that is not there": Case(
        "add_sub", MANY, InvalidTensor, {"split": True, "outputs": ["NOPE"]}
    ),
}


class Loops:
    """One event loop of each kind, for all calls: to make one for each takes longer than the call.

    What `event_loops.Runner` sees to in each, that nothing complains, is seen to at the end.
    """

    def __init__(self) -> None:
        self.complaints: list[Any] = []
        self._runners: dict[str, asyncio.Runner] = {}

    def run(self, kind: str, coroutine: Coroutine[Any, Any, list[Any]]) -> list[Any]:
        if kind not in self._runners:
            self._runners[kind] = asyncio.Runner(loop_factory=lambda: new_loop(kind))
        return self._runners[kind].run(self._watched(coroutine))

    async def _watched(self, coroutine: Coroutine[Any, Any, list[Any]]) -> list[Any]:
        asyncio.get_running_loop().set_exception_handler(self._complain)
        result = await asyncio.wait_for(coroutine, 60)
        for _ in range(500):
            left = asyncio.all_tasks() - {asyncio.current_task()}
            if not left:
                break
            await asyncio.sleep(0.01)  # for those that are being cancelled
        assert not left, f"tasks were left behind: {left}"
        return result

    def _complain(self, _: Any, context: dict[str, Any]) -> None:
        # grpc.aio wakes those who waited in another loop, and complains in this one.
        if "PollerCompletionQueue" not in context["message"]:
            self.complaints.append(context)

    def close(self) -> None:
        gc.collect()  # a result that nobody has looked at complains when it dies
        for runner in self._runners.values():
            runner.close()


@pytest.fixture(scope="module")
def loops() -> Iterator[Loops]:
    loops = Loops()
    yield loops
    loops.close()
    assert not loops.complaints, loops.complaints


# --- the callers: each makes a call and returns what came of it -----------------------------------


def outcome(case: Case, call: Callable[[dict[str, Any]], Any]) -> Any:
    arguments = case.arguments()
    try:
        return told(case, arguments, call(arguments))
    except TritonFastError as error:
        return failed(case, error)


def told(case: Case, arguments: dict[str, Any], result: Any) -> Any:
    given = arguments.get("out", {})
    for name, array in given.items():
        assert result[name] is array
    for array in result.values():
        assert array.flags.writeable
    contents = {
        name: (array.dtype, array.shape, array.tolist() if array.dtype.hasobject else bits(array))
        for name, array in result.items()
    }
    return result.model_name, contents, case.told(result)


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def failed(case: Case, error: TritonFastError) -> Any:
    return type(error), str(error) if case.same_text else None


@functools.cache
def blocking(name: str, url: str) -> Any:
    with Client(url, channel="native", timeout=60) as client:
        return outcome(CASES[name], lambda arguments: client.infer(**arguments))


def futures(case: Case, url: str, _: Loops, **settings: Any) -> list[Any]:
    with Client(url, **settings) as client, ThreadPoolExecutor(1) as executor:
        # submit() cuts no batches: a Future for that is an executor's.
        split = case.options.get("split")

        def submit(arguments: dict[str, Any]) -> Any:
            if split:
                return executor.submit(client.infer, **arguments).result()
            return client.submit(**arguments).result()

        return [outcome(case, submit)]


def threads(case: Case, url: str, _: Loops, **settings: Any) -> list[Any]:
    outcomes: list[Any] = []
    with Client(url, **settings) as client:
        workers = [
            threading.Thread(
                target=lambda: outcomes.append(
                    outcome(case, lambda arguments: client.infer(**arguments))
                )
            )
            for _ in range(AT_A_TIME)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    return outcomes


def tasks_in(loop: str) -> Callable[..., list[Any]]:
    def tasks(case: Case, url: str, loops: Loops, **settings: Any) -> list[Any]:
        async def one(client: AsyncClient) -> Any:
            arguments = case.arguments()
            try:
                return told(case, arguments, await client.infer(**arguments))
            except TritonFastError as error:
                return failed(case, error)

        async def all_of_them() -> list[Any]:
            async with AsyncClient(url, **settings) as client:
                return await asyncio.gather(*(one(client) for _ in range(AT_A_TIME)))

        return loops.run(loop, all_of_them())

    return tasks


CALLERS = {
    "Future": futures,
    "threads": threads,
    "asyncio": tasks_in("asyncio"),
    "uvloop": tasks_in("uvloop"),
}


GIVES_UP = {"too late"}
NAMES = [
    pytest.param(name, marks=[pytest.mark.server_may_die] if name in GIVES_UP else [])
    for name in CASES
]


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("name", NAMES)
def test_a_call(server, channel, loops, name, caller):
    case = CASES[name]
    make = CALLERS[caller]
    outcomes = make(case, server.grpc_url, loops, channel=channel, timeout=60)
    expected = blocking(name, server.grpc_url)
    assert all(each == expected for each in outcomes), (outcomes, expected)
    if isinstance(case.expected, type):
        assert expected[0] is case.expected
        return
    model, contents, _ = expected
    assert model == case.model
    assert contents.keys() == case.expected.keys()
    for output, wanted in case.expected.items():
        dtype, shape, received = contents[output]
        if isinstance(wanted, list) or wanted.dtype.hasobject:
            assert received == list(wanted)
        else:
            assert (dtype, shape, received) == (wanted.dtype, wanted.shape, bits(wanted))
