"""Packages that some tests take, and that only `make` is sure to have installed."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest


def need(package: str) -> None:
    """Skip a test where a package is not installed, or fail in CI."""
    if find_spec(package) is None:
        if os.environ.get("CI", "").lower() not in {"", "0", "false"}:
            pytest.fail(f"{package} is required here", pytrace=False)
        pytest.skip(f"no {package}")
