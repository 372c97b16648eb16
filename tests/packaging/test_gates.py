"""The static gates, with our configuration: an error that is planted is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from environments import ROOT

SOUND = '''"""A module."""


def double(number: int) -> int:
    """Return twice it."""
    return number * 2
'''
PLANTED = {
    "ruff check": [
        ("an unused import", SOUND.replace("\n\n\n", "\n\nimport os\n\n\n", 1), "F401"),
        ("no docstring", SOUND.replace('    """Return twice it."""\n', ""), "D103"),
        (
            "an exception swallowed",
            SOUND + "\n\ntry:\n    double(1)\nexcept Exception:\n    pass\n",
            "BLE001",
        ),
    ],
    "ruff format --check": [
        ("a layout of one's own", SOUND.replace("number * 2", "number*2"), "reformat")
    ],
    "mypy": [
        ("no types", SOUND.replace("number: int) -> int", "number)"), "no-untyped-def"),
        ("a wrong type", SOUND.replace("-> int", "-> str"), "return-value"),
        ("any list", SOUND + "\n\nNUMBERS: list = []\n", "type-arg"),
    ],
}


def gate(command: str, path: Path) -> subprocess.CompletedProcess[str]:
    configuration = "--config-file" if command == "mypy" else "--config"
    return subprocess.run(
        [sys.executable, "-m", *command.split(), configuration, ROOT / "pyproject.toml", path],
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", PLANTED)
def test_sound_code_passes(tmp_path, command):
    path = tmp_path / "sound.py"
    path.write_text(SOUND)
    result = gate(command, path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("command", "text", "expected"),
    [
        pytest.param(command, text, expected, id=f"{command}: {name}")
        for command, cases in PLANTED.items()
        for name, text, expected in cases
    ],
)
def test_a_planted_error_is_found(tmp_path, command, text, expected):
    path = tmp_path / "planted.py"
    path.write_text(text)
    assert text != SOUND
    result = gate(command, path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert expected in result.stdout + result.stderr
