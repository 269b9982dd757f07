"""Histograms of lengths as SVG for a page: the same numbers give the same bytes, and the page's style colours them."""

import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_longpo.errors import import_optional

Colour = Literal["ink", "bar", "chosen", "rejected"]
_DRAWN: dict[Colour, str] = {"ink": "#010203", "bar": "#010204", "chosen": "#010205", "rejected": "#010206"}
"""Stand for the page's variables ``--ink``, ``--bar``, ...: the page knows whether it is light or dark."""
_STYLE = {
    "svg.fonttype": "none",  # text stays text: it is small, can be found and takes the page's font
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
    "xtick.major.size": 3,
    "xtick.major.width": 0.6,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.handlelength": 1.2,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), _DRAWN["ink"]),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), _DRAWN["ink"]),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
}


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers of one kind."""

    name: str
    values: Sequence[int]
    colour: Colour = "bar"


def histogram(
    title: str,
    series: Sequence[Series],
    unit: str,
    of_what: str,
    *,
    is_stacked: bool = False,
    mark: tuple[str, float] | None = None,
    inches: tuple[float, float] = (4.7, 2.3),
) -> str:
    """An ``<svg>`` element: how often each length comes.

    Args:
        title: of this figure alone on its page; read out in place of the picture.
        unit: of the lengths.
        of_what: is counted: pairs or turns.
        is_stacked: series add up; else each begins at 0.
        mark: a line across, and its name.
        inches: width and height; the page scales the picture.

    Raises:
        UserError: matplotlib is not installed.
    """
    mpl = _matplotlib()
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever the machine's matplotlibrc says
        mpl.rcParams.update({**_STYLE, "svg.hashsalt": title})
        figure = mpl.figure.Figure(figsize=inches, layout="constrained")
        axes = figure.subplots()
        edges = bin_edges([value for one in series for value in one.values])
        bottom = 0.0
        for one in series:
            colour = _DRAWN[one.colour]
            # In a stack the edge of an empty bin would lie on the bin below.
            style = {"fc": (colour, 0.6), "lw": 0} if is_stacked else {"fc": (colour, 0.3), "ec": colour}
            heights, _, _ = axes.hist(
                one.values, bins=edges, histtype="stepfilled", bottom=bottom, label=one.name, **style
            )
            bottom = bottom + heights if is_stacked else 0.0
        if mark is not None:
            axes.axvline(mark[1], color=_DRAWN["ink"], linewidth=1, linestyle=(0, (4, 2)), label=mark[0])
        if len(series) > 1 or mark is not None:
            axes.legend()
        axes.set(xlabel=unit, ylabel=of_what)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(mpl.ticker.MaxNLocator(nbins=6, integer=True))
            axis.set_major_formatter(mpl.ticker.StrMethodFormatter("{x:,.0f}"))
        return _svg(figure, title)


def bin_edges(values: Sequence[int]) -> list[int]:
    """Edges of at most 8 to 48 bins, more for more values, at multiples of 1, 2 or 5 times a power of ten.

    So 0 is never inside a bin.
    """
    least, greatest = min(values), max(values)
    most = min(48, max(8, 2 * math.isqrt(len(values))))
    widths = (step * 10**power for power in range(20) for step in (1, 2, 5))
    width = next(width for width in widths if greatest // width - least // width < most)
    return list(range(least // width * width, greatest + width + 1, width))


def _svg(figure: Any, title: str) -> str:
    """The figure as an element of an HTML page, without what has no place there or is not needed."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would hold for the whole page
    text = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*"(/?)>', r"<g\1>", text)  # every figure has the same ones, and nothing refers to them
    text = re.sub(r"font-family: [^;]*; ", "", text)
    for name, drawn in _DRAWN.items():
        text = text.replace(drawn, f"var(--{name})")
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)


def _matplotlib() -> Any:
    for module in ("matplotlib.ticker", "matplotlib.figure"):
        import_optional(module, "the report needs matplotlib", extra="generate")
    return import_optional("matplotlib", "the report needs matplotlib", extra="generate")
