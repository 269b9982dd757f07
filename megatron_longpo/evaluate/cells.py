"""Cells: what one model scored in one task, with its answers; a JSON file each, ``OUTPUT/cells/<24 hex>.json``.

The same (suite, task, length, sample id) is the same question for every model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import fmean
from types import NoneType
from typing import Any

from megatron_longpo import strict_json
from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.suites import SUITES
from megatron_longpo.files import atomic_file, reading

FORMAT_VERSION = 1
ENGINES = ("hf", "vllm", "openai")

Setting = str | int | float | bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One question's answer."""

    id: str
    prompt_sha256: str
    """16 hex digits: two models had the same prompt where they are equal."""
    answer: str
    score: float
    """0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One model in one task, at one length."""

    model: str
    """Name given in ``--models``."""
    order: int
    """Its place there, from 0; the others are compared with the first."""
    weights: str
    """Fingerprint of its weights."""
    engine: str
    suite: str
    task: str
    length: int | None
    """Tokens; None but for RULER."""
    limit: int | None
    """Only the first so many samples (per subject of MMLU); None: all."""
    settings: Mapping[str, Setting]
    """Whatever else decides the result."""
    score: float
    """0 to 100: the mean of the samples'."""
    standard_error: float | None
    """None of a single sample."""
    num: int
    """Samples."""
    num_truncated: int
    """Samples whose prompt was cut in the middle."""
    real_length: float | None
    """Mean tokens of prompt and room for the answer; None for short tasks."""
    seconds: float
    prompt_tokens: int
    new_tokens: int
    samples: tuple[Sample, ...]
    """As ordered in the task."""


_TEXT, _COUNT, _NUMBER = (str,), (int,), (int, float)  # exact types: True is no int here
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "weights", "engine", "suite", "task", "id", "prompt_sha256", "answer"), _TEXT),
    **dict.fromkeys(("order", "num", "num_truncated", "prompt_tokens", "new_tokens"), _COUNT),
    **dict.fromkeys(("score", "seconds"), _NUMBER),
    **dict.fromkeys(("length", "limit"), (*_COUNT, NoneType)),
    **dict.fromkeys(("standard_error", "real_length"), (*_NUMBER, NoneType)),
    "settings": (dict,),
    "samples": (list,),
}
_WORDS = {str: "a text", int: "a whole number", float: "a number", NoneType: "null", dict: "an object", list: "a list"}


def write_cell(path: Path, cell: Cell) -> None:
    """Write a cell whole or not at all: a field a line, a sample a line; the same cell gives the same bytes.

    Raises:
        UserError: another process is writing it.
    """
    rows = {"format_version": FORMAT_VERSION, **{one.name: getattr(cell, one.name) for one in fields(Cell)}}
    rows["settings"] = dict(sorted(cell.settings.items()))
    rows["samples"] = []
    lines = [f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in rows.items()]
    samples = [
        json.dumps({one.name: getattr(sample, one.name) for one in fields(Sample)}, ensure_ascii=False)
        for sample in cell.samples
    ]
    text = "{" + ",\n".join(lines).removesuffix("[]") + "[\n" + ",\n".join(samples) + "]}\n"
    with atomic_file(path) as unfinished:
        unfinished.write_bytes(text.encode("utf-8", "replace"))  # a server may answer with half a surrogate pair


def read_cell(path: Path) -> Cell:
    """Read a cell and check every field.

    Raises:
        UserError: it cannot be read or is no cell; with the file and the field.
    """
    with reading(path, OSError, ValueError, RecursionError):
        record = strict_json.loads(path.read_text(encoding="utf-8"))
    values = _checked(record, Cell, str(path), {"format_version": (int,)})
    if values.pop("format_version") != FORMAT_VERSION:
        raise UserError(f'{path}: its "format_version" is not {FORMAT_VERSION}; it was written by another release')
    values["samples"] = tuple(
        Sample(**_checked(one, Sample, f"{path}: sample {number}"))
        for number, one in enumerate(values["samples"], start=1)
    )
    cell = Cell(**values)
    if fault := _fault(cell):
        raise UserError(f"{path}: {fault}")
    return cell


def read_cell_files(output: Path) -> dict[Path, Cell]:
    """All cells of an output folder by their files, in order of model, suite, task, length, engine and limit.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    paths = sorted((output / "cells").glob("*.json"))
    if not paths:
        raise UserError(f"{output}: holds no cells; make them: megatron-longpo evaluate run --output {output} ...")
    cells: dict[Path, Cell] = {}
    for path in paths:
        try:
            cells[path] = read_cell(path)
        except UserError as error:
            raise UserError(f"{error}; remove the file and run evaluate run again") from error
    return dict(sorted(cells.items(), key=lambda item: (*_place(item[1]), item[0])))


def _place(cell: Cell) -> tuple[Any, ...]:
    suites, tasks = list(SUITES), SUITES[cell.suite].tasks
    return (
        cell.order,
        cell.model,
        suites.index(cell.suite),
        tasks.index(cell.task),
        cell.length or 0,
        cell.engine,
        cell.limit or 0,
    )


def _checked(record: Any, kind: type, where: str, more: Mapping[str, tuple[type, ...]] | None = None) -> dict[str, Any]:
    """The fields of an object that is to be a ``kind``: all are there, no others are, and each has its type."""
    if not strict_json.is_object(record):
        raise UserError(f"{where}: is no JSON object")
    types = {one.name: _TYPES[one.name] for one in fields(kind)} | dict(more or {})
    if unlike := sorted(types.keys() ^ record.keys()):
        missing = "is missing" if unlike[0] in types else "is not known"
        raise UserError(f'{where}: the field "{unlike[0]}" {missing}')
    for name, allowed in types.items():
        if type(record[name]) not in allowed:
            raise UserError(f'{where}: "{name}" is not {" or ".join(_WORDS[one] for one in allowed)}')
    return record


def _fault(cell: Cell) -> str | None:
    """What fields of the right types say that cannot be; None if all can."""
    suite = SUITES.get(cell.suite)
    if suite is None:
        return f'"suite" is {cell.suite!r}, not one of {", ".join(SUITES)}'
    tests = {
        f'"engine" is {cell.engine!r}, not one of {", ".join(ENGINES)}': cell.engine in ENGINES,
        f'"task" is {cell.task!r}, not one of {", ".join(suite.tasks)}': cell.task in suite.tasks,
        f'"length" is {cell.length}; RULER has one above 0, the others have none': (
            (cell.length or 0) > 0 if cell.suite == "ruler" else cell.length is None
        ),
        f'"limit" is {cell.limit}, not null or above 0': cell.limit is None or cell.limit > 0,
        f'"num" is {cell.num}, not the number of samples, {len(cell.samples)}': cell.num == len(cell.samples),
        '"samples" is empty': bool(cell.samples),
        '"samples" has an id twice': len({one.id for one in cell.samples}) == len(cell.samples),
        '"samples" has a score that is not 0 to 1': all(0 <= one.score <= 1 for one in cell.samples),
        '"settings" has a value that is not a text, number, true, false or null': all(
            not isinstance(one, dict | list) for one in cell.settings.values()
        ),
        f'"standard_error" is {cell.standard_error}, below 0': (cell.standard_error or 0) >= 0,
    }
    if fault := next((words for words, holds in tests.items() if not holds), None):
        return fault
    mean = 100 * fmean(one.score for one in cell.samples)
    return None if abs(cell.score - mean) < 0.01 else f'"score" is {cell.score}, not the samples\' mean, {mean:.4f}'
