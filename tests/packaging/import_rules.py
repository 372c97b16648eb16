"""Who may import whom. Reads source text and imports nothing of what it looks at.

`violations(root)` reads ``triton_fast/`` and ``csrc/`` below a folder and returns a sentence for
each broken rule. Imports point down only, and in no circle. What only type checkers see may point
up: an annotation names what a function is given, and loads nothing.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

# The rooms, from the ground up. A room may import from itself and from those above it in this list.
ROOMS = [
    "errors",
    "_core",
    "options",
    "channels",
    "protocol",
    "management",
    "inference",
    "shared_memory",
    "streaming",
    "text",
    "client",
    "testing",
    "",  # triton_fast itself
]
# Rooms of which each knows nothing of the other, though they lie beside each other.
APART = {"streaming": "text", "text": "streaming", "channels.native": "channels.grpcio"}
APART |= {other: one for one, other in APART.items()}
# Packages that one module may load, and the one. Everywhere else: under TYPE_CHECKING at most.
RESERVED = {
    "grpc": "channels.grpcio.common",
    "gevent": "channels.greenlets",
    "google.protobuf": "protocol.messages",
}
# Never: another client, and generated code (not protobuf's own), tied to one release of it.
FORBIDDEN = re.compile(r"tritonclient\b|grpc_tools\b|(?!google\.protobuf\.).*_pb2(_grpc)?\b")
# These run inside the server, or are read by it: no layer of ours.
NOT_OURS = ("testing.models",)
# The engine's parts do not know each other, only what they share; nothing there knows Python.
PARTS = ("wire", "shm", "http2")
SHARED = ("error", "process", "span")

_CYTHON_IMPORT = re.compile(
    r"^\s*(?:from\s+([\w.]+)\s+c?import\b|c?import\s+([\w.]+))", re.MULTILINE
)
_INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)


@dataclass(frozen=True)
class Import:
    """One import: by which module, of what (absolute), and whether only type checkers see it."""

    module: str
    target: str
    typing_only: bool


def violations(root: Path) -> list[str]:
    """Return what is wrong below a folder, in sentences."""
    package = root / "triton_fast"
    found = []
    needs: dict[str, set[str]] = {}
    for path in sorted(package.rglob("*.py*")):
        if path.suffix not in {".py", ".pyi", ".pyx", ".pxd"}:
            continue
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        module = module.removesuffix("__init__").removesuffix(".")
        if module.startswith(NOT_OURS) and module not in NOT_OURS:
            continue
        imports: Callable[[str, Path], Iterable[Import]]
        imports = _python_imports if path.suffix in {".py", ".pyi"} else _cython_imports
        for one in imports(module, path):
            sentence = _broken_rule(one, package)
            if sentence:
                found.append(f"{path.relative_to(root)}: {sentence}")
            elif one.target.split(".")[0] == "triton_fast" and not one.typing_only:
                target = _module_of(one.target.split(".")[1:], package)
                if target != module:
                    needs.setdefault(module, set()).add(target)
    for circle in _circles(needs):
        path = "/".join(circle[0].split("."))
        found.append(f"triton_fast/{path}.py: {' imports '.join(circle)}, in a circle")
    for path in sorted((root / "csrc").rglob("*")):
        if path.suffix in {".hpp", ".h", ".cpp", ".cc", ".c"}:
            found += [f"{path.relative_to(root)}: {one}" for one in _broken_includes(path, root)]
    return found


def _circles(needs: dict[str, set[str]]) -> list[list[str]]:
    """Return the ways back to where one came from, each once."""
    done: set[str] = set()
    circles = []

    def follow(module: str, way: list[str]) -> None:
        if module in way:
            circle = way[way.index(module) :]
            first = circle.index(min(circle))
            circles.append([*circle[first:], *circle[:first], circle[first]])
        elif module not in done:
            for target in sorted(needs.get(module, ())):
                follow(target, [*way, module])
            done.add(module)

    for module in sorted(needs):
        follow(module, [])
    return circles


def _broken_rule(one: Import, package: Path) -> str:
    name = one.module or "triton_fast"
    if FORBIDDEN.match(one.target):
        return f"{name} imports {one.target}, which nothing may"
    compiled = one.module.startswith("_core.") and not one.typing_only
    if one.target.split(".")[0] == "numpy" and compiled:
        return f"{name} imports numpy; the compiled modules use the buffer protocol"
    for reserved, owner in RESERVED.items():
        inside = one.target == reserved or one.target.startswith(reserved + ".")
        if inside and not one.typing_only and one.module != owner:
            return f"{name} imports {one.target}, which only {owner} may"
    if one.target.split(".")[0] != "triton_fast":
        return ""
    target = _module_of(one.target.split(".")[1:], package)
    here, there = _room(one.module), _room(target)
    if here is None:
        return f"{name} is in no room: give it one in {Path(__file__).name}"
    if one.typing_only and here not in {"errors", "_core"}:
        return ""
    if there is None or ROOMS.index(there) > ROOMS.index(here):
        return f"{name} imports {target or 'triton_fast'}, which is not below it"
    for room, other in APART.items():
        if _inside(one.module, room) and _inside(target, other):
            return f"{name} imports {target}, of which {room} knows nothing"
    return ""


def _room(module: str) -> str | None:
    first = module.partition(".")[0]
    return first if first in ROOMS else None


def _inside(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def _module_of(parts: list[str], package: Path) -> str:
    """Return the module that an absolute name is in: the last part may be something inside one."""
    while parts:
        path = package.joinpath(*parts)
        if path.is_dir() or any(path.with_suffix(s).is_file() for s in (".py", ".pyx", ".pxd")):
            break
        parts = parts[:-1]
    return ".".join(parts)


def _python_imports(module: str, path: Path) -> tuple[Import, ...]:
    return _imports_in(path.read_text(encoding="utf-8"), module, path.stem, path.suffix)


@functools.cache  # the tests read the whole package again for each import that they plant
def _imports_in(text: str, module: str, stem: str, suffix: str) -> tuple[Import, ...]:
    return tuple(_find_imports(ast.parse(text), module, stem, suffix))


def _find_imports(tree: ast.Module, module: str, stem: str, suffix: str) -> Iterator[Import]:
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    # What a relative import starts from: the folder that the module is in.
    here = ["triton_fast", *module.split(".")] if module else ["triton_fast"]
    if stem != "__init__":
        here = here[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            # `from . import messages` and `from google import protobuf` name modules too.
            targets = [".".join([*base, alias.name]) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__")
        ):
            first = node.args[0] if node.args else None
            targets = [first.value] if isinstance(first, ast.Constant) else []
        else:
            continue
        for target in targets:
            yield Import(module, target, node in typing_only or suffix == ".pyi")


def _cython_imports(module: str, path: Path) -> Iterator[Import]:
    for match in _CYTHON_IMPORT.finditer(path.read_text(encoding="utf-8")):
        target = match[1] or match[2]
        if target.startswith("."):
            # Relative to the folder; the compiled modules lie flat in theirs.
            folder = module.rpartition(".")[0].split(".")
            level = len(target) - len(target.lstrip("."))
            base = ["triton_fast", *folder][: 2 + len(folder) - level]
            target = ".".join([*base, *filter(None, target.lstrip(".").split("."))])
        yield Import(module, target, typing_only=False)


def _broken_includes(path: Path, root: Path) -> Iterator[str]:
    own = _part(path.relative_to(root / "csrc").parts)
    shared = path.stem in SHARED
    for header in _INCLUDE.findall(path.read_text(encoding="utf-8")):
        if Path(header).name in {"Python.h", "pybind11.h"} or header.startswith("numpy/"):
            yield f"includes {header}; the core knows no Python"
        if not header.startswith("triton_fast/") or not (own or shared):
            continue
        other = _part(Path(header).parts)
        if other != own and (other is not None or Path(header).stem not in SHARED):
            yield f"includes {header}, which is not below it"


def _part(parts: tuple[str, ...]) -> str | None:
    """Return which of the engine's parts a path belongs to, if any."""
    return next((part for part in parts[:-1] if part in PARTS), None)
