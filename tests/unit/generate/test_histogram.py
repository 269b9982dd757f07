import numpy as np
import pytest

from megatron_longpo.generate.report.histogram import bin_edges, histogram


@pytest.mark.parametrize(
    "values", [[5], [0], [0, 0], [-3, 4], [-250, -1, 0, 3, 900], [-7] * 100, list(range(65536, 131072, 7))]
)
def test_bins_hold_every_value_once_and_0_is_an_edge(values: list[int]) -> None:
    edges = bin_edges(values)
    assert 2 <= len(edges) <= 50
    assert edges[0] <= min(values) and max(values) < edges[-1]
    assert len(set(np.diff(edges))) == 1
    assert 0 in edges or not edges[0] < 0 < edges[-1]
    assert sum(np.histogram(values, edges)[0]) == len(values)


def test_few_values_get_few_bins() -> None:
    assert len(bin_edges([0, 1000])) <= 9
    assert len(bin_edges(list(range(1000)))) > 20


def test_every_value_is_counted_in_its_bin_and_series() -> None:
    series = {"chosen": [3, 5, 9, 200], "rejected": [30, 50, 90, 20]}
    found = histogram("Answers", series, "turns")
    for name, values in series.items():
        edges = [*(one.start for one in found.bins), found.bins[-1].end]
        assert [dict(one.counts)[name] for one in found.bins] == np.histogram(values, edges)[0].tolist()


def test_stacked_series_add_up() -> None:
    series = {"chosen": [1] * 4, "rejected": [1] * 6}
    assert histogram("x", series, "turns", is_stacked=True).most == 10
    assert histogram("x", series, "turns").most == 6
