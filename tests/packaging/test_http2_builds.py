"""TRITON_FAST_HTTP2: the four ways to build the native channel, and what is said if one fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from environments import ROOT, run

CMAKE = ROOT / ".build-venv" / "bin" / "cmake"

WITHOUT = """
import sys
import numpy as np
from triton_fast import Client, MissingDependency

ones = {"INPUT0": np.ones(3, np.float32)}
with Client(sys.argv[1], timeout=60) as client:
    assert client.infer("identity_fp32", ones)["OUTPUT0"].tolist() == [1, 1, 1]
assert "grpc" in sys.modules
try:
    with Client(sys.argv[1], channel="native") as client:
        client.is_live()
except MissingDependency as error:
    print(error)
"""
BUILT_IN = """
import sys
import numpy as np
from triton_fast import Client
from triton_fast._core import _http2

ones = {"INPUT0": np.ones(3, np.float32)}
with Client(sys.argv[1], channel="native", timeout=60) as client:
    assert client.infer("identity_fp32", ones)["OUTPUT0"].tolist() == [1, 1, 1]
assert "grpc" not in sys.modules
built, loaded = _http2.versions()
assert built == loaded
print(_http2.__file__)
"""


def configured(folder: Path, *settings: str, **environment: str) -> str:
    """Run CMake on the core alone; return what it says of the native channel, in one line."""
    if not CMAKE.exists():
        pytest.skip(f"there is no {CMAKE}: `make wheel` installs it")
    done = subprocess.run(
        [CMAKE, "-S", ROOT, "-B", folder, "-DTRITON_FAST_PYTHON=OFF", *settings],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    said = " ".join(done.stdout.split())
    assert (done.returncode == 0) == ("Native channel: " in said and "Error" not in said), said
    return said


def test_off(tmp_path):
    assert "left out, as asked" in configured(tmp_path, "-DTRITON_FAST_HTTP2=OFF")


def test_where_the_system_has_none(tmp_path):
    nowhere = {"PKG_CONFIG_LIBDIR": str(tmp_path), "PKG_CONFIG_PATH": ""}
    how = "(Debian: apt-get install pkg-config libnghttp2-dev)"
    said = configured(tmp_path, **nowhere)
    assert "Native channel: left out, for there is no libnghttp2 >= 1.43 " + how in said
    said = configured(tmp_path, "-DTRITON_FAST_HTTP2=SYSTEM", **nowhere)
    assert "TRITON_FAST_HTTP2=SYSTEM needs pkg-config and libnghttp2 1.43 or newer " + how in said


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["HTTP2=MAYBE"], "is AUTO, SYSTEM, BUNDLED or OFF, not MAYBE"),
        (
            ["HTTP2=BUNDLED", f"NGHTTP2_SOURCE={ROOT}"],
            "is not nghttp2's source: it has no lib/incl",
        ),
        (
            ["HTTP2=BUNDLED", "NGHTTP2_SOURCE={old}"],
            "is nghttp2 1.60.2; to be built in it has to be",
        ),
    ],
)
def test_settings_that_make_no_sense(tmp_path, settings, expected):
    headers = tmp_path / "old" / "lib" / "includes" / "nghttp2"
    headers.mkdir(parents=True)
    (headers / "nghttp2.h").touch()
    (headers / "nghttp2ver.h").write_text('#define NGHTTP2_VERSION "1.60.2"\n')
    settings = ["-DTRITON_FAST_" + setting.format(old=tmp_path / "old") for setting in settings]
    assert expected in configured(tmp_path / "build", *settings)


def built(folder: Path, value: str, source: Path = ROOT) -> Path:
    """Build a wheel as pip does for anybody who asks for that."""
    run(
        *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder / "dist"),
        *(f"-Cbuild-dir={folder / 'build'}", f"-Ccmake.define.TRITON_FAST_HTTP2={value}", source),
    )
    (wheel,) = (folder / "dist").iterdir()
    return wheel


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_package_without_it(tmp_path, tree, new_environment, triton_server):
    """From a tree that was worked in: nothing that lies about there gets into the wheel."""
    environment = new_environment("without")
    environment.install(built(tmp_path, "OFF", tree))
    environment.infer(triton_server.grpc_url)
    said = run(environment.python, "-c", WITHOUT, triton_server.grpc_url)
    assert "install libnghttp2 and pkg-config" in said
    assert "or use channel='grpc'" in said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_package_with_it_built_in(tmp_path, new_environment, request):
    """From the folder that TRITON_FAST_NGHTTP2_SOURCE names, or else from the release."""
    try:
        wheel = built(tmp_path, "BUNDLED")
    except AssertionError as error:
        no_source = re.search(r"https://\S+\s+could\s+not\s+be\s+had[^.]*", str(error))
        if no_source is None:
            raise
        pytest.skip(" ".join(no_source[0].split()))
    # Asked for now: without the source this is nothing to test.
    triton_server = request.getfixturevalue("triton_server")
    environment = new_environment("built in")
    environment.install(wheel)
    environment.infer(triton_server.grpc_url)
    module = run(environment.python, "-c", BUILT_IN, triton_server.grpc_url).strip()
    assert Path(module).is_relative_to(environment.folder)
    assert "libnghttp2" not in run("ldd", module)
    assert "nghttp2" not in run("nm", "--dynamic", module)
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if "nghttp2" in name]
        assert [Path(name).name for name in names] == ["nghttp2-COPYING"]
        assert b"nghttp2 contributors" in archive.read(names[0])
