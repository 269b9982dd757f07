"""A chart as SVG, coloured by the page: class ``cN`` is the N-th run's."""

import math
from collections.abc import Iterable, Sequence
from html import escape

from megatron_longpo.report.curves import Chart, Curve, Point

WIDTH, HEIGHT = 420, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 54, 398, 10, 194


def draw(chart: Chart, resumes: Sequence[tuple[int, int]]) -> str:
    """The chart as an ``<svg>`` element.

    Args:
        resumes: (run, step) of every resume.
    """
    points = [point for curve in chart.curves for point in curve.points]
    steps = _Scale(*_range(point.step for point in points), _LEFT, _RIGHT)
    values = _Scale(*_range(value for point in points for value in (point.low, point.high)), _BOTTOM, _TOP)
    drawn = [
        *(_y_tick(values, tick) for tick in _ticks(values)),
        *(_x_tick(steps, tick) for tick in _ticks(steps) if tick == int(tick)),
        *(
            f'<path class="resume c{run}" d="M{steps(step)} {_TOP}V{_BOTTOM}"/>'
            for run, step in resumes
            if steps.low <= step <= steps.high
        ),
        *(_curve(curve, steps, values) for curve in chart.curves),
    ]
    unit = f", {chart.unit}" if chart.unit else ""
    label = escape(f"{chart.title}{unit}, by step")
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(drawn)}</svg>'


class _Scale:
    """From numbers to places."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self._start, self._end = low, high, start, end

    def __call__(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{self._start + share * (self._end - self._start):.1f}".removesuffix(".0")


def _range(values: Iterable[float]) -> tuple[float, float]:
    """Least and greatest, a little apart where they are one."""
    several = list(values)
    low, high = min(several), max(several)
    apart = 0.0 if high - low > 1e-9 * max(abs(low), abs(high)) else 0.05 * abs(low) or 0.5
    return low - apart, high + apart


def _ticks(scale: _Scale) -> list[float]:
    """Three to six round numbers."""
    width = scale.high - scale.low
    power = 10.0 ** math.floor(math.log10(width / 3))
    unit = next(one * power for one in (5, 2, 1) if width / (one * power) >= 3)
    first, last = math.ceil(scale.low / unit), math.floor(scale.high / unit)
    return [round(place * unit, 12 - math.floor(math.log10(unit))) for place in range(first, last + 1)]


def _text(value: float) -> str:
    return f"{value:,.10g}" if not value or 1e-3 <= abs(value) < 1e6 else f"{value:.10g}"


def _y_tick(scale: _Scale, value: float) -> str:
    place = scale(value)
    return (
        f'<path class="grid" d="M{_LEFT} {place}H{_RIGHT}"/>'
        f'<text x="{_LEFT - 6}" y="{place}" dy="0.33em" text-anchor="end">{_text(value)}</text>'
    )


def _x_tick(scale: _Scale, value: float) -> str:
    return f'<text x="{scale(value)}" y="{_BOTTOM + 17}" text-anchor="middle">{_text(value)}</text>'


def _curve(curve: Curve, steps: _Scale, values: _Scale) -> str:
    kind = "held" if curve.is_held_out else "line"
    parts: list[str] = []
    if any(point.low != point.high for point in curve.points):
        high = _path((steps(point.step), values(point.high)) for point in curve.points)
        low = _path((steps(point.step), values(point.low)) for point in reversed(curve.points))
        parts.append(f'<path class="band c{curve.run}" d="{high}L{low[1:]}Z"/>')
    parts.append(f'<path class="{kind} c{curve.run}" d="{_path(_places(curve.points, steps, values))}"/>')
    if curve.is_held_out or len(curve.points) == 1:
        places = _places(curve.points, steps, values)
        parts += (f'<circle class="c{curve.run}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in places)
    return "".join(parts)


def _places(points: Iterable[Point], steps: _Scale, values: _Scale) -> list[tuple[str, str]]:
    return [(steps(point.step), values(point.value)) for point in points]


def _path(places: Iterable[tuple[str, str]]) -> str:
    return "M" + "L".join(f"{x} {y}" for x, y in places)
