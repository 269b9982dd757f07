"""Tables as text, for the Markdown and the HTML report alike."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_longpo.evaluate.report.notes import PARTLY, length_name
from megatron_longpo.evaluate.report.tables import Line, Table, Value

NOTHING = "\u2013"


@dataclass(frozen=True, slots=True)
class TextRow:
    """One line: its names, then its numbers."""

    names: tuple[str, ...]
    numbers: tuple[str, ...]
    is_clear: tuple[bool, ...]
    """Which numbers are differences whose interval leaves out 0."""
    is_published: bool


@dataclass(frozen=True, slots=True)
class TextTable:
    """Names of the columns, and lines."""

    names: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[TextRow, ...]

    def markdown(self) -> str:
        """As Markdown; differences that are clear are bold."""
        head = [*self.names, *self.columns]
        rule = [*("---" for _ in self.names), *("---:" for _ in self.columns)]
        return "\n".join(_markdown_line(cells) for cells in (head, rule, *(_markdown_cells(row) for row in self.rows)))


def score_text(table: Table, first: str) -> TextTable:
    """Scores with their standard errors: ``96.88 ± 0.41``, with a dagger where something is missing.

    Args:
        first: the name of the first column.
    """
    rows = [(line, [_score(value) for value in line.values]) for line in table.lines]
    return _text_table(table, first, table.columns, rows)


def difference_text(table: Table, first: str) -> TextTable:
    """Differences with their intervals, and in a last column the pairs of the column before."""
    rows = [
        (line, [*(_difference(value) for value in line.values), _pairs(line.values[-1])])
        for line in table.lines
        if any(line.values)
    ]
    return _text_table(table, first, (*table.columns, "pairs"), rows)


def difference_text_by_task(table: Table) -> TextTable:
    """Differences with their intervals and, in parentheses, their pairs; every column is a comparison."""
    rows = [
        (line, [f"{_difference(value)} ({_pairs(value)})" if value else NOTHING for value in line.values])
        for line in table.lines
        if any(line.values)
    ]
    return _text_table(table, "Task", table.columns, rows)


def _text_table(
    table: Table, first: str, columns: Sequence[str], rows: Sequence[tuple[Line, Sequence[str]]]
) -> TextTable:
    has_lengths = any(line.length is not None for line in table.lines)
    return TextTable(
        (first, "Length") if has_lengths else (first,),
        tuple(columns),
        tuple(
            TextRow(
                (_label(line), length_name(line.length)) if has_lengths else (_label(line),),
                tuple(numbers),
                tuple(_is_clear(line, place) for place in range(len(columns))),
                line.is_published,
            )
            for line, numbers in rows
        ),
    )


def _label(line: Line) -> str:
    return f"{line.label} (published)" if line.is_published else line.label


def _is_clear(line: Line, place: int) -> bool:
    value = line.values[place] if place < len(line.values) else None
    return value is not None and value.num_pairs is not None and value.estimate.is_clear


def _score(value: Value | None) -> str:
    if value is None:
        return NOTHING
    error = value.estimate.standard_error
    text = f"{value.estimate.value:.2f}" if error is None else f"{value.estimate.value:.2f} \u00b1 {error:.2f}"
    return text if value.is_complete else f"{text} {PARTLY}"


def _difference(value: Value | None) -> str:
    if value is None:
        return NOTHING
    interval = value.estimate.interval
    text = f"{value.estimate.value:+.2f}"
    if interval is not None:
        text += f" [{interval[0]:+.2f}, {interval[1]:+.2f}]"
    return text if value.is_complete else f"{text} {PARTLY}"


def _pairs(value: Value | None) -> str:
    return f"{value.num_pairs:,}" if value is not None else NOTHING


def _markdown_cells(row: TextRow) -> list[str]:
    names = [escape_markdown(name) for name in row.names]
    numbers = zip(row.numbers, row.is_clear, strict=True)
    return [*names, *(f"**{number}**" if is_clear else number for number, is_clear in numbers)]


def _markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def escape_markdown(text: str) -> str:
    """Text of any kind so that it stays in its line and cell, and is no markup."""
    escaped = "".join(f"\\{one}" if one in "\\`*[]|" else one for one in " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")
