import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from megatron_longpo.errors import UserError
from megatron_longpo.generate.report.report_figures import Series, bin_edges, histogram

TWO = [Series("chosen", [3, 5, 9, 200], "chosen"), Series("rejected", [30, 50, 90, 20], "rejected")]


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


def test_the_same_numbers_give_the_same_picture_and_matplotlib_is_left_as_it_was() -> None:
    with matplotlib.rc_context({"axes.facecolor": "red", "axes.labelsize": 30}):
        before = dict(matplotlib.rcParams)
        first = histogram("answers", TWO, "tokens", "turns")
        assert dict(matplotlib.rcParams) == before
    assert histogram("answers", TWO, "tokens", "turns") == first
    assert "red" not in first


def test_a_picture_is_one_element_of_a_page_with_names_of_its_own() -> None:
    pictures = [histogram(title, TWO, "tokens", "turns", mark=("median", 4.5)) for title in ("a & b", "c")]
    ids: list[str] = []
    for picture in pictures:
        root = ElementTree.fromstring(picture.replace("<svg", '<svg xmlns:xlink="x"', 1))
        texts = [element.text for element in root.iter("text")]
        assert {"tokens", "turns", "chosen", "rejected", "median", "0", "200"} <= set(texts)
        assert root.tag == "svg" and "style" not in {element.tag for element in root.iter()}
        ids += [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids)) > 0
    assert 'aria-label="a &amp; b"' in pictures[0]
    assert "#01020" not in pictures[0] and "var(--chosen)" in pictures[0]


def test_stacked_series_add_up() -> None:
    def highest(is_stacked: bool) -> int:
        series = [Series("one", [1] * 4), Series("two", [1] * 6)]
        picture = histogram("x", series, "tokens", "turns", is_stacked=is_stacked)
        root = ElementTree.fromstring(picture.replace("<svg", '<svg xmlns:xlink="x"', 1))
        return max(int(text.text) for text in root.iter("text") if (text.text or "").isdecimal())

    assert (highest(False), highest(True)) == (6, 10)


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"needs matplotlib .*pip install 'megatron-longpo\[generate\]'"):
        histogram("answers", TWO, "tokens", "turns")
