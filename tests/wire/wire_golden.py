"""The golden messages: what is in them, and how their files are made.

    python tests/wire/wire_golden.py            # all but those of a server
    python tests/wire/wire_golden.py            # all but those of a server
    python tests/wire/wire_golden.py --triton   # those too: starts one

Requests are what our writer makes of the cases below. Responses are made by the official package,
or field by field, or come from a real server; ``answers.json`` has what the official package reads
in them. Files change when somebody means them to, and at no other time: look at the difference
before it is committed.
"""

from __future__ import annotations

import json
import math
import os
import struct
import sys
from pathlib import Path
from typing import Any

import wire_fields as wf
from tritonclient.grpc.service_pb2 import ModelInferResponse
from wire_oracle import CONTENT_FIELDS, DATATYPES, Answer, Exact, answer, bytes_payload, parse
from wire_strategies import RequestCase, set_parameter

from triton_fast._core import _wire

FOLDER = Path(__file__).parent / "golden"

INT64_MIN, INT64_MAX, UINT64_MAX = -(2**63), 2**63 - 1, 2**64 - 1

# Elements of each datatype, three of them: the smallest, the largest, and one more.
ELEMENTS: dict[str, list[object]] = {
    "BOOL": [True, False, True],
    "INT8": [-128, 127, -1],
    "INT16": [-(2**15), 2**15 - 1, -1],
    "INT32": [-(2**31), 2**31 - 1, -1],
    "INT64": [INT64_MIN, INT64_MAX, -1],
    "UINT8": [0, 255, 1],
    "UINT16": [0, 2**16 - 1, 1],
    "UINT32": [0, 2**32 - 1, 1],
    "UINT64": [0, UINT64_MAX, 1],
    "FP32": [float("-inf"), struct.unpack("<f", b"\xff\xff\x7f\x7f")[0], -0.0],
    "FP64": [float("-inf"), 1.7976931348623157e308, -0.0],
    "BYTES": [b"", b"\x00\xff", "輸入 🜚".encode()],
}


def payload(datatype: str) -> bytes:
    """Encode the three elements as raw contents."""
    if datatype == "BYTES":
        return bytes_payload(ELEMENTS["BYTES"])  # type: ignore[arg-type]
    if datatype in {"FP16", "BF16"}:
        return bytes.fromhex("00fc 0100 0080" if datatype == "FP16" else "80ff 0100 0080")
    return struct.pack(f"<3{DATATYPES[datatype][2]}", *ELEMENTS[datatype])


def _requests() -> dict[str, RequestCase]:
    plain = RequestCase("m", "", "", None, 0, None, [], [])
    return {
        "request_empty": plain,
        "request_datatypes": RequestCase(
            "all", "12", "id-1", None, 0, None, [],
            [(name.lower(), name, (3, 1), payload(name), None) for name in DATATYPES],
        ),
        "request_parameters": RequestCase(
            "größe", "1", "🜚",
            {"b": True, "i": INT64_MIN, "d": -0.5, "s": "ü\0"},
            UINT64_MAX, 1_000_000,
            [("y", None), ("z", {"classification": 3})],
            [("x", "FP32", (0, 4), b"", {"binary_data_size": INT64_MAX, "": ""})],
        ),
        "request_shared_memory": RequestCase(
            "m", "", "", None, 0, None,
            [("y", {"shared_memory_region": "r", "shared_memory_byte_size": 64,
                    "shared_memory_offset": 128})],
            [("x", "FP32", (4, 4), None,
              {"shared_memory_region": "r", "shared_memory_byte_size": 64}),
             ("w", "INT8", (1,), b"\x80", None)],
        ),
        "request_scalars_and_ranks": RequestCase(
            "m", "", "", None, 0, None, [],
            [("scalar", "INT32", (), b"\1\0\0\0", None),
             ("deep", "BOOL", (1,) * 32, b"\1", None),
             ("wide", "UINT8", (300,), bytes(range(256)) + bytes(44), None)],
        ),
    }  # fmt: skip


REQUESTS = _requests()


def _response(is_raw: bool) -> ModelInferResponse:
    message = ModelInferResponse(model_name="all", model_version="12", id="id-1")
    for name in DATATYPES:
        if not is_raw and name not in ELEMENTS:
            continue
        output = message.outputs.add(name=name.lower(), datatype=name, shape=(3, 1))
        if is_raw:
            message.raw_output_contents.append(payload(name))
        else:
            getattr(output.contents, DATATYPES[name][1]).extend(ELEMENTS[name])
    return message


def _parameters() -> ModelInferResponse:
    message = ModelInferResponse(model_name="größe", model_version="1", id="🜚")
    for entries in (
        message.parameters,
        message.outputs.add(name="y", datatype="FP32", shape=(1,)).parameters,
    ):
        for key, value in {"b": True, "i": INT64_MIN, "d": -0.5, "s": "ü\0", "none": None}.items():
            set_parameter(entries[key], value)
        entries["u"].uint64_param = UINT64_MAX
    message.raw_output_contents.append(struct.pack("<f", 1.5))
    return message


def _empty_tensors() -> ModelInferResponse:
    message = ModelInferResponse(model_name="m")
    for name, datatype, shape in (
        ("none", "FP32", (0,)),
        ("rows", "BYTES", (0, 4)),
        ("columns", "INT64", (4, 0)),
        ("scalar", "UINT8", ()),
    ):
        message.outputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_output_contents.append(b"\7" * (math.prod(shape) if shape != () else 1))
    return message


def _unpacked() -> bytes:
    """Every number in a field of its own, in the order that no writer uses."""
    body = [wf.number(3, 3)]
    for field, numbers in (
        (1, [wf.varint(1), wf.varint(0), wf.varint(UINT64_MAX)]),
        (2, [wf.varint(-1), wf.varint(2**31 - 1), wf.varint(0xFFFFFFFF)]),
        (3, [wf.varint(-1), wf.varint(2), wf.varint(3)]),
        (6, [struct.pack("<f", value) for value in (1.5, -0.0, 3e38)]),
        (7, [struct.pack("<d", value) for value in (1.5, -0.0, 1e300)]),
    ):
        wire_type = {6: wf.FIXED32, 7: wf.FIXED64}.get(field, wf.VARINT)
        chunks = [wf.tag(field, wire_type) + numbers[0], wf.text(field, b"".join(numbers[1:]))]
        datatype = {1: "BOOL", 2: "INT32", 3: "INT64", 6: "FP32", 7: "FP64"}[field]
        body.append(
            wf.text(5, wf.contents(chunks[0]) + wf.number(3, 3) + wf.contents(chunks[1])
                    + wf.text(2, datatype) + wf.text(1, CONTENT_FIELDS[field - 1]))
        )  # fmt: skip
    return b"".join(body[1:])


def _reordered() -> bytes:
    """Contents before outputs, stale fields, an entry in pieces, unknown fields at every level."""
    unknown = wf.group(9, wf.number(1, 5), wf.group(8, wf.text(1, "deep"))) + wf.fixed32(
        10, b"abcd"
    )
    value = wf.number(2, 5) + unknown + wf.text(3, "last")
    # None in the entry itself: the official package's implementations differ in what it then is.
    parameter = wf.text(4, wf.text(2, value) + wf.text(1, "stale") + wf.text(1, "key"))
    return b"".join([
        wf.raw(struct.pack("<2h", -2, 3)),
        unknown,
        wf.text(5, wf.number(3, 2) + unknown + wf.text(2, "INT16") + parameter
                + wf.text(1, "late")),
        wf.text(3, "id-1"),
        wf.text(1, "stale"),
        wf.text(5, wf.text(2, "BYTES") + wf.packed(3, [1]) + wf.contents(unknown)
                + wf.text(1, "y")),
        parameter,
        wf.entry(4, "key", wf.number(1, 1)),
        wf.raw(bytes_payload([b"element"])),
        wf.number(1, 7),  # model_name is no number: an unknown field
        wf.text(1, "m"),
    ])  # fmt: skip


def _responses() -> dict[str, bytes]:
    def official(message: ModelInferResponse) -> bytes:
        return bytes(message.SerializeToString(deterministic=True))

    return {
        "response_raw": official(_response(is_raw=True)),
        "response_contents": official(_response(is_raw=False)),
        "response_parameters": official(_parameters()),
        "response_empty_tensors": official(_empty_tensors()),
        "response_unpacked": _unpacked(),
        "response_reordered": _reordered(),
    }


RESPONSES = _responses()


ANSWERS = FOLDER / "answers.json"
SERVED = ("identity_mixed", "identity_fp32", "identity_bf16", "identity_bytes")


def render(case: RequestCase) -> bytes:
    """Have our writer make a request."""
    request = _wire.Request(
        _wire.Header(
            case.model_name,
            case.model_version,
            parameters=case.parameters,
            priority=case.priority,
            queue_timeout_us=case.queue_timeout_us,
            outputs=case.outputs,
        ),
        case.request_id,
    )
    for tensor in case.inputs:
        request.add_input(*tensor)
    rendered = request.render()
    request.release()
    return rendered


def as_json(answered: Answer) -> dict[str, Any]:
    """Write an answer down in a form that JSON has, bytes in hexadecimal."""

    def parameters(entries: dict[str, Exact]) -> dict[str, list[Any]]:
        return {
            key: [kind, value.hex() if isinstance(value, bytes) else value]
            for key, (kind, value) in sorted(entries.items())
        }

    return {
        "model_name": answered.model_name,
        "model_version": answered.model_version,
        "id": answered.id,
        "parameters": parameters(answered.parameters),
        "outputs": [
            {
                "name": output.name,
                "datatype": output.datatype,
                "shape": list(output.shape),
                "payload": output.payload.hex() if isinstance(output.payload, bytes) else None,
                "parameters": parameters(output.parameters),
            }
            for output in answered.outputs
        ],
    }


def shared_memory_of(name: str) -> list[str]:
    """Return which outputs the request of a golden response asked for in shared memory."""
    return ["OUTPUT1"] if name == "triton_shared_memory" else []


def served() -> dict[str, bytes]:
    """Have a real server answer."""
    import grpc

    from triton_fast.protocol.messages import message_class, method_path
    from triton_fast.testing import TritonServer

    numbers = struct.pack("<3f", 1.5, -0.0, float("inf"))
    texts = bytes_payload([b"", b"\x00\xff", "輸入 🜚".encode()])
    mixed: list[Any] = [
        ("INPUT0", "FP32", (3,), numbers, None),
        ("INPUT1", "INT32", (2,), struct.pack("<2i", -(2**31), 7), None),
        ("INPUT2", "BYTES", (3,), texts, None),
    ]
    empty: list[Any] = [
        ("INPUT0", "FP32", (0,), b"", None),
        ("INPUT1", "INT32", (1,), bytes(4), None),
        ("INPUT2", "BYTES", (0,), b"", None),
    ]
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 64}

    def case(model: str, inputs: list[Any], outputs: Any = (), request_id: str = "") -> RequestCase:
        return RequestCase(model, "", request_id, None, 0, None, list(outputs), inputs)

    cases = {
        "triton_mixed": case("identity_mixed", mixed, request_id="id-1"),
        "triton_some_outputs": case(
            "identity_mixed", mixed, [("OUTPUT2", None), ("OUTPUT0", None)]
        ),
        "triton_empty_tensors": case("identity_mixed", empty),
        "triton_bf16": case("identity_bf16", [("INPUT0", "BF16", (3,), payload("BF16"), None)]),
        "triton_classification": case(
            "identity_fp32",
            [("INPUT0", "FP32", (3,), struct.pack("<3f", 1.5, 3.5, -1.0), None)],
            [("OUTPUT0", {"classification": 2})],
        ),
        "triton_shared_memory": case(
            "identity_mixed", mixed, [("OUTPUT0", None), ("OUTPUT1", region), ("OUTPUT2", None)]
        ),
    }
    key = f"triton_fast_golden_{os.getpid()}"
    segment = Path("/dev/shm", key)
    segment.write_bytes(bytes(64))
    answers = {}
    try:
        with (
            TritonServer(models=SERVED) as server,
            grpc.insecure_channel(server.grpc_url) as channel,
        ):
            register = message_class("SystemSharedMemoryRegisterRequest")(
                name="r", key=f"/{key}", byte_size=64
            )
            channel.unary_unary(method_path("SystemSharedMemoryRegister"))(
                register.SerializeToString()
            )
            for name, request in cases.items():
                answers[name] = channel.unary_unary(method_path("ModelInfer"))(render(request))
    finally:
        segment.unlink()
    return answers


def write(responses: dict[str, bytes]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, case in REQUESTS.items():
        (FOLDER / f"{name}.bin").write_bytes(render(case))
    for name, encoded in responses.items():
        (FOLDER / f"{name}.bin").write_bytes(encoded)
    answers = {}
    for path in sorted(FOLDER.glob("*.bin")):
        if path.stem.startswith("request_"):
            continue
        message = parse(path.read_bytes())
        assert message is not None
        answers[path.stem] = as_json(answer(message, shared_memory_of(path.stem)))
    ANSWERS.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    write(RESPONSES | (served() if "--triton" in sys.argv[1:] else {}))
