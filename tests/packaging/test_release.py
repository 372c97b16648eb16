"""What lint, its hooks and a release consist of agree; a release that is not ready is refused."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib

import pytest
from environments import ROOT, run

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAKEFILE = (ROOT / "Makefile").read_text()
CHECK_RELEASE = ROOT / ".ci" / "check_release.py"


def test_each_of_lints_goals_has_a_hook():
    goals = re.findall(r"^(lint-[\w-]+):", MAKEFILE, re.MULTILINE)
    (listed,) = re.findall(r"^LINTS := (.*)$", MAKEFILE, re.MULTILINE)
    assert len(goals) > 3
    assert sorted(listed.split()) == sorted(goals)
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    hooks = re.findall(r"entry: make (\S+)$", config, re.MULTILINE)
    assert sorted(hooks) == sorted(goals)


def test_each_of_lints_packages_is_run_and_bounded():
    for requirement in PYPROJECT["dependency-groups"]["lint"]:
        assert re.search(r">=[\d.]+,<[\d.]+$", requirement), requirement
        name = re.match(r"[\w-]+", requirement)[0]
        assert re.search(rf"^\t@.*\b{name} ", MAKEFILE, re.MULTILINE) or f"bin/{name} " in MAKEFILE


@pytest.mark.native
def test_what_wheels_are_tried_with(tmp_path):
    command = PYPROJECT["tool"]["cibuildwheel"]["test-command"].format(project=ROOT)
    program, *arguments = shlex.split(command)
    assert program == "python"
    assert "has its native channel" in run(sys.executable, *arguments, cwd=tmp_path)


def refused(root, tag):
    (root / ".ci").mkdir(exist_ok=True)
    shutil.copy2(CHECK_RELEASE, root / ".ci")
    done = subprocess.run(
        [sys.executable, root / ".ci" / CHECK_RELEASE.name, tag],
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode != 0) == bool(done.stderr)
    return done.stderr.splitlines()


def test_a_release_that_is_not_ready(tmp_path):
    project = tmp_path / "pyproject.toml"
    changelog = tmp_path / "CHANGELOG.md"
    urls = '[project.urls]\nSource = "https://example.org"\n'
    project.write_text(f'[project]\nversion = "1.2.3"\n{urls}')
    changelog.write_text("# Changelog\n\n## 1.2.3 - 2026-01-01\n\n## 1.2.2\n")
    assert refused(tmp_path, "v1.2.3") == []
    assert refused(tmp_path, "v1.2.4") == ["the tag is v1.2.4, and pyproject.toml's version 1.2.3"]
    changelog.write_text("# Changelog\n\n## Unreleased\n\n## 1.2.30\n\n## 1x2.3\n")
    assert refused(tmp_path, "v1.2.3") == ["CHANGELOG.md has no heading '## 1.2.3'"]
    project.write_text('[project]\nversion = "1.2.2"\n')
    assert len(refused(tmp_path, "v1.2.3")) == 3
