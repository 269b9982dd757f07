"""The page of ``megatron-longpo report``: one HTML file that needs no other, and no network."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from megatron_longpo import __version__
from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.report.card_section import suite_tables
from megatron_longpo.evaluate.report.summary import REPORT
from megatron_longpo.files import atomic_file
from megatron_longpo.metrics import METRICS
from megatron_longpo.report.curves import MOST_POINTS, sections
from megatron_longpo.report.runs import Points, Run, read_runs
from megatron_longpo.report.svg import draw
from megatron_longpo.templates import COLOURS, COLOURS_ON_DARK, render

NOTHING = "\u2013"


def write_page(paths: Sequence[Path], output: Path, evaluations: Sequence[Path]) -> None:
    """Write the page on these runs.

    Args:
        paths: folders that training saved into, or files of metrics.
        evaluations: folders with a report.json; none: those of ``paths`` that have one.

    Raises:
        UserError: a run or a report cannot be read, is given twice, or there are more runs than colours.
    """
    if len(paths) > len(COLOURS):
        raise UserError(f"{len(paths)} runs are given, a page shows at most {len(COLOURS)}; leave some out")
    runs = read_runs(paths)
    if any(output.resolve() == run.path.resolve() for run in runs):
        raise UserError(f"--output {output} is a run's metrics file; choose another")
    folders = evaluations or [path for path in paths if (path / REPORT).is_file()]
    resumes = [(number, step) for number, run in enumerate(runs) for step in run.resumes()]
    values = {
        "version": __version__,
        "colours": list(zip(COLOURS, COLOURS_ON_DARK, strict=True))[: len(runs)],
        "runs": runs,
        "facts": _facts(runs),
        "most_points": MOST_POINTS,
        "is_thinned": any(len(points) > MOST_POINTS for run in runs for points in run.series.values()),
        "has_held_out": any(split == "valid" for run in runs for _, split in run.series),
        "resumes": resumes,
        "sections": [
            (section.title, [(title, [(chart, draw(chart, resumes)) for chart in row]) for title, row in section.rows])
            for section in sections(runs)
        ],
        "options": _options(runs),
        "evaluations": [(folder.name, suite_tables(folder)) for folder in folders],
        "meanings": [metric for metric in METRICS.values() if metric.meaning],
    }
    page = render("megatron_longpo.report", "report.html.jinja", values)
    with atomic_file(output) as unfinished:
        unfinished.write_text(page, encoding="utf-8")


def _facts(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """What there is to know of all runs at a glance: a name, and its value of each run."""
    series = [run.series for run in runs]

    def row(name: str, path: str, split: str, text: Any) -> tuple[str, list[str]]:
        return name, [text(points) if (points := one.get((path, split))) else NOTHING for one in series]

    rows = [
        row("last step", "num_pairs", "train", lambda points: f"{points[-1][0]:,}"),
        row("training", "seconds", "train", _duration),
        row("loss", "loss", "train", _from_to),
        row("loss, held out", "loss", "valid", _from_to),
        row("margin, held out", "margin", "valid", _from_to),
        row("accuracy, held out", "accuracy", "valid", _from_to),
        row("seconds a step, median", "seconds", "train", _median),
        row("MFU, median", "mfu", "train", _percent),
        row("pair-equivalent MFU, median", "pair_equivalent_mfu", "train", _percent),
        row("TFLOP/s a GPU, median", "tflops", "train", _median),
        row("peak memory, GiB", "peak_memory_gib", "train", lambda points: f"{max(points, key=_value)[1]:.1f}"),
    ]
    return [(name, values) for name, values in rows if any(value != NOTHING for value in values)]


def _value(point: tuple[int, float]) -> float:
    return point[1]


def _from_to(points: Points) -> str:
    first, last = points[0][1], points[-1][1]
    return f"{first:.4g}" if len(points) == 1 else f"{first:.4g} \u2192 {last:.4g}"


def _median(points: Points) -> str:
    return f"{median(map(_value, points)):.3g}"


def _percent(points: Points) -> str:
    return f"{median(map(_value, points)):.1%}"


def _duration(points: Points) -> str:
    seconds = round(sum(map(_value, points)))
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds % 60:02} s"


def _options(runs: Sequence[Run]) -> list[tuple[str, list[str], bool]]:
    """Name of an option, its value of each run, and whether those differ; of runs without a recipe nothing is known."""
    recipes = [run.recipe() for run in runs]
    found: list[tuple[str, list[str], bool]] = []
    for name in dict.fromkeys(name for recipe in recipes for name in recipe):
        values = [recipe.get(name, NOTHING) for recipe in recipes]
        found.append((name, values, len({value for value, recipe in zip(values, recipes, strict=True) if recipe}) > 1))
    return found
