"""Whatever is passed for whichever argument: what is raised is ours, and says which one it is."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import math
import os
import random
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.memory_channel import (
    AsyncMemoryChannel,
    MemoryChannel,
    async_client_on,
    client_on,
)

from triton_fast import (
    TLS,
    AsyncClient,
    Client,
    InvalidOption,
    InvalidTensor,
    Keepalive,
    RequestedOutput,
    SharedMemoryRegion,
    Tensor,
    TextMapping,
    TritonFastError,
)
from triton_fast.channels.native.channel import NativeChannel
from triton_fast.options.environment import _NAMES
from triton_fast.protocol.messages import message_class

FLOATS = np.zeros(1, np.float32)
ONE = {"x": FLOATS}


class Meta:
    """Like torch's tensors on the device "meta", which have no memory."""

    shape = (1,)
    ndim = 0

    def __dlpack__(self, **_: Any) -> Any:
        raise NotImplementedError("meta")

    def __dlpack_device__(self) -> Any:
        raise ValueError("meta")

    def item(self) -> Any:
        raise RuntimeError("meta tensors have no items")


class OnNoDevice(Meta):
    def __dlpack_device__(self) -> Any:
        return (1, 0)


class NoArray:
    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no array")


class NoNumber:
    def __index__(self) -> int:
        raise RuntimeError("no index")

    def __float__(self) -> float:
        raise RuntimeError("no float")


class NoText:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


class NoTruth:
    __hash__ = None  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise ValueError("neither")

    def __eq__(self, other: object) -> bool:
        raise ValueError("not comparable")


class NoIterator:
    def __iter__(self) -> Any:
        raise TypeError("not now")


# Made anew each time: some can be used once.
ODD = [
    *(Meta, OnNoDevice, NoArray, NoNumber, NoText, NoTruth, NoIterator, object),
    lambda: iter(()),
    lambda: (one for one in "ab"),
    lambda: print,
    lambda: int,
    *(list, dict, set, tuple, bytes, bytearray, bool, complex),
    *(
        lambda one=one: one
        for one in (
            *(None, True, False, ..., NotImplemented),
            *(-1, 0, 1, 7, 2**31, 2**63 - 1, 2**63, 2**64, 10**400, -(10**400)),
            *(0.0, -0.5, 1.5, 1e300, math.inf, -math.inf, math.nan, 1j),
            *(Decimal(1), Decimal("nan"), Fraction(1, 3), timedelta(seconds=1)),
            *("", "x", "y", "m", "auto", "5", "é", "\0", "\n", "\ud800", "x" * 5000, "a:1"),
            *(b"x", memoryview(b"x"), Path("x"), Path("/")),
            *([None], [[]], ["x", 1], ["x"], [("a", "b")], ("a", "b"), [["x"], ["x", "y"]]),
            *({"x": None}, {1: 2}, {b"x": b"x"}, {"x": []}, {"a": "b"}, {"\ud800": "x"}),
            *({"y": [1]}, {"y": None}, {"y": "x"}, {"x": {"x": 1}}, {"x": 10**400}),
            *(np.int64(1), np.int64(-1), np.uint64(2**64 - 1), np.float64(1), np.float32("nan")),
            *(np.bool_(True), np.str_("x"), np.datetime64("2026-01-01"), np.dtype("f4")),
            *(np.zeros(3), np.zeros(()), np.zeros((0, 2)), np.array([None]), np.array(["x"])),
            *(np.zeros(2, "i4,f4"), np.ma.zeros(2), np.zeros(2, "M8[s]"), np.array(7)),
            *(Tensor(FLOATS, "FP32", [1]), RequestedOutput("y"), TLS(), Keepalive(1)),
            *(TextMapping(prompt="x", text="y"), ONE, {"y": FLOATS}),
        )
    ),
    lambda: {"x": Meta()},
    lambda: {"x": OnNoDevice()},
    lambda: {"x": NoArray()},
    lambda: {"x": NoTruth()},
    lambda: {"x": [[NoArray()]]},
    lambda: [NoText()],
    lambda: [RequestedOutput("y", class_count=2)],
]
# Small or absurd: no number that a machine might really make room for.
odd = st.one_of(
    st.integers(-9, 9),
    st.floats(),
    st.text(max_size=9),
    st.binary(max_size=9),
    st.lists(st.one_of(st.text(max_size=3), st.integers(-3, 3), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=3), st.one_of(st.text(max_size=3), st.none()), max_size=3),
)

any_odd = st.one_of(st.sampled_from(ODD).map(lambda make: make()), odd)


def answer(method: str, request: Any) -> Any:
    """Answer as a server would whose one model takes one float, and gives one."""
    if method == "ModelMetadata":
        x, y = ({"name": name, "datatype": "FP32", "shape": [-1]} for name in "xy")
        return message_class("ModelMetadataResponse")(name="m", inputs=[x], outputs=[y])
    if method == "ModelConfig":
        return message_class("ModelConfigResponse")(config={"name": "m", "max_batch_size": 8})
    if method == "ModelInfer":
        y = {"name": "y", "datatype": "FP32", "shape": [1]}
        return message_class("ModelInferResponse")(
            model_name="m", id=request.id, outputs=[y], raw_output_contents=[bytes(4)]
        )
    return message_class(f"{method}Response")()


class _OneAnswer(MemoryChannel):
    """Streams fail, as no server is there."""

    def __init__(self) -> None:
        super().__init__(answer)
        self._nobody = NativeChannel("localhost:1")

    def open_stream(self, *arguments: Any) -> Any:
        return self._nobody.open_stream(*arguments)

    def close(self) -> None:
        super().close()
        self._nobody.close()


def parameters_of(function: Any) -> list[str]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind not in kinds and name not in {"self", "client"}
    ]


# By a name: the arguments without which it cannot be called, what takes them, and what calls it.
PLAIN = {
    "TLS": ({}, TLS, lambda given: TLS(**given).read()),
    "Keepalive": ({"time": 1}, Keepalive, lambda given: Keepalive(**given)),
    "Tensor": (
        {"data": FLOATS, "datatype": "FP32", "shape": [1]},
        Tensor,
        lambda given: Tensor(**given),
    ),
    "RequestedOutput": ({"name": "y"}, RequestedOutput, lambda given: RequestedOutput(**given)),
    "TextMapping": (
        {"prompt": "x", "text": "y"},
        TextMapping,
        lambda given: TextMapping(**given),
    ),
    "Client": ({"url": "localhost:1"}, Client, lambda given: Client(**given).close()),
    "AsyncClient": (
        {"url": "localhost:1"},
        AsyncClient,
        lambda given: asyncio.run(AsyncClient(**given).close()),
    ),
    "from_env": (
        {"prefix": "T_", "environ": {"T_URL": "localhost:1"}},
        Client.from_env,
        lambda given: Client.from_env(**given).close(),
    ),
}
MODEL = {"model": "m", "inputs": ONE}
NAME = {"name": "m"}
# The calls of a client; what they return is used up.
CALLS: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "infer": (MODEL, Client.infer, lambda client, given: client.infer(**given)),
    "model": (NAME, Client.model, lambda client, given: client.model(**given)(ONE)),
    "health": ({}, Client.health, lambda client, given: client.health(**given)),
    "is_live": ({}, Client.is_live, lambda client, given: client.is_live(**given)),
    "is_ready": ({}, Client.is_ready, lambda client, given: client.is_ready(**given)),
    "is_model_ready": (
        NAME,
        Client.is_model_ready,
        lambda client, given: client.is_model_ready(**given),
    ),
    "server_metadata": (
        {},
        Client.server_metadata,
        lambda client, given: client.server_metadata(**given),
    ),
    "model_metadata": (
        NAME,
        Client.model_metadata,
        lambda client, given: client.model_metadata(**given),
    ),
    "model_config": (NAME, Client.model_config, lambda client, given: client.model_config(**given)),
    "empty": (
        {"shape": 1, "dtype": "f4"},
        Client.empty,
        lambda client, given: client.empty(**given),
    ),
    "sequence": (
        {"model": "m", "stream": False},
        Client.sequence,
        lambda client, given: client.sequence(**given).infer(ONE),
    ),
    "sequence.infer": (
        {"inputs": ONE},
        type(Client("localhost:1").sequence("m")).infer,
        lambda client, given: client.sequence("m", stream=False).infer(**given),
    ),
    "Model.__call__": (
        {"inputs": ONE},
        type(Client("localhost:1").model("m")).__call__,
        lambda client, given: client.model("m")(given.pop("inputs"), **given),
    ),
    "register": (
        {"name": "r", "key": "/r", "byte_size": 1},
        type(Client("localhost:1").shared_memory).register,
        lambda client, given: client.shared_memory.register(**given),
    ),
    "unregister": (
        {"name": "r"},
        type(Client("localhost:1").shared_memory).unregister,
        lambda client, given: client.shared_memory.unregister(**given),
    ),
}
BLOCKING: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "submit": (MODEL, Client.submit, lambda client, given: client.submit(**given).result()),
    "Model.submit": (
        {"inputs": ONE},
        type(Client("localhost:1").model("m")).submit,
        lambda client, given: client.model("m").submit(given.pop("inputs"), **given).result(),
    ),
    "stream": (MODEL, Client.stream, lambda client, given: list(client.stream(**given))),
    "open_stream": ({}, Client.open_stream, lambda client, given: client.open_stream(**given)),
    "generate": (
        {"model": "m", "prompt": "x", "mapping": TextMapping(prompt="x", text="y")},
        Client.generate,
        lambda client, given: list(client.generate(**given)),
    ),
}


def arguments_of(table: dict[str, Any]) -> st.SearchStrategy[tuple[str, str]]:
    return st.sampled_from(
        [
            (call, name)
            for call, (_, function, _) in table.items()
            for name in parameters_of(function)
        ]
    )


def allowed(work: Any) -> None:
    """Do something that may fail, but only so as we say."""
    # How much memory there is nobody knows before.
    with contextlib.suppress(TritonFastError, MemoryError):
        work()


def odd_ones_for(function: Any) -> Iterator[tuple[str, Any]]:
    for name in parameters_of(function):
        for make in ODD:
            yield name, make()


@pytest.mark.parametrize("call", PLAIN)
def test_each_odd_value_for_what_is_made(call):
    required, function, make = PLAIN[call]
    for name, value in odd_ones_for(function):
        allowed(lambda: make({**required, name: value}))  # noqa: B023


@pytest.mark.parametrize("call", CALLS | BLOCKING)
def test_each_odd_value_for_calls(call):
    required, function, make = (CALLS | BLOCKING)[call]
    for name, value in odd_ones_for(function):
        with client_on(_OneAnswer()) as client:
            allowed(lambda: make(client, {**required, name: value}))  # noqa: B023


@pytest.mark.parametrize("split", [False, True])
def test_each_odd_value_in_place_of_an_array(split):
    many = {"x": np.zeros((20, 1), np.float32)}
    for make in ODD:
        for own in (
            {"inputs": make()},
            {"inputs": {"x": make()}},
            {"inputs": {"x": [make()]}},
            {"inputs": {"x": [FLOATS, make()]}},
            {"inputs": many, "out": make()},
            {"inputs": many, "out": {"y": make()}},
        ):
            with client_on(_OneAnswer()) as client:
                allowed(lambda: client.infer("m", split=split, **own))  # noqa: B023


@pytest.mark.parametrize("call", CALLS)
def test_each_odd_value_for_calls_of_coroutines(call):
    required, function, make = CALLS[call]

    async def work():
        for name, value in odd_ones_for(function):
            async with async_client_on(_OneAnswer()) as client:
                with contextlib.suppress(TritonFastError, MemoryError):
                    await make(client, {**required, name: value})

    asyncio.run(work())


@settings(max_examples=200)
@given(where=arguments_of(PLAIN), value=odd)
def test_what_is_made(where, value):
    call, name = where
    required, _, make = PLAIN[call]
    allowed(lambda: make({**required, name: value}))


TEXTS = ["1", "-1", "nan", "inf", "1e400", "9" * 5000, "1 TiB", "9" * 18 + "T", "[" * 9000, "{"]
TEXTS += [
    '{"a": 1}',
    '{"": ""}',
    '{"te": "x"}',
    "-----BEGIN",
    "\0",
    "\ud800",
    "/",
    "é:1",
    "a:1,b:2",
]


@settings(max_examples=300)
@given(
    name=st.sampled_from(_NAMES),
    value=st.one_of(st.sampled_from(TEXTS), st.text(), st.from_regex(r"[0-9.eE:+-]{1,9}")),
)
def test_variables_of_the_environment(name, value):
    environ = {"T_URL": "localhost:1", f"T_{name}": value}
    allowed(lambda: Client.from_env("T_", environ).close())


@settings(max_examples=200)
@given(where=arguments_of(CALLS | BLOCKING), value=odd)
def test_calls(where, value):
    call, name = where
    required, _, make = (CALLS | BLOCKING)[call]
    with client_on(_OneAnswer()) as client:
        allowed(lambda: make(client, {**required, name: value}))


@settings(max_examples=100)
@given(where=arguments_of(CALLS), value=odd)
def test_calls_of_coroutines(where, value):
    call, name = where
    required, _, make = CALLS[call]

    async def work():
        async with async_client_on(_OneAnswer()) as client:
            await make(client, {**required, name: value})

    allowed(lambda: asyncio.run(work()))


LONG = int(os.environ.get("TRITON_FAST_SOAK_ODD", "10000"))


@pytest.mark.parametrize(
    "times",
    [
        pytest.param(300, id="short"),
        pytest.param(LONG, id="long", marks=[pytest.mark.soak, pytest.mark.timeout(0)]),
    ],
)
def test_calls_with_several_odd_arguments(times):
    """At random; what is wrong can be had again by the seed."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    everything = list((PLAIN | CALLS | BLOCKING).items())
    for number in range(times):
        call, (required, function, make) = chance.choice(everything)
        names = parameters_of(function)
        some = chance.sample(names, chance.randint(1, min(3, len(names))))
        arguments = {**required, **{name: chance.choice(ODD)() for name in some}}
        with client_on(_OneAnswer()) as client:
            client_of_the_call = () if call in PLAIN else (client,)
            try:
                allowed(lambda: make(*client_of_the_call, arguments))  # noqa: B023
            except Exception as error:
                raise AssertionError(f"seed {seed}, call {number}: {call} with {some}") from error


@settings(max_examples=200)
@given(
    value=any_odd,
    name=st.sampled_from(parameters_of(type(Client("localhost:1").open_stream()).stream)),
)
def test_streams(value, name):
    """Over nothing: no server is there."""
    with Client("localhost:1", timeout=5) as client:
        for make in ("stream", "send"):
            with client.open_stream() as stream:
                allowed(lambda: getattr(stream, make)(**{**MODEL, name: value}))  # noqa: B023

    async def work():
        async with AsyncClient("localhost:1", timeout=5) as client:
            async with client.open_stream() as stream:
                async for _ in stream.stream(**{**MODEL, name: value}):
                    pass

    allowed(lambda: asyncio.run(work()))


@settings(max_examples=100)
@given(value=any_odd)
def test_waiting_for_an_answer(value):
    with Client("localhost:1") as client, client.open_stream() as stream:
        allowed(lambda: stream.receive(value))


REGION = [
    (SharedMemoryRegion.create, {"byte_size": 8}),
    (SharedMemoryRegion.attach, {"key": "/triton_fast-none", "byte_size": 8}),
    ("array", {"shape": [1], "dtype": "f4"}),
    ("tensor", {"shape": [1], "dtype": "f4"}),
    ("output", {"name": "y", "byte_size": 4}),
    ("register", {"client": None}),
    ("unregister", {"client": None}),
]


@settings(max_examples=200)
@given(which=st.sampled_from(REGION), value=any_odd, data=st.data())
def test_regions(which, value, data):
    method, required = which
    with SharedMemoryRegion.create(8) as region:
        function = getattr(region, method) if isinstance(method, str) else method
        names = [*required, *(set(inspect.signature(function).parameters) - set(required))]
        name = data.draw(st.sampled_from(names))

        def work():
            made = function(**{**required, name: value})
            if isinstance(made, SharedMemoryRegion):
                made.unlink()

        allowed(work)


# What is said, of a value that no argument can be.

SAYS = {
    "model": "the model's name",
    "name": "name",
    "version": "version",
    "model_version": "version",
    "queue_timeout": "queue_timeout must be a number of seconds, got object",
    "timeout": "timeout must be a number of seconds, got object",
    "Keepalive.timeout": "timeout must be a number of seconds, from 0.001 to 2147483, got object",
    "time": "time must be a number of seconds, from 0.001 to 2147483, got object",
    "url": "a target must be a str such as 'localhost:8001', got object",
    "headers": "headers must be a mapping or pairs of name and value, got object",
    "inputs": "inputs must be a mapping of name to array, got object",
    "parameters": "parameters must be a mapping of name to value, got object",
    "out": "out must be a mapping of name to array, got object",
    "outputs": "outputs must be a sequence of names, got object",
    "priority": "priority must be a whole number, 0 or more, got object",
    "data": "a object has no buffer",
    "datatype": "unknown datatype object",
    "shape": "a shape must be a sequence of whole numbers, got object",
    "dtype": "dtype must be",
    "root_certificates": "root_certificates must be PEM as bytes or a path, got object",
    "private_key": "private_key",
    "certificate_chain": "certificate_chain",
    "channel": "channel must be 'auto', 'native' or 'grpc', got object",
    "compression": "compression must be 'gzip', 'deflate' or None, got object",
    "header_hook": "header_hook must be callable, got object",
    "keepalive": "keepalive must be a Keepalive, such as Keepalive(30), got object",
    "tls": "tls must be a TLS or True, got object",
    "channel_options": "channel_options must be a mapping or (name, value) pairs, got object",
    "shared_memory": "shared_memory must be 'auto', True or False, got object",
}


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (call, name)
        for call, (_, function, _) in (PLAIN | CALLS | BLOCKING).items()
        for name in parameters_of(function)
    ],
)
def test_errors_name_the_argument(call, name):
    required, _, make = (PLAIN | CALLS | BLOCKING)[call]
    with client_on(_OneAnswer()) as client:
        client_of_the_call = () if call in PLAIN else (client,)
        with pytest.raises((InvalidOption, InvalidTensor)) as caught:
            make(*client_of_the_call, {**required, name: object()})
    text = str(caught.value)
    says = SAYS.get(f"{call}.{name}") or SAYS.get(name, f"{name} must be")
    assert says in text
    if name not in SAYS:
        assert "got object" in text


@pytest.mark.parametrize(
    ("call", "name", "value"),
    [
        ("infer", "out", FLOATS),
        ("infer", "out", ["y"]),
        ("infer", "out", {"y": [1.0]}),
        ("Model.__call__", "out", FLOATS),
        ("infer", "inputs", {"x": Meta()}),
        ("infer", "inputs", {"x": OnNoDevice()}),
        ("infer", "parameters", {"p": Meta()}),
        ("infer", "timeout", 10**400),
        ("infer", "split", FLOATS),
        ("sequence", "timeout", "5"),
        ("Client", "keepalive", 30),
        ("Client", "url", "bücher.example:8001"),
        ("Client", "url", "localhost:" + "9" * 5000),
        ("AsyncClient", "url", "bücher.example:8001"),
        ("register", "byte_size", -1),
        ("register", "key", "\ud800"),
        ("is_model_ready", "name", "\ud800"),
        ("empty", "shape", [2**40, 2**40]),
        ("Tensor", "shape", [2**62, 2**62]),
    ],
)
def test_the_first_that_were_found(call, name, value):
    required, _, make = (PLAIN | CALLS)[call]
    with client_on(_OneAnswer()) as client:
        client_of_the_call = () if call in PLAIN else (client,)
        with pytest.raises((InvalidOption, InvalidTensor)):
            make(*client_of_the_call, {**required, name: value})


def test_a_name_that_is_not_in_ascii():
    with pytest.raises(InvalidOption, match=r"write 'xn--bcher-kva\.example:8001'"):
        Client("bücher.example:8001")


def test_numpys_integers_are_taken_for_ints():
    seven = np.int64(7)
    channel = MemoryChannel(answer)
    with client_on(channel, shared_memory_limit=np.uint32(1 << 20)) as client:
        sequence = client.sequence("m", sequence_id=seven, stream=False)
        assert (sequence.id, type(sequence.id)) == (7, int)
        sequence.infer(ONE)
        client.infer(
            "m", ONE, priority=np.uint8(7), outputs=[RequestedOutput("y", class_count=seven)]
        )
        assert channel.asked[-1][1].parameters["priority"].uint64_param == 7
        assert client.empty(seven, np.int8).shape == (7,)
        client.shared_memory.register("r", "/r", seven, np.int16(0))
    assert Keepalive(np.int64(30)) == Keepalive(30)
    with Client("localhost:1") as client:
        client.open_stream(buffer_size=seven).close()
    AsyncClient("localhost:1", max_in_flight=seven, max_in_flight_bytes=seven)
    with SharedMemoryRegion.create(seven) as region:
        assert region.byte_size == 7
        assert region.array([np.int64(3)], np.int8, offset=np.int64(4)).shape == (3,)
        assert region.output("y", byte_size=seven).parameters["shared_memory_byte_size"] == 7


def test_channels_of_these_tests_are_channels():
    """So that what they are called with is what channels are."""
    from triton_fast.channels.base import AsyncChannel, Channel

    for contract, kind in ((Channel, MemoryChannel), (AsyncChannel, AsyncMemoryChannel)):
        for name, method in inspect.getmembers(contract, inspect.isfunction):
            if not name.startswith("_"):
                given = inspect.signature(getattr(kind, name)).parameters
                assert list(given) == list(inspect.signature(method).parameters)
