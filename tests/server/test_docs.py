"""The documents' Python is run as it stands, each document's blocks one after the other.

They are given a server at the address that they name, and what they take for granted: a `batch`.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from support.interpreter import run_python
from support.required import need

from triton_fast import Client

pytestmark = pytest.mark.server

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(document, url, given):
    """Run a document's blocks; return how many there were."""
    text = (DOCS / document).read_text(encoding="utf-8")
    names: dict[str, object] = {}
    matches = list(BLOCK.finditer(text))
    for match in matches:
        names |= given  # what a block before has called so was its own
        code = compile(
            "\n" * text[: match.start(1)].count("\n") + match[1].replace("localhost:8001", url),
            str(DOCS / document),
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        )
        coroutine = eval(code, names)
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(coroutine)
    made = names.get("client")  # once for the whole program
    if isinstance(made, Client):
        made.close()
    return len(matches)


def test_the_readmes_program_runs_as_it_stands(triton_server_factory):
    """It starts a server itself; the fixture says what to do if no Triton is installed."""
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    first = BLOCK.search(text)
    assert first is not None
    assert run_python(first[1], timeout=100).split() == [
        "[",
        *(f"{n}." for n in range(1, 16)),
        "16.]",
    ]


def test_every_document_is_run():
    tested = {"asyncio.md", "gevent.md", "shared-memory.md", "streams.md"}
    with_python = {path.name for path in DOCS.glob("*.md") if BLOCK.search(path.read_text("utf-8"))}
    assert with_python == tested


def test_streams(python_server, capsys):
    assert run("streams.md", python_server.grpc_url, {}) == 11
    said = capsys.readouterr().out
    assert said.count("number [2] is [9]") == 2
    assert "3 is given 3 times\n1 is given 1 times\n2 is given 2 times\n" in said
    assert said.count("square of 3 [3]\n") == 3
    assert "None\n" in said
    assert "refused: " in said
    assert "2 answers all the same" in said
    assert "the sum so far: [6]" in said
    assert "[1, 3, 6]" in said
    assert "the sum so far: [3]" in said
    assert "the answer of vllm_like\nThese are tokens\n3 tokens, ended by stop" in said
    assert "Token(text='one', index=0)" in said


@pytest.mark.server_may_die
def test_asyncio(server, capsys):
    need("uvloop")
    assert run("asyncio.md", server.grpc_url, {}) == 6
    said = capsys.readouterr().out
    assert "100 answers, the last one is [99. 99. 99.]" in said
    assert "given up, and the model knows" in said
    assert "the same, and told more of: ModelInfer('slow') at" in said
    assert "0.5\n" in said
    assert "True on uvloop" in said


def test_gevent(server):
    """By itself: it patches the program that runs it."""
    need("gevent")
    (block,) = BLOCK.findall((DOCS / "gevent.md").read_text(encoding="utf-8"))
    assert run_python(block.replace("localhost:8001", server.grpc_url)) == "6 answers\n"


# shared-memory.md names models that readers have heard of. Here, each score is the first pixel.
CONFIG = """\
backend: "python"
max_batch_size: 8
input [ {{ name: "{image}", data_type: TYPE_FP32, dims: [ 3, 224, 224 ] }} ]
output [ {{ name: "{scores}", data_type: TYPE_FP32, dims: [ 1000 ] }} ]
instance_group [ {{ kind: KIND_CPU }} ]
"""
CODE = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request.inputs()[0]) for request in requests]

    def answer(self, images):
        first = images.as_numpy()[:, 0, 0, :1]
        scores = np.ascontiguousarray(np.broadcast_to(first, (len(first), 1000)))
        name = "scores" if images.name() == "image" else "fc6_1"
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, scores)])
"""


class Camera:
    """Its pictures are numbered."""

    def read_into(self, images):
        images[:] = np.arange(len(images))[:, None, None, None]


def test_shared_memory(triton_server_factory, tmp_path, monkeypatch):
    for model, image, scores in (("resnet", "image", "scores"), ("densenet", "data_0", "fc6_1")):
        (tmp_path / model / "1").mkdir(parents=True)
        (tmp_path / model / "config.pbtxt").write_text(CONFIG.format(image=image, scores=scores))
        (tmp_path / model / "1" / "model.py").write_text(CODE)
    results = []

    class Watched(Client):
        def infer(self, *arguments, **more):
            results.append(super().infer(*arguments, **more))
            return results[-1]

    shape = (3, 224, 224)
    with triton_server_factory(tmp_path) as server, Watched(server.grpc_url, timeout=30) as client:
        given = {
            "client": client,
            "batch": np.full((4, *shape), 5, np.float32),
            "camera": Camera(),
            "image": np.full(shape, 6, np.float32),
            "images": [np.full(shape, number, np.float32) for number in range(20)],
        }
        monkeypatch.setattr("triton_fast.Client", Watched)
        assert run("shared-memory.md", server.grpc_url, given) == 2
        server.kill()
    first, filled, split, by_hand = results
    assert first["scores"][:, 0].tolist() == [5] * 4
    assert filled["scores"][:, 0].tolist() == list(range(8))
    assert split["scores"][:, 0].tolist() == list(range(20))
    assert by_hand.shared_memory["fc6_1"].shape == (1, 1000)
