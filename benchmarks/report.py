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
from typing import Any, Literal

import numpy as np

BASELINE = "tritonclient.grpc"
CPP = "C++ stub"
OURS = "triton_fast"
POLLING = "triton_fast, busy_poll"
GRPCIO = "triton_fast, grpcio channel"
SHARED = "triton_fast, shared memory"
EMPTY = "triton_fast, empty()"
SPLIT = "triton_fast, split"
THEIRS = "tritonclient.grpc, shared memory"
SHM_CLIENT = "triton_shm_client"
AIO = "tritonclient.grpc.aio"
ASYNC = "AsyncClient"
ASYNC_WIRE = "AsyncClient, wire"
ASYNC_GRPCIO = "AsyncClient, grpcio channel"
FLOOR = "one memcpy and a 64 B call"
IMPORT = "import"

Quantity = Literal[
    "time",
    "client CPU per call",
    "peak memory",
    "calls per second",
    "answers per second",
    "median",
    "p99",
    "first answer",
    "longest delay",
    "p99 of the delay",
    "longest hold",
]
TIME: Quantity = "time"
CPU: Quantity = "client CPU per call"
MEMORY: Quantity = "peak memory"
CALLS: Quantity = "calls per second"
ANSWERS: Quantity = "answers per second"
P50: Quantity = "median"
P99: Quantity = "p99"
FIRST: Quantity = "first answer"
LONGEST: Quantity = "longest delay"
DELAY: Quantity = "p99 of the delay"
HOLD: Quantity = "longest hold"

_RATES = frozenset({CALLS, ANSWERS})  # more is better
_WORST = frozenset({LONGEST, HOLD})  # the worst of all turns counts, not their median


@dataclass(frozen=True)
class Result:
    """What one contender did in one group.

    Attributes
    ----------
    seconds : numpy.ndarray, shape (turns, calls in a turn)
        Of each call.
    cpu_seconds : numpy.ndarray, shape (turns,)
        Of this process, per call.
    figures : dict of str to numpy.ndarray, shape (turns,)
        Quantities that the group has beside those. The first is what it is about.
    """

    contender: str
    seconds: np.ndarray[Any, Any]
    cpu_seconds: np.ndarray[Any, Any]
    figures: dict[Quantity, np.ndarray[Any, Any]]

    def turns(self, quantity: Quantity) -> np.ndarray[Any, Any]:
        """Return one figure for each turn: what ratios are made of."""
        if quantity == TIME:
            return np.asarray(np.median(self.seconds, axis=1))
        return self.cpu_seconds if quantity == CPU else self.figures[quantity]

    def seen(self, quantity: Quantity) -> float:
        """Return the figure that stands for all turns."""
        if quantity == TIME:
            return float(np.median(self.seconds))
        turns = self.turns(quantity)
        return float(np.max(turns) if quantity in _WORST else np.median(turns))

    @property
    def subject(self) -> Quantity:
        """What its group is about."""
        return next(iter(self.figures), TIME)


@dataclass(frozen=True)
class Target:
    """What a contender is to reach in a group: a ratio to another, or seconds where there is none.

    The most that it may be, but for rates the least.
    """

    group: str
    bound: float
    to: str | None = BASELINE
    quantity: Quantity = TIME
    contender: str = OURS

    @property
    def limit(self) -> str:
        if self.to is None:
            return f"≤ {_time(self.bound)}"
        return f"{'≥' if self.quantity in _RATES else '≤'} {self.bound}×"

    def met_by(self, seen: float) -> bool:
        return seen >= self.bound if self.quantity in _RATES else seen <= self.bound


TARGETS = (
    Target("FP32, 64 B", 0.45),
    Target("FP32, 602,112 B", 0.4),
    Target("FP32, 4 MiB", 0.3),
    Target("FP32, 16 MiB", 0.3),
    Target("FP32, 64 B", 1.0, CPP),
    Target("FP32, 602,112 B", 0.9, CPP),
    Target("FP32, 4 MiB", 0.95, CPP),
    Target("FP32, 16 MiB", 0.95, CPP),
    Target("FP32, 64 B", 0.35, contender=POLLING),
    Target("FP32, 64 B", 1.0, contender=GRPCIO),
    Target("FP32, 602,112 B", 0.75, contender=GRPCIO),
    Target("FP32, 4 MiB", 0.5, contender=GRPCIO),
    Target("FP32, 16 MiB", 0.4, contender=GRPCIO),
    Target("FP32, 4 MiB", 0.04, contender=SHARED),
    Target("FP32, 4 MiB", 0.55, THEIRS, contender=SHARED),
    Target("FP32, 4 MiB", 0.4, THEIRS, contender=EMPTY),
    Target("FP32, 16 MiB", 1.5, FLOOR, contender=EMPTY),
    Target("8 images, 4.8 MB", 0.35, SHM_CLIENT, contender=SHARED),
    Target("100 images in batches of 8", 0.5, SHM_CLIENT, contender=SPLIT),
    Target("16 threads, 64 B", 2.0, quantity=CALLS),
    Target("FP32, 64 B", 0.35, quantity=CPU),
    Target("16 threads, 64 B", 0.35, quantity=CPU),
    Target("encode + decode, 10,000 of 20 B", 0.1),
    Target("peak memory, 256 MiB", 0.5, quantity=MEMORY),
    Target(IMPORT, 0.015, None),
    Target("64 tasks, 64 B", 1.8, AIO, CALLS, ASYNC),
    Target("64 tasks, 64 B", 0.3, AIO, CPU, ASYNC),
    Target("1 task, 64 B", 0.5, AIO, P50, ASYNC),
    Target("16 tasks, 602,112 B", 2.5, AIO, CALLS, ASYNC),
    Target("16 tasks, 602,112 B", 2.5, AIO, CALLS, ASYNC_WIRE),
    Target("stream, 10,000 answers", 3.0, quantity=ANSWERS),
    Target("stream, 10,000 answers", 3.0, quantity=ANSWERS, contender=ASYNC),
    *(
        Target("1 ms ticker, 16 MiB tensors", 0.02, None, quantity, contender)
        for quantity in (LONGEST, HOLD)
        for contender in (ASYNC, ASYNC_WIRE)
    ),
)

_HOW_RATIOS = """\
The median of the ratios of the turns in one round, and their quartiles. *Not separable*: 1 lies
between the quartiles.
"""


_HOW_DELAYS = """ Of the delays, the longest of all
windows, and the median of the windows' p99. A *hold* is the CPU time that the event loop's own
thread used between one tick and the next: a delay without one is the machine's doing, or another
thread's.
"""


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
        if np.isnan(self.median):
            return ""
        if self.separable:
            return f"{_ratio(self.median)}× {self.spread}"
        return f"not separable {self.spread}"

    @property
    def spread(self) -> str:
        return f"({_ratio(self.low)}–{_ratio(self.high)})"


Groups = dict[str, dict[str, Result]]


def ratio(result: Result, baseline: Result, quantity: Quantity) -> Ratio:
    """Compare turn by turn: contenders of one round had the same machine."""
    ratios = result.turns(quantity) / baseline.turns(quantity)
    low, median, high = np.percentile(ratios, [25, 50, 75])
    return Ratio(float(median), float(low), float(high))


def read(benchmarks: list[dict[str, Any]]) -> Groups:
    """Return the results in pytest-benchmark's JSON, by group and contender."""
    groups: Groups = {}
    for benchmark in benchmarks:
        info = benchmark["extra_info"]
        result = Result(
            info["contender"],
            np.reshape(benchmark["stats"]["data"], (-1, info["block"])),
            np.array(info["cpu_seconds"], float),
            {quantity: np.array(each, float) for quantity, each in info["figures"].items()},
        )
        groups.setdefault(benchmark["group"], {})[result.contender] = result
    return groups


def subject(results: dict[str, Result]) -> Quantity:
    """Return what a group is about."""
    return next(iter(results.values())).subject


def tasks(groups: Groups) -> Groups:
    """Return the groups in which tasks share an event loop."""
    return {
        name: results
        for name, results in groups.items()
        if subject(results) == CALLS and AIO in results
    }


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
    about = {name: subject(results) for name, results in groups.items()}
    timed = {name: each for name, each in groups.items() if about[name] in {TIME, MEMORY}}
    rates = {name: each for name, each in groups.items() if about[name] in _RATES}
    calling = {
        name: each for name, each in groups.items() if name != IMPORT and about[name] != MEMORY
    }
    parts += [f"## Ratios to {BASELINE}\n", _HOW_RATIOS, _overview(timed, BASELINE)]
    for title, chosen, to, quantity in (
        (f"Ratios to the {CPP}", timed, CPP, None),
        (f"Ratios to {SHM_CLIENT}", timed, SHM_CLIENT, None),
        (f"Calls or answers per second, as ratios to {BASELINE}", rates, BASELINE, None),
        (f"Calls or answers per second, as ratios to {AIO}", rates, AIO, None),
        (f"Median time of a call, as ratios to {AIO}", tasks(groups), AIO, P50),
        (f"Client CPU per call or answer, as ratios to {BASELINE}", calling, BASELINE, CPU),
        (f"Client CPU per call or answer, as ratios to {AIO}", calling, AIO, CPU),
    ):
        if any(to in results for results in chosen.values()):
            parts += [f"## {title}\n", _overview(chosen, to, quantity)]
    for name, results in groups.items():
        table = _table if name in timed else _figures_table
        parts += [f"## {name}\n", table(results)]
    parts += ["## Environment\n", _environment(document)]
    return "\n".join(parts)


def _targets(groups: Groups) -> str:
    header = ["", "what", "of", "target", "seen", ""]
    return _rows(header, [_target(target, groups.get(target.group, {})) for target in TARGETS])


def _target(target: Target, results: dict[str, Result]) -> list[str]:
    what = target.quantity if target.to is None else f"{target.quantity}, to {target.to}"
    row = [target.group, what, target.contender, target.limit]
    if not {target.contender, target.to or target.contender} <= results.keys():
        return [*row, "not measured", ""]
    if target.to is None:
        seen = results[target.contender].seen(target.quantity)
        return [*row, _time(seen), _mark(target.met_by(seen))]
    seen_ratio = ratio(results[target.contender], results[target.to], target.quantity)
    verdict = _mark(target.met_by(seen_ratio.median))
    if seen_ratio.low <= target.bound <= seen_ratio.high:
        verdict += " (within the spread)"
    return [*row, f"{seen_ratio.median:.4g}× {seen_ratio.spread}", verdict]


def _overview(groups: Groups, to: str, quantity: Quantity | None = None) -> str:
    """Return ratios of all contenders in the groups that have `to`."""
    compared = {name: results for name, results in groups.items() if to in results}
    rows = [
        [
            contender,
            *(
                str(ratio(results[contender], results[to], quantity or subject(results)))
                if contender in results
                else ""
                for results in compared.values()
            ),
        ]
        for contender in _contenders(compared)
        if contender != to
    ]
    return _rows(["", *compared], rows)


def _contenders(groups: Groups) -> list[str]:
    return list(dict.fromkeys(name for results in groups.values() for name in results))


def _references(results: dict[str, Result]) -> list[str]:
    return [name for name in (BASELINE, CPP, AIO) if name in results]


def _beside(result: Result, results: dict[str, Result]) -> list[str]:
    return [
        "1" if result.contender == to else str(ratio(result, results[to], result.subject))
        for to in _references(results)
    ]


def _table(results: dict[str, Result]) -> str:
    memory = subject(results) == MEMORY
    some = next(iter(results.values())).seconds
    # Of less than a hundred calls, the 99th percentile is between the two slowest.
    tail = "p99" if some.size >= 100 else "slowest"
    header = ["", "median", "quartiles", tail, "client CPU per call"]
    header += [f"to {name}" for name in _references(results)]
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
            *_beside(result, results),
        ]
        if memory:
            row.insert(1, f"{np.median(result.turns(MEMORY)) / 2**20:.0f} MiB")
        rows.append(row)
    turns, block = some.shape
    calls = f"{block} calls" if block > 1 else "one call"
    return f"{_rows(header, rows)}\n{turns} turn{'s' * (turns > 1)} of {calls} each.\n"


def _figures_table(results: dict[str, Result]) -> str:
    about, *others = next(iter(results.values())).figures
    each = "answer" if about == ANSWERS else "call"
    header = [about, "quartiles", *others, f"client CPU per {each}"]
    header += [f"to {name}" for name in _references(results)]
    rows = []
    for contender, result in results.items():
        low, high = np.percentile(result.turns(about), [25, 75])
        rows.append(
            [
                contender,
                _figure(about, result.seen(about)),
                f"{_figure(about, low)} – {_figure(about, high)}",
                *(_figure(quantity, result.seen(quantity)) for quantity in others),
                _figure(CPU, result.seen(CPU)),
                *_beside(result, results),
            ]
        )
    turns = len(next(iter(results.values())).cpu_seconds)
    notes = f"{turns} windows each; {'more' if about in _RATES else 'less'} is better."
    if HOLD in others:
        notes += _HOW_DELAYS
    return f"{_rows(['', *header], rows)}\n{notes}\n"


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


def _figure(quantity: Quantity, value: float) -> str:
    if np.isnan(value):
        return ""
    return f"{value:,.0f}" if quantity in _RATES else _time(value)


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
    looped = tasks(groups)
    streamed = {name: each for name, each in groups.items() if name.startswith("stream")}
    threaded = {
        name: each
        for name, each in groups.items()
        if subject(each) == CALLS and name not in looped and BASELINE in each
    }
    others = {
        name: each
        for name, each in groups.items()
        if subject(each) in {TIME, MEMORY} and name not in streamed
    }
    rates = {name: each for name, each in streamed.items() if subject(each) == ANSWERS}
    hues = mpl.colormaps["tab20"].colors
    colours: dict[str, Any] = {
        name: hues[number % len(hues)] for number, name in enumerate(_contenders(groups))
    }
    figure, axes = plt.subplots(4, 1, figsize=(12, 18), layout="constrained")
    _draw_ratios(axes[0], others, BASELINE, colours)
    _draw_times(axes[1], others, colours)
    _draw_throughput(axes[2], threaded, colours)
    _draw_ratios(axes[3], {**looped, **rates}, AIO, colours)
    patches = [Patch(color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=4)
    if document["machine_info"]["smoke"]:
        figure.suptitle("a smoke run: the figures mean nothing")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_ratios(axes: Any, groups: Groups, to: str, colours: dict[str, Any]) -> None:
    compared = {name: each for name, each in groups.items() if to in each}
    width = 0.1
    for number, (name, results) in enumerate(compared.items()):
        about = subject(results)
        shown = [each for each in results if each not in {to, "one memcpy"}]
        for place, contender in enumerate(shown):
            seen = ratio(results[contender], results[to], about)
            axes.bar(
                number + (place - (len(shown) - 1) / 2) * width,
                seen.median,
                width,
                yerr=[[seen.median - seen.low], [seen.high - seen.median]],
                color=colours[contender],
                error_kw={"linewidth": 0.8},
            )
        for target in TARGETS:
            if (target.group, target.to, target.quantity) == (name, to, about) and (
                target.contender in {OURS, ASYNC}
            ):
                axes.hlines(target.bound, number - 0.45, number + 0.45, "black", "dotted")
    axes.axhline(1, color="black", linewidth=0.8)
    if to == BASELINE:
        axes.set_ylim(0, 2)
    else:
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(
        range(len(compared)), [name.replace(", ", "\n") for name in compared], fontsize="small"
    )
    what = "calls or answers per second, as " if to == AIO else ""
    axes.set_ylabel(f"{what}ratio to {to}\n(median and quartiles; dotted: target)")


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


def _draw_throughput(axes: Any, groups: Groups, colours: dict[str, Any]) -> None:
    for contender in _contenders(groups):
        low, median, high = np.percentile(
            [each[contender].turns(CALLS) for each in groups.values()], [25, 50, 75], axis=1
        )
        at = range(len(groups))
        axes.plot(at, median, "o-", color=colours[contender])
        axes.fill_between(at, low, high, color=colours[contender], alpha=0.2)
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylabel("calls per second, all threads together\n(median and quartiles)")
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
