"""A few answers for the page: of each column of the long suites three questions, with every row's answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_longpo.evaluate.cells import Cell, Sample
from megatron_longpo.evaluate.report.notes import length_name
from megatron_longpo.evaluate.report.rows import Row
from megatron_longpo.evaluate.suites import Column, Suite

_NUM_QUESTIONS = 3
_MOST_CHARACTERS = 600


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """What one row answered."""

    label: str
    text: str
    """At most 600 characters."""
    score: float
    """0 to 1."""


@dataclass(frozen=True, slots=True)
class ShownQuestion:
    """One question."""

    column: str
    name: str
    """Its task, length and id."""
    answers: tuple[ShownAnswer, ...]


def shown_questions(rows: Sequence[Row], suite: Suite) -> list[ShownQuestion]:
    """Choose questions, evenly from the tasks of each column and from a task's samples, at the first row's greatest
    length."""
    if suite.name == "short":  # its answers are letters
        return []
    return [question for column in suite.columns[:-1] for question in _of_column(rows, column)]


def _of_column(rows: Sequence[Row], column: Column) -> Iterator[ShownQuestion]:
    there = [cell for task in column.tasks if (cell := _longest(rows[0], task)) is not None]
    chosen = [there[number * len(there) // _NUM_QUESTIONS] for number in range(_NUM_QUESTIONS)] if there else []
    for number, cell in enumerate(chosen):
        samples = cell.samples
        sample = samples[number * (len(samples) - 1) // (_NUM_QUESTIONS - 1)]
        answers = [_answer(row, cell, sample.id) for row in rows]
        at_length = f" at {length_name(cell.length)}" if cell.length else ""
        name = f"{cell.task}{at_length}, sample {sample.id}"
        yield ShownQuestion(column.name, name, tuple(one for one in answers if one is not None))


def _longest(row: Row, task: str) -> Cell | None:
    cells = [cell for (name, _), cell in row.cells.items() if name == task]
    return max(cells, key=lambda cell: cell.length or 0, default=None)


def _answer(row: Row, asked: Cell, sample_id: str) -> ShownAnswer | None:
    cell = row.cells.get((asked.task, asked.length))
    sample: Sample | None = next((one for one in cell.samples if one.id == sample_id), None) if cell else None
    if sample is None:
        return None
    text = sample.answer
    shown = text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]} \u2026"
    return ShownAnswer(row.label, shown, sample.score)
