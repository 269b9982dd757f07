"""The section "Evaluation" of a model card: the exported model's rows of a report, and those of the first model.

Also the tables of all rows, for other pages.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from megatron_longpo import strict_json
from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.report.estimates import Estimate
from megatron_longpo.evaluate.report.notes import Note
from megatron_longpo.evaluate.report.summary import FORMAT_VERSION, REPORT
from megatron_longpo.evaluate.report.tables import Line, Table, Value, difference_label
from megatron_longpo.evaluate.report.text_tables import difference_text, escape_markdown, score_text
from megatron_longpo.files import reading
from megatron_longpo.templates import render


def card_section(folder: Path, model: str | None = None) -> str:
    """The section as Markdown, without its heading.

    Args:
        folder: what ``evaluate report`` wrote into.
        model: the model's name in the report; None: the report's last.

    Raises:
        UserError: there is no report, it is broken, or has no such model.
    """
    return _of_report(folder, partial(_section, model=model))


def suite_tables(folder: Path) -> list[dict[str, Any]]:
    """``title``, ``scores``, ``differences`` and ``notes`` of each suite, of all rows of the report.

    Raises:
        UserError: there is no report, or it is broken.
    """
    return _of_report(folder, _all_suites)


def _of_report[T](folder: Path, make: Callable[[Any], T]) -> T:
    path = folder / REPORT
    if not path.is_file():
        raise UserError(f"{folder}: has no {REPORT}; write it with: megatron-longpo evaluate report {folder}")
    try:
        with reading(path, OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
            report = strict_json.loads(path.read_text(encoding="utf-8"))
            if report["format_version"] != FORMAT_VERSION:
                raise UserError(f"{REPORT} is of another release; write it again with evaluate report")
            return make(report)
    except UserError as error:
        raise UserError(f"--evaluation {folder}: {error}") from error


def _all_suites(report: Any) -> list[dict[str, Any]]:
    labels = [row["label"] for row in report["rows"]]
    return [_suite(suite, labels) for suite in report["suites"].values()]


def _section(report: Any, model: str | None) -> str:
    models = list(dict.fromkeys(row["model"] for row in report["rows"]))
    name = models[-1] if model is None else model
    if name not in models:
        raise UserError(f"has no model {name!r} (--evaluation-model); there are: {', '.join(models)}")
    labels = [row["label"] for row in report["rows"] if row["model"] in (models[0], name)]
    suites = [_suite(suite, labels) for suite in report["suites"].values()]
    values = {
        "name": escape_markdown(name),
        "base": escape_markdown(models[0]) if name != models[0] else "",
        "suites": [suite for suite in suites if suite["scores"].rows],
        "commands": [command for suite in report["suites"].values() for command in suite["commands"]],
        "escape": escape_markdown,
    }
    return render("megatron_longpo.evaluate.report", "card_section.md.jinja", values)


def _suite(suite: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    columns = tuple(suite["columns"])
    compared = [difference_label(one, other) for one in labels for other in labels]
    return {
        "title": suite["title"],
        "scores": score_text(_table(suite["scores"], columns, labels, _score), "Model"),
        "differences": difference_text(_table(suite["differences"], columns, compared, _difference), "Difference"),
        "notes": [*_notes(suite["notes"], labels), *_notes(suite["difference_notes"], compared)],
    }


def _notes(notes: Sequence[Any], labels: Sequence[str]) -> Iterator[str]:
    """What the notes say of all rows or of these."""
    for note in notes:
        ours = tuple(label for label in note["labels"] if label in labels)
        if ours or not note["labels"]:
            yield str(Note(note["text"], ours))


def _table(
    lines: Sequence[Any], columns: tuple[str, ...], labels: Sequence[str], value: Callable[[Any], Value]
) -> Table:
    """The lines with these labels; published ones, which may bear the same name, are left out."""
    ours = [line for line in lines if line["label"] in labels and not line["published"]]
    numbers = [[line["values"][name] for name in columns] for line in ours]
    return Table(
        columns,
        tuple(
            Line(line["label"], None, tuple(None if one is None else value(one) for one in some))
            for line, some in zip(ours, numbers, strict=True)
        ),
    )


def _score(one: Mapping[str, Any]) -> Value:
    return Value(Estimate(one["score"], one["standard_error"]), one["complete"])


def _difference(one: Mapping[str, Any]) -> Value:
    return Value(Estimate(one["difference"], one["standard_error"]), one["complete"], one["pairs"])
