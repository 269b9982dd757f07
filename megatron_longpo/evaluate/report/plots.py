"""Plots as SVG to stand inside an HTML page; the same numbers give the same bytes.

They have no legend: the page names the colours of the rows, `colour`, once.
"""

import io
import math
import re
from collections.abc import Sequence
from typing import Any

from megatron_longpo.errors import import_optional
from megatron_longpo.evaluate.report.estimates import Estimate
from megatron_longpo.evaluate.report.notes import length_name
from megatron_longpo.templates import COLOURS

_MARKERS = "osD^vPX*"
_STYLE = {
    "svg.hashsalt": "megatron-longpo",  # names of markers and clip paths; without one they are random
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#59606d",
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#dcdfe5",
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def colour(index: int) -> str:
    """The colour of a row, the first being 0."""
    return COLOURS[index % len(COLOURS)]


def line_plot(lengths: Sequence[int], series: Sequence[Sequence[Estimate | None]]) -> str:
    """Scores by length, a line a row with its standard errors.

    Args:
        lengths: tokens, ascending.
        series: of each row, its scores at the lengths.
    """
    figure, axes = _axes(4.2, 2.7)
    for index, row in enumerate(series):
        there = [(length, one) for length, one in zip(lengths, row, strict=True) if one is not None]
        axes.errorbar(
            [length for length, _ in there],
            [one.value for _, one in there],
            yerr=[one.standard_error or 0.0 for _, one in there],
            color=colour(index),
            marker=_MARKERS[index % len(_MARKERS)],
            linestyle=("-", "--")[index // len(COLOURS) % 2],
            markersize=5,
            capsize=3,
        )
    axes.set_xscale("log", base=2)
    axes.set_xlim(lengths[0] / math.sqrt(2), lengths[-1] * math.sqrt(2))
    axes.set_xticks(lengths, [length_name(length) for length in lengths])
    axes.minorticks_off()
    axes.set_xlabel("length, tokens")
    return _svg(figure)


def bar_plot(names: Sequence[str], series: Sequence[Sequence[Estimate | None]]) -> str:
    """Scores of the columns side by side, a bar a row with its standard error.

    Args:
        names: of the columns.
        series: of each row, its scores in the columns.
    """
    figure, axes = _axes(7.2, 2.9)
    width = 0.8 / len(series)
    for index, row in enumerate(series):
        there = [(place, one) for place, one in enumerate(row) if one is not None]
        axes.bar(
            [place - 0.4 + width * (index + 0.5) for place, _ in there],
            [one.value for _, one in there],
            width * 0.92,
            yerr=[one.standard_error or 0.0 for _, one in there],
            color=colour(index),
            error_kw={"ecolor": "#1b1e24", "capsize": min(3.0, 24 * width), "elinewidth": 1},
        )
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)
    return _svg(figure)


def _axes(width: float, height: float) -> tuple[Any, Any]:
    """Figure and axes from 0 to 100, in inches."""
    with _matplotlib("matplotlib").rc_context(_STYLE):
        figure = _matplotlib("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
    axes.set_ylim(0, 104)
    axes.set_ylabel("score")
    return figure, axes


def _matplotlib(module: str) -> Any:
    return import_optional(module, "the report's plots are made by matplotlib", extra="evaluate")


def _svg(figure: Any) -> str:
    """The element alone, without the names of its groups, which other plots of the page have too."""
    file = io.StringIO()
    with _matplotlib("matplotlib").rc_context(_STYLE):
        figure.savefig(file, format="svg", metadata=_NO_METADATA)
    text = file.getvalue()
    return re.sub(r'<g id="[^"]*">', "<g>", text[text.index("<svg") :]).strip()
