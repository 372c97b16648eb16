"""Writes the blocking twin of each module of coroutines that says the same but for ``await``.

Usage: ``python tools/twins.py [--check]``, with the Python of an environment that has ruff;
``make twins`` and ``make lint`` do. With ``--check`` nothing is written: where a twin is not what
its source makes it, what differs is shown, and the exit status is 1.

What the twins do not share is written by hand in other modules, and nothing in a source says which
twin a line is for. What is renamed is renamed everywhere: in code, docstrings and comments.
"""

from __future__ import annotations

import ast
import difflib
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "triton_fast"

# The sources; the twin of each has the same name without `_async`.
SOURCES = [
    "client/calls_async",
    "client/model_calls_async",
    "client/policies_async",
    "management/health_check_async",
    "shared_memory/regions_async",
    "streaming/sequence_async",
    "text/generation_async",
]

# What becomes of names and words: regular expressions, one after the other.
RENAMED = [
    # Python's own words.
    (r"\b(?:async|await) ", ""),
    (r"\b__a(enter|exit|iter|next)__\b", r"__\1__"),
    (r"\ba(close|next)\b", r"\1"),
    (r"\bag_frame\b", "gi_frame"),
    (r"\bAwaitable\[((?:[^][]|\[[^][]*\])*)\]", r"\1"),
    (r"\basyncio\b", "time"),  # of which `sleep` is used
    # Ours, and those of the modules.
    (r"\b([Aa])n (?=`?Async[A-Z])", r"\1 "),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\b(\w+)_async\b", r"\1"),
    # What is said of them.
    (r"\b([Aa])n asynchronous (?=context)", r"\1 "),
    (r"\basynchronous ", ""),
    (r"\btask(s?)\b", r"thread\1"),
]

# Methods that only asynchronous objects have: `contextlib.aclosing` asks for this one, and it does
# as `close`.
ASYNC_ONLY = {"aclose"}

HEADING = "# Written by `make twins` from {}, which is the one to edit.\n"
# Which of ruff's corrections make the text as if by hand: of what is imported, in which order, and
# of a comprehension that only `async` made one.
CORRECTED = "F401,I001,C416"


def twin_of(source: Path) -> Path:
    """Return where a source's twin is."""
    return source.with_name(source.name.replace("_async", ""))


def blocking(text: str, twin: Path) -> str:
    """Return a source's text as its twin's, as ruff would have it."""
    text = without_async_only(text)
    for pattern, replacement in RENAMED:
        text = re.sub(pattern, replacement, text)
    for command in (
        ["check", "--quiet", "--fix-only", "--unsafe-fixes", f"--select={CORRECTED}"],
        ["format", "--quiet"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, f"--stdin-filename={twin}", "-"],
            input=text,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            check=True,
        )
        text = done.stdout
    return text


def without_async_only(text: str) -> str:
    """Return a source's text without the methods that its twin does not have."""
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.AsyncFunctionDef) and node.name in ASYNC_ONLY:
            assert node.end_lineno is not None
            first, last = node.lineno - 1, node.end_lineno
            lines[first:last] = [""] * (last - first)
    return "".join(lines)


def main() -> int:
    """Write the twins, or say which are not what they should be."""
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(f"arguments must be none or --check, got {sys.argv[1:]}")
    differ = False
    for name in SOURCES:
        source = PACKAGE / f"{name}.py"
        twin = twin_of(source)
        wanted = HEADING.format(source.name) + blocking(source.read_text("utf-8"), twin)
        found = twin.read_text("utf-8") if twin.exists() else ""
        if found == wanted:
            continue
        if not check:
            twin.write_text(wanted, "utf-8")
            continue
        differ = True
        where = str(twin.relative_to(PACKAGE.parent))
        lines = found.splitlines(keepends=True), wanted.splitlines(keepends=True)
        sys.stdout.writelines(difflib.unified_diff(*lines, where, f"{where}, by make twins"))
    if differ:
        sys.stderr.write("edit the modules of coroutines, whose names end in _async: make twins\n")
    return differ


if __name__ == "__main__":
    sys.exit(main())
