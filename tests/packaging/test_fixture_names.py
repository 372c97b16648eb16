"""A fixture is found by its name: there is one of each name in all of tests."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def fixtures(text: str) -> list[str]:
    """Return the names of a file's fixtures."""
    return [
        node.name
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any("pytest.fixture" in ast.unparse(one) for one in node.decorator_list)
    ]


def test_no_two_fixtures_have_one_name() -> None:
    homes = defaultdict(list)
    for path in sorted(TESTS.rglob("*.py")):
        for name in fixtures(path.read_text(encoding="utf-8")):
            homes[name].append(str(path.relative_to(TESTS)))
    assert len(homes) > 50
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_fixtures_of_all_kinds_are_seen() -> None:
    text = """
@pytest.fixture
def plain(): ...
@pytest.fixture(scope="module")
def shared(): ...
class Tests:
    @pytest.fixture(autouse=True)
    async def inner(self): ...
def none(): ...
"""
    assert fixtures(text) == ["plain", "shared", "inner"]
