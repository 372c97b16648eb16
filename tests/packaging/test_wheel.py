"""The wheel: what is in it, what it says of itself, and that it works in a fresh environment."""

from __future__ import annotations

import email
import email.message
import os
import re
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from environments import ROOT
from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename

import triton_fast
from triton_fast.channels.native.channel import why_not_native

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LARGEST = 2_000_000  # bytes; it was 200,000 in 2026

# Beside these, compiled modules.
KINDS = re.compile(
    r"triton_fast/([\w/]+\.pyi?|py\.typed|inference\.descriptors|testing/backends/\w+\.[ch]pp)"
)
COMPILED = re.compile(r"triton_fast/_core/_\w+\.[\w-]+\.so")


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        return set(archive.namelist())


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (path for path in archive.namelist() if path.endswith(f".dist-info/{name}"))
        return archive.read(path).decode()


def test_it_has_what_it_needs(names):
    assert {
        "triton_fast/__init__.py",
        "triton_fast/py.typed",
        "triton_fast/inference.descriptors",
        "triton_fast/channels/grpcio/channel.py",
        "triton_fast/_core/_wire.pyi",
        "triton_fast/testing/plugin.py",
        "triton_fast/testing/backends/identity.cpp",
    } <= names


def test_it_has_every_module_of_the_source(names):
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "triton_fast").rglob("*.py")}
    assert sources <= names
    modules = {path.stem for path in (ROOT / "triton_fast" / "_core").glob("*.pyx")}
    if why_not_native():
        modules.remove("_http2")
    # One build of each, and none that lay about in the source tree.
    compiled = sorted(Path(name).name.split(".")[0] for name in names if COMPILED.fullmatch(name))
    assert compiled == sorted(modules)


@pytest.mark.native
def test_it_has_the_native_channel(names):
    assert [name for name in names if COMPILED.fullmatch(name) and "/_http2." in name]


def test_it_has_nothing_else(names):
    ours = {name for name in names if ".dist-info/" not in name}
    assert {n for n in ours if not KINDS.fullmatch(n) and not COMPILED.fullmatch(n)} == set()


def test_it_is_small(wheel):
    assert wheel.stat().st_size < LARGEST


def test_its_license_is_in_it(wheel):
    assert read(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()


def test_what_it_says_of_itself(wheel):
    said: email.message.Message = email.message_from_string(read(wheel, "METADATA"))
    assert said["Name"] == "triton-fast"
    assert said["Version"] == PROJECT["version"] == triton_fast.__version__
    assert said["Requires-Python"] == ">=3.11"
    assert said["License-Expression"] == "Apache-2.0"
    urls = [f"{label}, {url}" for label, url in PROJECT.get("urls", {}).items()]
    assert said.get_all("Project-URL", []) == urls
    assert "Typing :: Typed" in said.get_all("Classifier", [])
    required = {Requirement(text) for text in said.get_all("Requires-Dist", [])}
    needed = {requirement for requirement in required if requirement.marker is None}
    assert needed == {Requirement(text) for text in PROJECT["dependencies"]}
    assert {requirement.name for requirement in needed} == {"numpy", "grpcio", "protobuf"}
    assert set(said.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert "triton_fast = triton_fast.testing.plugin" in read(wheel, "entry_points.txt")


def test_it_is_for_this_python(wheel):
    _, _, _, tags = parse_wheel_filename(wheel.name)
    abi = "cp311-cp311" if sys.version_info < (3, 12) else "cp312-abi3"
    assert {f"{tag.interpreter}-{tag.abi}" for tag in tags} == {abi}
    platform = re.sub(r"[.-]", "_", sysconfig.get_platform())
    assert {tag.platform for tag in tags} == {platform}


@pytest.mark.skipif("TRITON_FAST_WHEEL" not in os.environ, reason="not run by make")
def test_it_is_what_is_tested(wheel):
    """These tests are of the wheel's files, and not of the source tree's."""
    package = Path(triton_fast.__file__).parent
    assert package.is_relative_to(sys.prefix)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("triton_fast/") and name.endswith(".py"):
                assert package.parent.joinpath(name).read_bytes() == archive.read(name), name


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_fresh_environment(wheel, new_environment, triton_server):
    environment = new_environment("fresh")
    environment.install(wheel)
    environment.infer(triton_server.grpc_url)
    # With nothing beside it but what it asks for, and what grpcio does.
    assert set(environment.versions()) <= {
        "triton-fast", "numpy", "grpcio", "protobuf", "typing_extensions"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the oldest Python has the oldest versions")
def test_the_oldest_versions(wheel, new_environment, triton_server):
    """Exactly the versions that pyproject.toml names as the lowest."""
    lowest = {}
    for text in PROJECT["dependencies"]:
        requirement = Requirement(text)
        (specifier,) = requirement.specifier
        assert specifier.operator == ">="
        lowest[requirement.name] = specifier.version
    environment = new_environment("oldest")
    environment.install(wheel, *(f"{name}=={version}" for name, version in lowest.items()))
    installed = environment.versions()
    for name, version in lowest.items():
        assert (installed[name] + ".0").startswith(version)
    environment.infer(triton_server.grpc_url)
