"""A suite's tables: scores and paired differences, over everything, by length and by task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_longpo.evaluate.report.differences import Paired, known, paired_rows
from megatron_longpo.evaluate.report.estimates import Estimate, Place, ascending, mean_over
from megatron_longpo.evaluate.report.published import PUBLISHED
from megatron_longpo.evaluate.report.rows import Row, base_of
from megatron_longpo.evaluate.suites import Column, Suite


@dataclass(frozen=True, slots=True)
class Value:
    """One number of a table."""

    estimate: Estimate
    is_complete: bool
    """Whether all tasks at all lengths of its column are in it."""
    num_pairs: int | None = None
    """Of a difference."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a table."""

    label: str
    length: int | None
    values: tuple[Value | None, ...]
    """None: there is nothing to show."""
    is_published: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Lines of numbers under the names of the columns."""

    columns: tuple[str, ...]
    lines: tuple[Line, ...]


Comparison = tuple[Row, Row, Mapping[Place, Paired]]
"""The row compared with, the row, and the differences."""


def common_lengths(rows: Sequence[Row], suite: Suite) -> list[int | None]:
    """The lengths at which all rows have a cell of the suite; all rows have one somewhere."""
    return [one for one in rows[0].lengths(suite) if all(one in row.lengths(suite) for row in rows)]


def all_lengths(rows: Sequence[Row], suite: Suite) -> list[int | None]:
    """The lengths at which any row has a cell of the suite."""
    return ascending(one for row in rows for one in row.lengths(suite))


def comparisons(rows: Sequence[Row], first: str, suite: Suite) -> list[Comparison]:
    """Compare every row with the first model's; all rows have a cell of the suite."""
    bases = [row for row in rows if row.model == first]
    pairs = [(base, row) for row in rows if (base := base_of(row, bases)) is not None]
    return [(base, row, paired_rows(base, row, suite)) for base, row in pairs]


def score_table(rows: Sequence[Row], suite: Suite, published: Sequence[str]) -> Table:
    """The paper's table: ours, over the lengths that all rows have or else each row's own; then the published rows."""
    common = common_lengths(rows, suite)
    ours = [_score_line(row, suite, common or row.lengths(suite)) for row in rows]
    theirs = [
        Line(name, None, tuple(Value(Estimate(value, None), True) for value in values), True)
        for name, values in PUBLISHED[suite.name].items()
        if name in published
    ]
    return Table(_names(suite), (*ours, *theirs))


def score_table_by_length(rows: Sequence[Row], suite: Suite) -> Table:
    """The same columns at every length, model by model."""
    lines = [_score_line(row, suite, [length], length) for row in rows for length in row.lengths(suite)]
    return Table(_names(suite), tuple(lines))


def score_table_by_task(rows: Sequence[Row], suite: Suite) -> Table:
    """Every task at every length; a column is a row."""
    estimates = [row.estimates(suite) for row in rows]
    lines = [
        Line(
            task, length, tuple(Value(one[task, length], True) if (task, length) in one else None for one in estimates)
        )
        for task, length in _places(rows, suite)
    ]
    return Table(tuple(row.label for row in rows), tuple(lines))


def difference_table(compared: Sequence[Comparison], suite: Suite) -> Table:
    """The columns of `score_table` for differences, over what both rows have."""
    lines = [
        _difference_line(label_of(base, row), suite, pairs, _lengths(pairs), None) for base, row, pairs in compared
    ]
    return Table(_names(suite), tuple(lines))


def difference_table_by_length(compared: Sequence[Comparison], suite: Suite) -> Table:
    """The columns of `score_table_by_length` for differences."""
    lines = [
        _difference_line(label_of(base, row), suite, pairs, [length], length)
        for base, row, pairs in compared
        for length in _lengths(pairs)
    ]
    return Table(_names(suite), tuple(lines))


def difference_table_by_task(compared: Sequence[Comparison], suite: Suite) -> Table:
    """Every task at every length; a column is a comparison."""
    places = _places([row for _, row, _ in compared], suite)
    lines = [
        Line(task, length, tuple(_paired_value(pairs.get((task, length))) for _, _, pairs in compared))
        for task, length in places
    ]
    return Table(tuple(label_of(base, row) for base, row, _ in compared), tuple(lines))


def label_of(base: Row, row: Row) -> str:
    """The name of a comparison of rows."""
    return difference_label(row.label, base.label)


def difference_label(label: str, base: str) -> str:
    """The name of a comparison, by the names of its rows."""
    return f"{label} \u2212 {base}"


def _names(suite: Suite) -> tuple[str, ...]:
    return tuple(column.name for column in suite.columns)


def _places(rows: Sequence[Row], suite: Suite) -> list[Place]:
    there = {place for row in rows for place in row.estimates(suite)}
    return [(task, one) for task in suite.tasks for one in all_lengths(rows, suite) if (task, one) in there]


def _lengths(pairs: Mapping[Place, Paired]) -> list[int | None]:
    """Where there is a difference."""
    return ascending(length for _, length in known(pairs))


def _score_line(row: Row, suite: Suite, lengths: Sequence[int | None], length: int | None = None) -> Line:
    estimates = row.estimates(suite)
    return Line(row.label, length, tuple(_value(estimates, column, lengths) for column in suite.columns))


def _difference_line(
    label: str, suite: Suite, pairs: Mapping[Place, Paired], lengths: Sequence[int | None], length: int | None
) -> Line:
    differences = known(pairs)
    values: list[Value | None] = []
    for column in suite.columns:
        value = _value(differences, column, lengths)
        nums = [pairs[place].num_pairs for place in differences if place[0] in column.tasks and place[1] in lengths]
        values.append(value and Value(value.estimate, value.is_complete, sum(nums)))
    return Line(label, length, tuple(values))


def _value(estimates: Mapping[Place, Estimate], column: Column, lengths: Sequence[int | None]) -> Value | None:
    mean = mean_over(estimates, column.tasks, lengths)
    is_complete = all((task, length) in estimates for task in column.tasks for length in lengths)
    return mean and Value(mean, is_complete)


def _paired_value(one: Paired | None) -> Value | None:
    return Value(one.difference, True, one.num_pairs) if one is not None and one.difference is not None else None
