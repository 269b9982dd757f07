"""The report on an output folder of ``evaluate run``: ``report.md``, ``report.json`` and ``report.html``.

The page needs no other file. The same cells give the same bytes; time and speed stand in the page alone, so that the
other two are the same for a run that was broken off and taken up again.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_longpo import __version__
from megatron_longpo.evaluate.cells import read_cell_files
from megatron_longpo.evaluate.report.answers_shown import shown_questions
from megatron_longpo.evaluate.report.estimates import Estimate
from megatron_longpo.evaluate.report.plots import bar_plot, colour, line_plot
from megatron_longpo.evaluate.report.published import SOURCE, choose_published
from megatron_longpo.evaluate.report.rows import Row, make_rows
from megatron_longpo.evaluate.report.summary import REPORT, SuiteSummary, as_json, summarise
from megatron_longpo.evaluate.report.tables import Line, all_lengths
from megatron_longpo.evaluate.report.text_tables import (
    difference_text,
    difference_text_by_task,
    escape_markdown,
    score_text,
)
from megatron_longpo.files import atomic_file
from megatron_longpo.templates import render


def write_report(output: Path, models: Sequence[str] | None = None, published: Sequence[str] = ("all",)) -> str:
    """Write the three files into ``output`` and return the Markdown.

    Args:
        output: the folder that ``evaluate run`` wrote.
        models: which ones, in which order, the first to compare with; None: all, as they were given to it.
        published: the card's rows to show: ``["all"]``, ``["none"]`` or their names.

    Raises:
        UserError: there are no cells, one is broken, two contradict each other, or a name is not known.
    """
    names = choose_published(published)
    rows = make_rows(read_cell_files(output), models)
    summaries = summarise(rows, names)
    shown = [_shown(one) for one in summaries]
    texts = {
        "report.md": render(
            "megatron_longpo.evaluate.report",
            "report.md.jinja",
            {"version": __version__, "suites": shown, "escape": escape_markdown},
        )
        + "\n",
        REPORT: json.dumps(as_json(rows, summaries), indent=1, ensure_ascii=False) + "\n",
        "report.html": _page(rows, summaries, shown, SOURCE if names else None),
    }
    for name, text in texts.items():
        with atomic_file(output / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    return texts["report.md"]


def _shown(one: SuiteSummary) -> dict[str, Any]:
    """What the templates of both reports read of a suite."""
    return {
        "title": one.suite.title,
        "about": one.suite.about,
        "columns": one.suite.columns,
        "scores": score_text(one.scores, "Model"),
        "scores_by_length": score_text(one.scores_by_length, "Model"),
        "scores_by_task": score_text(one.scores_by_task, "Task"),
        "differences": difference_text(one.differences, "Difference"),
        "differences_by_length": difference_text(one.differences_by_length, "Difference"),
        "differences_by_task": difference_text_by_task(one.differences_by_task),
        "has_lengths": len(all_lengths(one.rows, one.suite)) > 1,
        "notes": [*one.notes, *one.published_notes],
        "difference_notes": one.difference_notes,
        "labels": [row.label for row in one.rows],
        "settings": one.settings,
    }


def _page(
    rows: Sequence[Row], summaries: Sequence[SuiteSummary], shown: Sequence[dict[str, Any]], source: str | None
) -> str:
    colours = {row.label: colour(index) for index, row in enumerate(rows)}
    suites = [
        {**values, "plots": _plots(one, list(colours)), "questions": shown_questions(one.rows, one.suite)}
        for one, values in zip(summaries, shown, strict=True)
    ]
    return render(
        "megatron_longpo.evaluate.report",
        "report.html.jinja",
        {
            "version": __version__,
            "rows": [_row_facts(row, colours[row.label]) for row in rows],
            "suites": suites,
            "published_source": source,
        },
    )


def _row_facts(row: Row, its_colour: str) -> dict[str, Any]:
    cells = list(row.cells.values())
    seconds = sum(cell.seconds for cell in cells)
    num_tokens = sum(cell.prompt_tokens + cell.new_tokens for cell in cells)
    return {
        "label": row.label,
        "colour": its_colour,
        "engine": row.engine,
        "limits": ", ".join("all" if limit is None else f"first {limit:,}" for limit in row.limits),
        "weights": row.weights[:12],
        "num_cells": len(cells),
        "num_samples": sum(cell.num for cell in cells),
        "num_tokens": num_tokens,
        "minutes": seconds / 60,
        "speed": f"{num_tokens / seconds:,.0f}" if seconds else "?",
    }


def _plots(one: SuiteSummary, labels: Sequence[str]) -> list[tuple[str, str]]:
    """Titles and SVG; a row has the same colour in all of them."""
    columns = [column.name for column in one.suite.columns]
    lengths = [length for length in all_lengths(one.rows, one.suite) if length is not None]
    if len(lengths) > 1:
        by_place = {(line.label, line.length): line for line in one.scores_by_length.lines}
        return [
            (
                name,
                line_plot(
                    lengths,
                    [[_estimate(by_place.get((label, length)), place) for length in lengths] for label in labels],
                ),
            )
            for place, name in enumerate(columns)
        ]
    ours = {line.label: line for line in one.scores.lines if not line.is_published}
    series = [[_estimate(ours.get(label), place) for place in range(len(columns))] for label in labels]
    return [("", bar_plot(columns, series))]


def _estimate(line: Line | None, place: int) -> Estimate | None:
    value = line.values[place] if line is not None else None
    return value.estimate if value is not None else None
