"""curves.py and svg.py: what is drawn, in which order, and that it stays small."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from megatron_longpo.metrics import metric_of
from megatron_longpo.report.curves import MOST_POINTS, Chart, Curve, Point, sections, thin
from megatron_longpo.report.runs import Points, Run
from megatron_longpo.report.svg import HEIGHT, WIDTH, draw


def run_of(**series: Points) -> Run:
    """A run with these metrics, / written as __; held-out ones end in _valid."""
    named = {
        (name.removesuffix("_valid").replace("__", "/"), "valid" if name.endswith("_valid") else "train"): points
        for name, points in series.items()
    }
    return Run("run", Path("metrics.jsonl"), (), named)


def test_few_points_stay_as_they_are() -> None:
    points = [(step, float(-step)) for step in range(MOST_POINTS)]
    assert thin(points) == [Point(step, value, value, value) for step, value in points]


@pytest.mark.parametrize("number", [MOST_POINTS + 1, 10_007])
def test_many_become_means_between_least_and_greatest(number: int) -> None:
    """No step is lost and none counts twice: a spike stays in the band, and the weighted mean of all is kept."""
    points: Points = [(step, 1.0) for step in range(number)]
    points[number // 2] = (number // 2, 1000.0)
    thinned = thin(points)
    assert len(thinned) == MOST_POINTS
    assert max(point.high for point in thinned) == 1000.0 and min(point.low for point in thinned) == 1.0
    assert all(point.low <= point.value <= point.high for point in thinned)
    (spike,) = [point for point in thinned if point.high > 1.0]
    steps_of_spike = 999.0 / (spike.value - 1.0)
    assert round(steps_of_spike) in (number // MOST_POINTS, number // MOST_POINTS + 1)
    assert [point.step for point in thinned] == sorted(point.step for point in thinned)


def test_sections_and_their_order() -> None:
    one = [(1, 0.5)]
    runs = [
        run_of(loss=one, loss_valid=one, by_length__4096__nll=one, by_length__16384__nll=one, resumed_from=one),
        run_of(grad_norm=one, loss=one, of_the_future=one, by_length__512__margin=one, by_turn__2__margin=one),
    ]
    found = sections(runs)
    assert [section.title for section in found] == [
        "Loss",
        "Gradient and learning rate",
        "By length of the trunk",
        "By turn",
        "Other",
    ]
    ((_, (loss,)),) = found[0].rows
    assert [(curve.run, curve.is_held_out) for curve in loss.curves] == [(0, False), (0, True), (1, False)]
    by_length = {row: [chart.title for chart in charts] for row, charts in found[2].rows}
    assert by_length == {"nll": ["up to 4,096 tokens", "up to 16,384 tokens"], "margin": ["up to 512 tokens"]}
    assert found[4].rows[0][1][0].title == "of the future"


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("loss", ""),
        ("by_turn/3/margin", "nats"),
        ("by_length/131072/nll", "nats/token"),
        ("num_tokens/trunk", "tokens"),
    ],
)
def test_metric_of_a_path(path: str, unit: str) -> None:
    metric = metric_of(path)
    assert metric is not None and metric.unit == unit


def drawn(values: list[float], **changes: Any) -> ElementTree.Element:
    points = [Point(step, value, value, value) for step, value in enumerate(values, start=1)]
    return ElementTree.fromstring(draw(Chart("a < b", "nats", [Curve(0, False, points)]), **{"resumes": [], **changes}))


@pytest.mark.parametrize(
    "values",
    [[1.0], [0.0, 0.0], [5e-7, 1e-7], [1e9, -1e9, 3.0], [1.0, 1.0 + 1e-12], [-3e-300, 2e-300], [1e300, -1e300], [2, 3]],
)
def test_every_number_finds_its_place(values: list[float]) -> None:
    svg = drawn(values)
    assert svg.get("aria-label") == "a < b, nats, by step"
    numbers = [float(one) for path in svg.iter("path") for one in re.findall(r"-?[\d.]+", path.get("d", ""))]
    assert numbers and all(0 <= one <= max(WIDTH, HEIGHT) for one in numbers)
    assert 2 <= len([path for path in svg.iter("path") if path.get("class") == "grid"]) <= 7
    texts = [text.text or "" for text in svg.iter("text")]
    assert len(texts) == len(set(texts)) + len({"1", "2", "3"} & {text for text in texts if texts.count(text) > 1})


def test_resumes_are_marked_where_they_are() -> None:
    svg = drawn([1.0, 2.0, 3.0], resumes=[(0, 2), (1, 99)])
    assert [path.get("class") for path in svg.iter("path") if "resume" in path.get("class", "")] == ["resume c0"]


def test_a_chart_of_ten_thousand_steps_is_small() -> None:
    points = thin([(step, float(step % 97)) for step in range(10_000)])
    assert len(draw(Chart("loss", "", [Curve(0, False, points)]), [])) < 16_000
