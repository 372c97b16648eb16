"""The package's names are there, all of them, when they are asked for and not before."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import triton_fast


def test_every_name_is_there():
    assert "Client" in triton_fast.__all__
    for name in triton_fast.__all__:
        assert getattr(triton_fast, name) is not None
    assert set(triton_fast.__all__) <= set(dir(triton_fast))
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
