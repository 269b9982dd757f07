"""Which curves there are, in which order, and few enough points of each."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

from megatron_longpo.metrics import ANY, GROUPS, metric_of
from megatron_longpo.report.runs import Points, Run

MOST_POINTS = 240
"""Of a curve; more would not be seen on its width."""

_NOT_DRAWN = ("resumed_from",)
"""Shown as a mark in all charts."""


class Point(NamedTuple):
    """A step, or some steps that follow each other."""

    step: float
    value: float
    """The mean."""
    low: float
    high: float


class Curve(NamedTuple):
    """A metric of a run."""

    run: int
    """Its place among the runs."""
    is_held_out: bool
    points: list[Point]


class Chart(NamedTuple):
    """A metric of all runs that have it."""

    title: str
    unit: str
    curves: list[Curve]


class Section(NamedTuple):
    """Charts that belong together, in rows with a title each; one row has none."""

    title: str
    rows: list[tuple[str, list[Chart]]]


def sections(runs: Sequence[Run]) -> list[Section]:
    """All metrics that a run has, in the order of metrics.GROUPS; those that this release does not know at the end."""
    series = [run.series for run in runs]
    paths = list(dict.fromkeys(path for one in series for path, _ in one if path not in _NOT_DRAWN))
    known = {path: metric.path for path in paths if (metric := metric_of(path)) is not None}
    found: list[Section] = []
    for title, metrics in GROUPS.items():
        rows: dict[str, list[Chart]] = {}
        for metric in metrics:
            ours = sorted((path for path in paths if known.get(path) == metric.path), key=_part)
            row = metric.path.rsplit("/", 1)[-1].replace("_", " ") if ANY in metric.path else ""
            rows.setdefault(row, []).extend(_chart(path, metric.unit, series) for path in ours)
        found.append(Section(title, [(row, charts) for row, charts in rows.items() if charts]))
    others = [_chart(path, "", series) for path in paths if path not in known]
    found.append(Section("Other", [("", others)] if others else []))
    return [section for section in found if section.rows]


def thin(points: Points) -> list[Point]:
    """At most MOST_POINTS points: of equal numbers of steps the mean, the least and the greatest."""
    if len(points) <= MOST_POINTS:
        return [Point(step, value, value, value) for step, value in points]
    cuts = [len(points) * place // MOST_POINTS for place in range(MOST_POINTS + 1)]
    parts = [points[start:end] for start, end in pairwise(cuts)]
    return [
        Point(fmean(step for step, _ in part), fmean(values := [value for _, value in part]), min(values), max(values))
        for part in parts
    ]


def _chart(path: str, unit: str, series: Sequence[Mapping[tuple[str, str], Points]]) -> Chart:
    curves = [
        Curve(run, split == "valid", thin(of_run[path, split]))
        for run, of_run in enumerate(series)
        for split in ("train", "valid")
        if (path, split) in of_run
    ]
    return Chart(_title(path), unit, curves)


def _part(path: str) -> int:
    """The turn or the length of a path, to sort by."""
    parts = path.split("/")
    return int(parts[1]) if len(parts) == 3 and parts[1].isdecimal() else 0


def _title(path: str) -> str:
    by, *rest = path.replace("_", " ").split("/")
    if len(rest) < 2:
        return ", ".join((by, *rest))
    part = rest[0]
    if by == "by turn":
        return f"turn {part}"
    return f"up to {int(part):,} tokens" if part.isdecimal() else path
