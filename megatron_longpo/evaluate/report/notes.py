"""What must be known of a suite's numbers: what is missing, cut or not comparable, in sentences."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from megatron_longpo.evaluate.cells import Cell, Setting
from megatron_longpo.evaluate.report.differences import Paired, known
from megatron_longpo.evaluate.report.estimates import Estimate, Place, ascending
from megatron_longpo.evaluate.report.rows import Row
from megatron_longpo.evaluate.report.tables import Comparison, common_lengths, label_of
from megatron_longpo.evaluate.suites import Suite

PARTLY = "\u2020"
"""Marks what is a mean over a part of the tasks; a dagger, since Markdown has other plans for an asterisk."""
_ENOUGH = 0.9
"""A prompt of less than this part of its length is told of."""
_MOST_VALUES = 6
_SAMPLED = {"mmlu": "each subject of mmlu"}
"""What a limit is of, where it is not of the task."""


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence under a table."""

    text: str
    labels: tuple[str, ...] = ()
    """The rows or comparisons that it is of; empty: all of the table."""

    def __str__(self) -> str:
        return f"{', '.join(self.labels)}: {self.text}" if self.labels else self.text


def length_name(length: int | None) -> str:
    """4096 -> "4K"."""
    if length is None:
        return ""
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)


def score_notes(rows: Sequence[Row], suite: Suite) -> list[Note]:
    """Of the table of scores."""
    common = common_lengths(rows, suite)
    missing = {row.label: _missing(row.estimates(suite), suite, row.lengths(suite)) for row in rows}
    where = "on the left" if suite.name == "short" else "in the middle"  # by lm-eval; by us
    return [
        *_lengths(rows, suite, common),
        *_of_rows(missing, f"{PARTLY} {{}}."),
        *_of_rows({row.label: _limited(row, suite) for row in rows}, "only {}."),
        *_of_rows({row.label: _short(row, suite) for row in rows}, "shorter than asked for: {}."),
        *_of_rows({row.label: _cut(row, suite) for row in rows}, f"prompts cut {where}: {{}}."),
        *_differing_settings(rows, suite),
    ]


def difference_notes(rows: Sequence[Row], compared: Sequence[Comparison], suite: Suite) -> list[Note]:
    """Of the table of differences."""
    pairs = {label_of(base, row): one for base, row, one in compared}
    common = common_lengths(rows, suite)
    return [
        *_of_rows({label: _not_compared(one) for label, one in pairs.items()}, "{}."),
        *_of_rows({label: _other_lengths(known(one), common) for label, one in pairs.items()}, "means over {}."),
        *_of_rows({label: _missing_pairs(known(one), suite) for label, one in pairs.items()}, f"{PARTLY} {{}}."),
    ]


def settings_table(rows: Sequence[Row], suite: Suite) -> list[tuple[str, list[str]]]:
    """Every setting that decides results, and its value in each row; values that differ by task are told apart."""
    names = sorted({name for row in rows for cell in _cells(row, suite) for name in cell.settings})
    return [(name, [_setting(_cells(row, suite), name) for row in rows]) for name in names]


def _cells(row: Row, suite: Suite) -> list[Cell]:
    return [cell for cell in row.cells.values() if cell.suite == suite.name]


def _lengths(rows: Sequence[Row], suite: Suite, common: Sequence[int | None]) -> Iterator[Note]:
    own = {row.label: row.lengths(suite) for row in rows}
    if all(lengths == [None] for lengths in own.values()):
        return
    if common:
        yield Note(f"Means over {_names(common)} tokens.")
        others = {label: _names([one for one in lengths if one not in common]) for label, lengths in own.items()}
        yield from _of_rows(others, "not in these means, since not all rows have it: {}.")
    else:
        yield Note("No length is common to all rows: they do not compare.")
        yield from _of_rows({label: _names(lengths) for label, lengths in own.items()}, "means over {}.")


def _missing(there: Iterable[Place], suite: Suite, lengths: Sequence[int | None]) -> str:
    """Which tasks are missing, everywhere or at some lengths; empty if none is."""
    places = set(there)
    gone = {length: [task for task in suite.tasks if (task, length) not in places] for length in lengths}
    everywhere = [task for task in suite.tasks if all(task in tasks for tasks in gone.values())]
    tasks_there = [task for task in suite.tasks if task not in everywhere]
    which = f"without {', '.join(everywhere)}" if len(everywhere) <= len(tasks_there) else ", ".join(tasks_there)
    parts = [f"over {len(tasks_there)} of {len(suite.tasks)} tasks, {which}"] if everywhere else []
    for length, tasks in gone.items():
        if others := [task for task in tasks if task in tasks_there]:
            parts.append(f"at {length_name(length)} without {', '.join(others)}")
    return "; ".join(parts)


def _limited(row: Row, suite: Suite) -> str:
    """Which tasks were asked in part; empty if none was."""
    tasks: dict[int, list[str]] = {}
    for cell in _cells(row, suite):
        if cell.limit is not None:
            tasks.setdefault(cell.limit, []).append(cell.task)
    return ", ".join(
        f"the first {limit:,} of {' and '.join(_SAMPLED.get(task, task) for task in dict.fromkeys(some))}"
        for limit, some in tasks.items()
    )


def _short(row: Row, suite: Suite) -> str:
    return ", ".join(
        f"{_at(cell.task, cell.length)} ({cell.real_length:,.0f} tokens on average)"
        for cell in _cells(row, suite)
        if cell.length is not None and cell.real_length is not None and cell.real_length < _ENOUGH * cell.length
    )


def _cut(row: Row, suite: Suite) -> str:
    cut = [cell for cell in _cells(row, suite) if cell.num_truncated]
    return ", ".join(f"{_at(cell.task, cell.length)} {cell.num_truncated} of {cell.num}" for cell in cut)


def _differing_settings(rows: Sequence[Row], suite: Suite) -> Iterator[Note]:
    names: set[str] = set()
    for row in rows[1:]:
        for place, cell in row.cells.items():
            if cell.suite == suite.name and (other := rows[0].cells.get(place)) is not None:
                both = (cell.settings, other.settings)
                names |= {one for one in both[0].keys() | both[1].keys() if both[0].get(one) != both[1].get(one)}
    if names:
        yield Note(f"Settings that are not the same in all rows: {', '.join(sorted(names))}.")


def _of_rows(texts: Mapping[str, str], words: str) -> Iterator[Note]:
    """A sentence for each text, with the rows that it is of; none for empty texts."""
    for text in dict.fromkeys(text for text in texts.values() if text):
        yield Note(words.format(text), tuple(label for label, one in texts.items() if one == text))


def _not_compared(pairs: Mapping[Place, Paired]) -> str:
    """Which questions are left out, and why; empty if none is."""
    if not pairs:
        return "no task in common"
    num_pairs = sum(one.num_pairs for one in pairs.values())
    num_others = sum(one.num_other_prompts for one in pairs.values())
    if num_pairs:
        total = num_pairs + num_others
        return f"{num_others:,} of {total:,} questions had another prompt and are left out" if num_others else ""
    why = "their prompts differ (another tokenizer or chat template)" if num_others else "no question in common"
    return f"no paired differences, since {why}"


def _other_lengths(differences: Mapping[Place, Estimate], common: Sequence[int | None]) -> str:
    """The lengths that two rows share, where these are not those of all rows."""
    lengths = ascending(length for _, length in differences)
    return _names(lengths) if lengths != list(common) else ""


def _missing_pairs(differences: Mapping[Place, Estimate], suite: Suite) -> str:
    return _missing(differences, suite, ascending(length for _, length in differences)) if differences else ""


def _setting(cells: Sequence[Cell], name: str) -> str:
    values: dict[str, list[str]] = {}
    for cell in cells:
        if name in cell.settings:
            values.setdefault(_shown_value(cell.settings[name]), []).append(cell.task)
    if len(values) == 1 or not values:
        return next(iter(values), "")
    if len(values) > _MOST_VALUES:
        return f"{len(values)} values, by task and length"
    return "; ".join(f"{value} ({', '.join(dict.fromkeys(tasks))})" for value, tasks in values.items())


def _shown_value(value: Setting) -> str:
    if value is None:
        return "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _at(task: str, length: int | None) -> str:
    return task if length is None else f"{task} at {length_name(length)}"


def _names(lengths: Sequence[int | None]) -> str:
    return ", ".join(length_name(one) for one in lengths)
