"""A real Triton server for tests: `TritonServer`, test models, pytest fixtures.

Part of the package for its users too. Loads nothing until a name is asked for, because pytest
imports this package, for its plugin, in every project that has triton_fast installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triton_fast.testing.errors import (
        BackendBuildFailed,
        PythonBackendUnavailable,
        TritonServerError,
        TritonServerFailed,
        TritonServerNotFound,
    )
    from triton_fast.testing.installation import find_tritonserver
    from triton_fast.testing.models import (
        FURTHER_TEST_MODELS,
        PYTHON_TEST_MODELS,
        TEST_MODELS,
        write_test_models,
    )
    from triton_fast.testing.server import TritonServer

__all__ = [
    "FURTHER_TEST_MODELS",
    "PYTHON_TEST_MODELS",
    "TEST_MODELS",
    "BackendBuildFailed",
    "PythonBackendUnavailable",
    "TritonServer",
    "TritonServerError",
    "TritonServerFailed",
    "TritonServerNotFound",
    "find_tritonserver",
    "write_test_models",
]

_HOMES = {
    "FURTHER_TEST_MODELS": "models",
    "PYTHON_TEST_MODELS": "models",
    "TEST_MODELS": "models",
    "BackendBuildFailed": "errors",
    "PythonBackendUnavailable": "errors",
    "TritonServer": "server",
    "TritonServerError": "errors",
    "TritonServerFailed": "errors",
    "TritonServerNotFound": "errors",
    "find_tritonserver": "installation",
    "write_test_models": "models",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
