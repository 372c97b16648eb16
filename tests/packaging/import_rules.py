"""Who may import whom. Reads source text and imports nothing of what it looks at.

`violations(root)` reads ``triton_fast/`` and ``csrc/`` below a folder and returns one sentence for
each broken rule. Imports point down only; type-checking imports too, except those from outside.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# From the ground up. A module may import those of the lines above its own, and no other. A folder
# stands for all that is in it.
LAYERS = [
    ("errors", "datatypes"),
    ("_core",),
    ("classification", "deadline", "forks", "headers", "keepalive", "messages", "target", "tls"),
    ("channels", "channels.base", "metadata", "tensor"),
    (
        "channels.aio_pace",
        "channels.compression",
        "channels.grpc_fork",
        "channels.grpcio",
        "channels.threads",
        "unary",
    ),
    ("channels.grpc_streaming",),
    ("channels.aio_line", "channels.grpc_stream", "channels.loops", "channels.native_stream"),
    ("channels.aio_grpc_stream", "future", "query", "request", "signature"),
    ("channels.aio_grpc", "channels.grpc", "channels.native", "health", "settings"),
    ("call_settings", "management", "registry", "signatures", "text_models"),
    ("channels.aio_native_stream", "stale"),
    ("channels.aio_native",),
    ("channels.choice", "pool", "regions"),
    ("response",),
    ("answers", "placement", "text_events"),
    ("attempt", "sharing"),
    ("generation", "streams"),
    ("admission", "aio_sharing", "aio_streams", "connection"),
    ("aio_connection", "sequences"),
    ("aio_sequences", "split"),
    ("aio_split", "model"),
    ("aio_model", "aio_regions"),
    ("aio_client", "client"),
    ("region",),
    ("",),  # triton_fast itself
    ("testing",),
]
# Packages that one module may load, and the one. Everywhere else: under TYPE_CHECKING at most.
RESERVED = {"grpc": "channels.grpcio", "google.protobuf": "messages"}
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
    for path in sorted(package.rglob("*.py*")):
        if path.suffix not in {".py", ".pyi", ".pyx", ".pxd"}:
            continue
        module = ".".join(path.relative_to(package).with_suffix("").parts)
        module = module.removesuffix("__init__").removesuffix(".")
        if module.startswith(NOT_OURS) and module not in NOT_OURS:
            continue
        imports = _python_imports if path.suffix in {".py", ".pyi"} else _cython_imports
        for one in imports(module, path):
            sentence = _broken_rule(one, package)
            if sentence:
                found.append(f"{path.relative_to(root)}: {sentence}")
    for path in sorted((root / "csrc").rglob("*")):
        if path.suffix in {".hpp", ".h", ".cpp", ".cc", ".c"}:
            found += [f"{path.relative_to(root)}: {one}" for one in _broken_includes(path, root)]
    return found


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
    importer_layer, target_layer = _layer(one.module), _layer(target)
    if importer_layer is None:
        return f"{name} has no layer: give it one in {Path(__file__).name}"
    if _layer_name(one.module) == _layer_name(target) and _is_folder(one.module, package):
        return ""
    if target_layer is None or target_layer >= importer_layer:
        return f"{name} imports {target or 'triton_fast'}, which is not below it"
    return ""


def _module_of(parts: list[str], package: Path) -> str:
    """Return the module that an absolute name is in: the last part may be something inside one."""
    while parts:
        path = package.joinpath(*parts)
        if path.is_dir() or any(path.with_suffix(s).is_file() for s in (".py", ".pyx", ".pxd")):
            break
        parts = parts[:-1]
    return ".".join(parts)


def _layer_name(module: str) -> str | None:
    names = {name for layer in LAYERS for name in layer}
    while module not in names:
        if "." not in module:
            return None
        module = module.rpartition(".")[0]
    return module


def _layer(module: str) -> int | None:
    name = _layer_name(module)
    return next((rank for rank, layer in enumerate(LAYERS) if name in layer), None)


def _is_folder(module: str, package: Path) -> bool:
    return package.joinpath(*(_layer_name(module) or "").split(".")).is_dir() and module != ""


def _python_imports(module: str, path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    # What a relative import starts from: the folder that the module is in.
    here = ["triton_fast", *module.split(".")] if module else ["triton_fast"]
    if path.stem != "__init__":
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
            yield Import(module, target, node in typing_only or path.suffix == ".pyi")


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
