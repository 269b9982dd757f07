"""Histograms of lengths, as numbers; the report's template draws their bars."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Bin:
    """The values from ``start`` up to, but without, ``end``."""

    start: int
    end: int
    counts: tuple[tuple[str, int], ...]
    """(series, how many of its values): "chosen", "rejected", or "" for another series."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How often each length comes."""

    title: str
    note: str
    of_what: str
    """What is counted: pairs or turns."""
    bins: tuple[Bin, ...]
    is_stacked: bool
    """The series of a bin add up; else they stand side by side."""

    @property
    def most(self) -> int:
        """The count that the highest bar stands for."""
        add = sum if self.is_stacked else max
        return max(add(count for _, count in one.counts) for one in self.bins)

    @property
    def is_keyed(self) -> bool:
        """Whether the colours of its series need to be named."""
        return len(self.bins[0].counts) > 1


def histogram(
    title: str, series: Mapping[str, Sequence[int]], of_what: str, *, note: str = "", is_stacked: bool = False
) -> Histogram:
    """Count the values of every series in common bins; there is at least one value."""
    edges = bin_edges([value for values in series.values() for value in values])
    counts = {name: [0] * (len(edges) - 1) for name in series}
    for name, values in series.items():
        for value in values:
            counts[name][bisect_right(edges, value) - 1] += 1
    bins = tuple(
        Bin(start, end, tuple((name, counts[name][index]) for name in series))
        for index, (start, end) in enumerate(pairwise(edges))
    )
    return Histogram(title=title, note=note, of_what=of_what, bins=bins, is_stacked=is_stacked)


def bin_edges(values: Sequence[int]) -> list[int]:
    """Edges of at most 8 to 48 bins, more for more values, at multiples of 1, 2 or 5 times a power of ten.

    So 0 is never inside a bin.
    """
    least, greatest = min(values), max(values)
    most = min(48, max(8, 2 * math.isqrt(len(values))))
    widths = (step * 10**power for power in range(20) for step in (1, 2, 5))
    width = next(width for width in widths if greatest // width - least // width < most)
    return list(range(least // width * width, greatest + width + 1, width))
