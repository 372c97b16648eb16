"""From pytest-benchmark's JSON to the Markdown table and the chart: ratios first.

    python benchmarks/report.py results/bench.json

writes bench.md and bench.png beside it.
"""

# Ratios and ranges are printed as such.
# ruff: noqa: RUF001

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BASELINE = "tritonclient.grpc"
OURS = "triton_fast"
IMPORT = "import"


@dataclass(frozen=True)
class Target:
    """The most that `OURS` may take in a group: as a ratio to the baseline, or in seconds."""

    group: str
    ratio: float | None = None
    seconds: float | None = None

    @property
    def limit(self) -> str:
        return f"≤ {_time(self.seconds)}" if self.seconds else f"≤ {self.ratio}×"


TARGETS = (
    Target("FP32, 64 B", 1.0),
    Target("FP32, 602,112 B", 0.75),
    Target("FP32, 4 MiB", 0.5),
    Target("FP32, 16 MiB", 0.4),
    Target("encode + decode, 10,000 of 20 B", 0.1),
    Target("peak memory, 256 MiB", 0.5),
    Target(IMPORT, seconds=0.015),
)

_HOW_RATIOS = """\
The median of the ratios of the turns in one round, and their quartiles. *Not separable*: 1 lies
between the quartiles.
"""


@dataclass(frozen=True)
class Result:
    """What one contender did in one group.

    Attributes
    ----------
    seconds : numpy.ndarray, shape (turns, calls in a turn)
        Of each call.
    cpu_seconds : numpy.ndarray, shape (turns,)
        Of this process, per call.
    peak_bytes : numpy.ndarray, shape (turns,), or None
        What memory is compared by, in the groups that are about memory.
    """

    contender: str
    seconds: np.ndarray[Any, Any]
    cpu_seconds: np.ndarray[Any, Any]
    peak_bytes: np.ndarray[Any, Any] | None

    @property
    def compared(self) -> np.ndarray[Any, Any]:
        """One figure for each turn: what ratios are made of."""
        if self.peak_bytes is not None:
            return self.peak_bytes
        return np.asarray(np.median(self.seconds, axis=1))


@dataclass(frozen=True)
class Ratio:
    """A contender beside another: the median of the ratios of their turns, and the quartiles."""

    median: float
    low: float
    high: float

    @property
    def separable(self) -> bool:
        return not self.low <= 1 <= self.high

    def __str__(self) -> str:
        if self.separable:
            return f"{_ratio(self.median)}× {self.spread}"
        return f"not separable {self.spread}"

    @property
    def spread(self) -> str:
        return f"({_ratio(self.low)}–{_ratio(self.high)})"


Groups = dict[str, dict[str, Result]]


def ratio(result: Result, baseline: Result) -> Ratio:
    """Compare turn by turn: contenders of one round had the same machine."""
    low, median, high = np.percentile(result.compared / baseline.compared, [25, 50, 75])
    return Ratio(float(median), float(low), float(high))


def read(benchmarks: list[dict[str, Any]]) -> Groups:
    """Return the results in pytest-benchmark's JSON, by group and contender."""
    groups: Groups = {}
    for benchmark in benchmarks:
        info = benchmark["extra_info"]
        peak = info.get("peak_bytes")
        result = Result(
            info["contender"],
            np.reshape(benchmark["stats"]["data"], (-1, info["block"])),
            np.array(info["cpu_seconds"]),
            None if peak is None else np.array(peak, float),
        )
        groups.setdefault(benchmark["group"], {})[result.contender] = result
    return groups


def markdown(document: dict[str, Any]) -> str:
    """Return the whole report."""
    machine = document["machine_info"]
    groups = read(document["benchmarks"])
    parts = ["# Benchmarks\n"]
    if machine["smoke"]:
        parts.append(
            "**A smoke run: it shows that the benchmarks work. The figures mean nothing.**\n"
        )
    elif machine["load_average_before"][0] > machine["cores"] / 2:
        parts.append("**The machine was busy before this began: read the ratios with care.**\n")
    parts += ["## Targets\n", _targets(groups)]
    parts += [f"## Ratios to {BASELINE}\n", _HOW_RATIOS, _overview(groups)]
    for name, results in groups.items():
        parts += [f"## {name}\n", _table(results)]
    parts += ["## Environment\n", _environment(document)]
    return "\n".join(parts)


def _targets(groups: Groups) -> str:
    rows = []
    for target in TARGETS:
        results = groups.get(target.group)
        if results is None:
            rows.append([target.group, target.limit, "not measured", ""])
        elif target.seconds is not None:
            seen = float(np.median(results[OURS].seconds))
            rows.append([target.group, target.limit, _time(seen), _mark(seen <= target.seconds)])
        else:
            assert target.ratio is not None
            seen_ratio = ratio(results[OURS], results[BASELINE])
            within = seen_ratio.low <= target.ratio <= seen_ratio.high
            verdict = _mark(seen_ratio.median <= target.ratio)
            rows.append(
                [
                    target.group,
                    target.limit,
                    f"{seen_ratio.median:.4g}× {seen_ratio.spread}",
                    f"{verdict} (within the spread)" if within else verdict,
                ]
            )
    return _rows(["", "target", "seen", ""], rows)


def _overview(groups: Groups) -> str:
    compared = {name: results for name, results in groups.items() if BASELINE in results}
    rows = [
        [
            contender,
            *(
                str(ratio(results[contender], results[BASELINE])) if contender in results else ""
                for results in compared.values()
            ),
        ]
        for contender in _contenders(compared)
        if contender != BASELINE
    ]
    return _rows(["", *compared], rows)


def _contenders(groups: Groups) -> list[str]:
    return list(dict.fromkeys(name for results in groups.values() for name in results))


def _table(results: dict[str, Result]) -> str:
    memory = any(result.peak_bytes is not None for result in results.values())
    some = next(iter(results.values())).seconds
    # Of less than a hundred calls, the 99th percentile is between the two slowest.
    tail = "p99" if some.size >= 100 else "slowest"
    header = ["", "median", "quartiles", tail, "client CPU per call", f"to {BASELINE}"]
    if memory:
        header.insert(1, "peak memory")
    rows = []
    for contender, result in results.items():
        low, median, high = np.percentile(result.seconds, [25, 50, 75])
        slow = np.percentile(result.seconds, 99 if tail == "p99" else 100)
        row = [
            contender,
            _time(median),
            f"{_time(low)} – {_time(high)}",
            _time(slow),
            _time(float(np.median(result.cpu_seconds))),
            "1" if contender == BASELINE else str(ratio(result, results[BASELINE])),
        ]
        if memory:
            assert result.peak_bytes is not None
            row.insert(1, f"{np.median(result.peak_bytes) / 2**20:.0f} MiB")
        rows.append(row)
    turns, block = some.shape
    calls = f"{turns} turns of {block} calls" if block > 1 else f"{turns} turns of one call"
    return f"{_rows(header, rows)}\n{calls} each.\n"


def _environment(document: dict[str, Any]) -> str:
    machine = document["machine_info"]
    commit = document["commit_info"]
    rows = [
        ["when", document["datetime"][:19] + "Z"],
        ["commit", f"{commit['id'][:12]}{', with changes' if commit['dirty'] else ''}"],
        ["CPU", f"{machine['cpu'].get('brand_raw', machine['machine'])}, {machine['cores']} cores"],
        ["kernel", f"{machine['system']} {machine['kernel']}"],
        ["Python", f"{machine['python_implementation']} {machine['python_version']}"],
        ["server", f"{machine['server']}, C++ identity backend, on the same machine"],
        *([name, number] for name, number in machine["packages"].items()),
        ["load average before", _loads(machine["load_average_before"])],
        ["load average after", _loads(machine["load_average_after"])],
    ]
    return _rows(["", ""], rows)


def _rows(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _loads(loads: list[float]) -> str:
    return " ".join(f"{load:.2f}" for load in loads)


def _mark(met: bool) -> str:
    return "✓" if met else "✗"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _time(seconds: float) -> str:
    """Return a time with three significant digits."""
    unit, size = next(
        (pair for pair in (("s", 1.0), ("ms", 1e-3)) if seconds >= pair[1]), ("µs", 1e-6)
    )
    value = seconds / size
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def chart(document: dict[str, Any], path: Path) -> None:
    """Draw ratios to the baseline, and time by size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    groups = read(document["benchmarks"])
    colours: dict[str, Any] = {
        name: f"C{number}" for number, name in enumerate(_contenders(groups))
    }
    figure, (above, below) = plt.subplots(2, 1, figsize=(12, 10), layout="constrained")
    _draw_ratios(above, groups, colours)
    _draw_times(below, groups, colours)
    patches = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=4)
    if document["machine_info"]["smoke"]:
        figure.suptitle("a smoke run: the figures mean nothing")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_ratios(axes: Any, groups: Groups, colours: dict[str, Any]) -> None:
    compared = {name: each for name, each in groups.items() if BASELINE in each}
    width = 0.15
    for number, (name, results) in enumerate(compared.items()):
        shown = [each for each in results if each not in {BASELINE, "one memcpy"}]
        for place, contender in enumerate(shown):
            seen = ratio(results[contender], results[BASELINE])
            axes.bar(
                number + (place - (len(shown) - 1) / 2) * width,
                seen.median,
                width,
                yerr=[[seen.median - seen.low], [seen.high - seen.median]],
                color=colours[contender],
                error_kw={"linewidth": 0.8},
            )
        for target in TARGETS:
            if target.group == name and target.ratio is not None:
                axes.hlines(target.ratio, number - 0.45, number + 0.45, "black", "dotted")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylim(0, 2)
    axes.set_xticks(range(len(compared)), [name.replace(", ", "\n", 1) for name in compared])
    axes.set_ylabel(f"ratio to {BASELINE}\n(median and quartiles; dotted: target)")


def _draw_times(axes: Any, groups: Groups, colours: dict[str, Any]) -> None:
    numbers = {name: results for name, results in groups.items() if name.startswith("FP32")}
    for contender in _contenders(numbers):
        at = [number for number, each in enumerate(numbers.values()) if contender in each]
        spread = np.array(
            [
                np.percentile(each[contender].seconds, [25, 50, 75]) * 1e6
                for each in numbers.values()
                if contender in each
            ]
        )
        axes.plot(at, spread[:, 1], "o-", color=colours[contender], label=contender)
        axes.fill_between(at, spread[:, 0], spread[:, 2], color=colours[contender], alpha=0.2)
    axes.set_yscale("log")
    axes.set_xticks(range(len(numbers)), list(numbers))
    axes.set_ylabel("µs for one inference\n(median and quartiles)")
    axes.grid(visible=True, axis="y", alpha=0.3)


def write(json_path: Path, say: Callable[[str], None] = print) -> None:
    """Write the report beside the JSON, and say how the targets fared."""
    document = json.loads(json_path.read_text(encoding="utf-8"))
    markdown_path = json_path.with_suffix(".md")
    markdown_path.write_text(markdown(document), encoding="utf-8")
    chart_path = json_path.with_suffix(".png")
    chart(document, chart_path)
    say(_targets(read(document["benchmarks"])))
    say(f"Wrote {json_path}, {markdown_path} and {chart_path}.")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "results/bench.json"))
