"""The package's names are there, all of them, when they are asked for and not before."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import triton_fast


def test_every_name_is_there():
    assert "Client" in triton_fast.__all__
    for name in triton_fast.__all__:
        assert getattr(triton_fast, name) is not None
    assert set(dir(triton_fast)) == {*triton_fast.__all__, "testing"}
    assert triton_fast.testing.TritonServer
    # What annotations of public functions name can be imported, and defaults can be read.
    for name in ("Outputs", "HeaderSource", "Compression"):
        assert name in triton_fast.__all__
    assert "compression: 'Compression | None' = <the client's own>" in str(
        inspect.signature(triton_fast.Client.infer)
    )
    with pytest.raises(AttributeError, match="'triton_fast' has no attribute 'Klient'"):
        triton_fast.Klient  # noqa: B018


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(triton_fast.__file__).read_text(encoding="utf-8"))
    seen = {
        name.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for name in node.names
    }
    assert seen == triton_fast._HOMES


def test_nothing_is_loaded_before():
    code = """
import sys
import triton_fast.testing.plugin
assert "numpy" not in sys.modules
assert "triton_fast.client.client" not in sys.modules
from triton_fast import *
assert Client.__module__ == "triton_fast.client.client"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_source_that_is_not_compiled_says_what_to_do(tmp_path):
    """As when Python is started in a clone of the source: its folder comes first."""
    ignore = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(Path(triton_fast.__file__).parent, tmp_path / "triton_fast", ignore=ignore)
    result = subprocess.run(
        [sys.executable, "-c", "from triton_fast import Client"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    last = result.stderr.splitlines()[-1]
    assert last.startswith(
        f"ImportError: triton_fast was imported from {tmp_path}, where it is not"
    )
    assert last.endswith("or install it: pip install .")


ASYNC = [
    "AsyncClient",
    "AsyncStream",
    "AsyncResponseStream",
    "AsyncInferSequence",
    "AsyncGeneration",
]


@pytest.mark.parametrize("name", ASYNC)
def test_what_is_asynchronous_is_closed_by_either_name(name):
    """By `close`, as its blocking twin, and by `aclose`, as `contextlib.aclosing` does."""
    for method in ("close", "aclose"):
        assert inspect.iscoroutinefunction(getattr(getattr(triton_fast, name), method))


def test_a_client_in_aclosing():
    async def work():
        async with contextlib.aclosing(triton_fast.AsyncClient("localhost:1")) as client:
            pass
        with pytest.raises(triton_fast.ClosedError):
            await client.infer("m", {})

    asyncio.run(work())


TWINS = {
    "Client": "AsyncClient",
    "Model": "AsyncModel",
    "InferSequence": "AsyncInferSequence",
    "Generation": "AsyncGeneration",
}


@pytest.mark.parametrize("name", TWINS)
def test_both_faces_are_told_of_by_their_own_names(name):
    """In what Python says of a wrong argument, which is by a method's qualified name."""
    for one in (name, TWINS[name]):
        kind = getattr(triton_fast, one)
        for attribute, method in inspect.getmembers(kind, inspect.isfunction):
            if not method.__qualname__.startswith("OneProcess."):  # which takes no argument
                assert method.__qualname__ == f"{one}.{attribute}"
            assert method.__module__.startswith("triton_fast.")


@pytest.mark.parametrize("name", TWINS)
def test_both_faces_have_the_same_calls_and_texts(name):
    """But for `stream` and `submit`, which are written by hand."""
    one, other = getattr(triton_fast, name), getattr(triton_fast, TWINS[name])
    for attribute, method in inspect.getmembers(one, inspect.isfunction):
        twin = getattr(other, attribute, None)
        if attribute in {"stream", "submit"} or attribute.startswith("_"):
            continue
        parameters = inspect.signature(method).parameters
        assert list(inspect.signature(twin).parameters.values()) == list(parameters.values())
        assert len(inspect.getdoc(twin).split()) >= len(inspect.getdoc(method).split())
