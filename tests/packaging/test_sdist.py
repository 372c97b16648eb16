"""The source distribution: what is in it, and that pip alone makes a working package of it."""

from __future__ import annotations

import sys
import tarfile

import pytest
from environments import STALE, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

FOLDERS = ("benchmarks", "cmake", "csrc", "examples", "protos", "tests", "triton_fast", ".ci")


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
