"""Which models the servers of these tests have; see conftest.py."""

from __future__ import annotations

from triton_fast.testing import FURTHER_TEST_MODELS, PYTHON_TEST_MODELS, TEST_MODELS

SERVED = [*TEST_MODELS, *FURTHER_TEST_MODELS]
IN_PYTHON = [name for name in PYTHON_TEST_MODELS if name != "add_sub_python"]

# Of the fixture `sequence_server`: sequences may be idle for a minute, or for half a second.
PATIENT = "accumulate_direct"
HASTY = "accumulate_oldest"
