"""Files of answers to be scored: JSON lines, an answer each::

    {"answer": "She left for Lyon.", "references": ["Lyon", "to Lyon"]}
    {"answer": "B", "references": ["In May"], "options": ["In March", "In May", "In June", "Never"]}

``options`` are those of a multiple choice, in the order A to D. Other fields are left alone.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from megatron_longpo import strict_json
from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.rules import LETTERS, Rule

EXAMPLE = '{"answer": "She left for Lyon.", "references": ["Lyon"]}'
_LIKE = f"an answer is like {EXAMPLE}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered, and what would be right."""

    answer: str
    references: tuple[str, ...]
    options: tuple[str, ...] = ()
    where: str = ""
    """File and line, for messages."""


@dataclass(frozen=True, slots=True)
class Score:
    """The score of many answers, from 0 to 100."""

    score: float
    num: int
    """Answers."""
    standard_error: float | None
    """Of the mean, from the answers' spread; None of one answer."""


def read_answers(path: Path) -> Iterator[Answer]:
    """Yield the answers of a file.

    Raises:
        UserError: the file cannot be read, or a line is no answer; with file and line.
    """
    for where, fields in strict_json.read_lines(path, _LIKE):
        yield _parse(fields, where)


def score_answers(rule: Rule, answers: Iterator[Answer], source: Path) -> Score:
    """Score all answers by a rule.

    Args:
        source: where they come from, for the message that there is none.

    Raises:
        UserError: there is no answer, or the rule cannot be applied to one.
    """
    scores: list[float] = []
    for one in answers:
        try:
            scores.append(rule(one.answer, one.references, one.options))
        except UserError as error:
            raise UserError(f"{one.where}: {error}") from error
    if not scores:
        raise UserError(f"{source}: holds no answer; give one a line, like {EXAMPLE}")
    return score_of(scores)


def score_of(scores: Sequence[float]) -> Score:
    """Mean and standard error, times 100, of scores from 0 to 1; at least one."""
    error = 100 * stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None
    return Score(100 * mean(scores), len(scores), error)


def _parse(fields: Any, where: str) -> Answer:
    if not strict_json.is_object(fields) or not isinstance(fields.get("answer"), str):
        raise UserError(f'{where}: no "answer" that is a text; {_LIKE}')
    references, options = (_texts(fields.get(name, []), name, where) for name in ("references", "options"))
    if not references:
        raise UserError(f'{where}: no "references"; give what would be right, like {EXAMPLE}')
    if options and len(options) != len(LETTERS):
        raise UserError(f'{where}: "options" has {len(options)} texts; give four, in the order A to D')
    return Answer(fields["answer"], references, options, where)


def _texts(value: object, name: str, where: str) -> tuple[str, ...]:
    if not strict_json.is_array(value) or not all(isinstance(one, str) for one in value):
        raise UserError(f'{where}: "{name}" is no list of texts; {_LIKE}')
    return tuple(value)
