"""Everything that a report says of a suite, as numbers and sentences; ``report.json`` holds it."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_longpo.evaluate.cells import Cell
from megatron_longpo.evaluate.report import tables
from megatron_longpo.evaluate.report.estimates import ascending
from megatron_longpo.evaluate.report.notes import Note, difference_notes, score_notes, settings_table
from megatron_longpo.evaluate.report.published import SOURCE, published_notes
from megatron_longpo.evaluate.report.rows import Row
from megatron_longpo.evaluate.report.tables import Table, Value
from megatron_longpo.evaluate.suites import SUITES, Suite

REPORT = "report.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteSummary:
    """One suite."""

    suite: Suite
    rows: Sequence[Row]
    """Those with a cell of it."""
    common_lengths: Sequence[int | None]
    """What the scores are means over; empty if each row is over its own."""
    scores: Table
    scores_by_length: Table
    scores_by_task: Table
    differences: Table
    differences_by_length: Table
    differences_by_task: Table
    notes: Sequence[Note]
    difference_notes: Sequence[Note]
    published_notes: Sequence[str]
    settings: Sequence[tuple[str, Sequence[str]]]
    """Setting, and its value in each row."""


def summarise(rows: Sequence[Row], published: Sequence[str]) -> list[SuiteSummary]:
    """Make the tables of every suite that a row has a cell of.

    Args:
        rows: the first one's model is what the others are compared with.
        published: names of the published models to show.
    """
    there = {name: [row for row in rows if row.lengths(suite)] for name, suite in SUITES.items()}
    return [_summary(SUITES[name], some, rows[0].model, published) for name, some in there.items() if some]


def as_json(rows: Sequence[Row], summaries: Sequence[SuiteSummary]) -> dict[str, Any]:
    """What ``report.json`` holds."""
    return {
        "format_version": FORMAT_VERSION,
        "rows": [
            {"label": row.label, "model": row.model, "engine": row.engine, "limits": row.limits, "weights": row.weights}
            for row in rows
        ],
        "published_source": SOURCE,
        "suites": {one.suite.name: _suite_as_json(one) for one in summaries},
    }


def _summary(suite: Suite, rows: Sequence[Row], first: str, published: Sequence[str]) -> SuiteSummary:
    compared = tables.comparisons(rows, first, suite)
    has_first = any(row.model == first for row in rows)
    return SuiteSummary(
        suite=suite,
        rows=rows,
        common_lengths=tables.common_lengths(rows, suite),
        scores=tables.score_table(rows, suite, published),
        scores_by_length=tables.score_table_by_length(rows, suite),
        scores_by_task=tables.score_table_by_task(rows, suite),
        differences=tables.difference_table(compared, suite),
        differences_by_length=tables.difference_table_by_length(compared, suite),
        differences_by_task=tables.difference_table_by_task(compared, suite),
        notes=score_notes(rows, suite),
        difference_notes=(
            difference_notes(rows, compared, suite)
            if has_first
            else [Note(f"No differences: {first} has no cell of {suite.title}.")]
        ),
        published_notes=published_notes(suite.name, published),
        settings=settings_table(rows, suite),
    )


def _suite_as_json(one: SuiteSummary) -> dict[str, Any]:
    return {
        "title": one.suite.title,
        "columns": {column.name: list(column.tasks) for column in one.suite.columns},
        "lengths": [length for length in one.common_lengths if length is not None],
        "scores": _table_as_json(one.scores, _score_as_json),
        "scores_by_length": _table_as_json(one.scores_by_length, _score_as_json),
        "scores_by_task": _table_as_json(one.scores_by_task, _score_as_json),
        "differences": _table_as_json(one.differences, _difference_as_json),
        "differences_by_length": _table_as_json(one.differences_by_length, _difference_as_json),
        "differences_by_task": _table_as_json(one.differences_by_task, _difference_as_json),
        "commands": _commands(one),
        "notes": [asdict(note) for note in one.notes],
        "difference_notes": [asdict(note) for note in one.difference_notes],
        "published_notes": list(one.published_notes),
        "settings": {
            name: dict(zip((row.label for row in one.rows), values, strict=True)) for name, values in one.settings
        },
    }


def _commands(one: SuiteSummary) -> list[str]:
    """What its cells are made by, with the options that decide which ones these are."""
    models: dict[str, list[str]] = {}
    for row in one.rows:
        for limit in row.limits:
            cells = [cell for cell in row.cells.values() if cell.suite == one.suite.name and cell.limit == limit]
            if cells:
                models.setdefault(_options(one.suite, cells), []).append(shlex.quote(f"{row.model}=DIR"))
    return [
        f"megatron-longpo evaluate run --models {' '.join(names)} {options} --mirror MIRROR --output OUTPUT"
        for options, names in models.items()
    ]


def _options(suite: Suite, cells: Sequence[Cell]) -> str:
    """Of cells of one engine and limit."""
    there = {cell.task for cell in cells}
    tasks = [task for task in suite.tasks if task in there]
    lengths = [length for length in ascending(cell.length for cell in cells) if length is not None]
    options = {
        "--suite": suite.name,
        "--tasks": ",".join(tasks) if len(tasks) < len(suite.tasks) else "",
        "--lengths": ",".join(map(str, lengths)),
        "--limit": cells[0].limit,
        "--engine": cells[0].engine,
        "--endpoint": "URL" if cells[0].engine == "openai" else "",
    }
    return " ".join(f"{name} {value}" for name, value in options.items() if value)


def _table_as_json(table: Table, value_as_json: Callable[[Value | None], Any]) -> list[dict[str, Any]]:
    """A line an object: label, length, whether it is published, and column -> number."""
    return [
        {
            "label": line.label,
            "length": line.length,
            "published": line.is_published,
            "values": dict(zip(table.columns, map(value_as_json, line.values), strict=True)),
        }
        for line in table.lines
    ]


def _score_as_json(value: Value | None) -> Mapping[str, Any] | None:
    if value is None:
        return None
    return {
        "score": value.estimate.value,
        "standard_error": value.estimate.standard_error,
        "complete": value.is_complete,
    }


def _difference_as_json(value: Value | None) -> Mapping[str, Any] | None:
    if value is None:
        return None
    return {
        "difference": value.estimate.value,
        "standard_error": value.estimate.standard_error,
        "interval": value.estimate.interval,
        "clear": value.estimate.is_clear,
        "pairs": value.num_pairs,
        "complete": value.is_complete,
    }
