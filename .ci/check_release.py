#!/usr/bin/env python3
"""Refuses a tag that the tree is not ready for: ``.ci/check_release.py v1.2.3``."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def obstacles(tag: str, root: Path) -> list[str]:
    """Return what is still to be done before this tag can be published."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    version = project["version"]
    changelog = (root / "CHANGELOG.md").read_text()
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, and pyproject.toml's version {version}")
    if not re.search(rf"^## {re.escape(version)}( |$)", changelog, re.MULTILINE):
        found.append(f"CHANGELOG.md has no heading '## {version}'")
    if not project.get("urls", {}).get("Source"):
        found.append("pyproject.toml has no Source in [project.urls]: where the repository is")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(obstacles(sys.argv[1], Path(__file__).resolve().parents[1])) or 0)
