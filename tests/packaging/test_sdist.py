"""The source distribution: what is in it, and that pip alone makes a working package of it."""

from __future__ import annotations

import shutil
import sys
import tarfile

import pytest
from environments import ROOT, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STALE = (
    "triton_fast/_core/_wire.cpython-311-x86_64-linux-gnu.so",
    "triton_fast/inference.descriptors",
    "triton_fast/__pycache__/client.cpython-311.pyc",
    "build/stale.o",
    "results/benchmark.json",
    "dist/stale.whl",
    ".venv/stale.py",
)
FOLDERS = ("benchmarks", "cmake", "csrc", "examples", "protos", "tests", "triton_fast", ".ci")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The source, as it looks to somebody who has worked in it: with old products lying about."""
    folder = tmp_path_factory.mktemp("source") / "triton_fast"
    unwanted = {".git", ".venv", ".build-venv", "build", "dist", "results", "__pycache__"}
    shutil.copytree(
        ROOT,
        folder,
        ignore=lambda _, names: [n for n in names if n in unwanted or n.endswith("_cache")],
    )
    for name in STALE:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"of another day")
    return folder


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, tree)
    (path,) = folder.iterdir()
    return path


def test_what_is_in_it(sdist):
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert names.isdisjoint(STALE)
    assert not {name for name in names if name.endswith((".so", ".o", ".pyc", ".whl"))}
    # Whoever has it can do all that whoever has a clone can.
    for folder in FOLDERS:
        assert any(name.startswith(f"{folder}/") for name in names), folder
    assert {"CMakeLists.txt", "LICENSE", "Makefile", "README.md", "pyproject.toml"} <= names


def test_pip_installs_it(sdist, new_environment, triton_server):
    """``pip install``, with nothing prepared: a compiler is all that it finds here."""
    environment = new_environment("from_source")
    environment.install(sdist)
    environment.infer(triton_server.grpc_url)


def test_pip_installs_a_tree_that_was_worked_in(tree, new_environment, triton_server):
    environment = new_environment("from_tree")
    environment.install(tree)
    environment.infer(triton_server.grpc_url)
