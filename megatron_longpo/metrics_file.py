"""The files of a run's metrics: read, and opened without harm to what is not this run's.

A run that goes on from a checkpoint drops the lines of later steps, which a run that died had written. Only lines that
are known to be its own: those of the file beside its checkpoints, and what stands there too. All else is kept, or the
file is refused.
"""

import json
from pathlib import Path
from typing import Any, TextIO

from megatron_longpo.errors import UserError, one_line
from megatron_longpo.files import atomic_file, reading
from megatron_longpo.metrics import SPLITS, numbers
from megatron_longpo.strict_json import is_object, loads


def open_metrics(beside: Path | None, asked_for: Path | None, resume_step: int, evaluates_only: bool) -> list[TextIO]:
    """Open the files to append a run's metrics to.

    Args:
        beside: the file beside the checkpoints that the run saves, if it saves.
        asked_for: the file of --longpo-metrics, if given.
        resume_step: the step that training goes on from.
        evaluates_only: no step will be taken; nothing is dropped.

    Raises:
        UserError: a file is of something else, or holds the metrics of another run.
    """
    own = set(_lines(beside)) if beside else set[str]()
    found: list[TextIO] = []
    for path, name in metrics_paths(beside, asked_for).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and not evaluates_only:
            _drop_later_steps(path, name, resume_step, None if name == beside else own)
        elif path.is_file():
            _drop_cut_line(path, _lines(name))
        try:
            found.append(path.open("a", encoding="utf-8"))  # a pipe or a terminal is only written to
        except OSError as error:
            raise UserError(f"--longpo-metrics {name}: cannot be opened ({one_line(error)}); choose another") from error
    return found


def metrics_paths(beside: Path | None, asked_for: Path | None) -> dict[Path, Path]:
    """The files of `open_metrics`, each once: where it really lies -> the name it was given."""
    return {path.resolve(): path for path in (beside, asked_for) if path}


def read_metrics(path: Path, split: str | None = None) -> list[dict[str, Any]]:
    """The lines of a metrics file, in order of their step; of a step that was evaluated twice the last.

    A last line without its end is left out: the run is writing it, or was killed.

    Args:
        split: ``train`` or ``valid``; None: both.

    Raises:
        UserError: there is no such file, it is of something else, or a line is broken or holds what is no number.
    """
    with reading(path, OSError, UnicodeDecodeError):
        *texts, _ = path.read_text(encoding="utf-8").split("\n")
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for number, text in enumerate(texts, start=1):
        line = _read_line(f"{path}:{number}", text)
        found[line["step"], line["split"]] = line
    if not found:
        raise UserError(f"{path}: holds no whole line; give the metrics.jsonl of a run that has taken a step")
    return [found[key] for key in sorted(found) if split in (None, key[1])]


def _read_line(where: str, text: str) -> dict[str, Any]:
    try:
        line = loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a line of metrics ({one_line(error)})") from error
    if not _is_line(line):
        raise UserError(f'{where}: not a line of metrics, which is like {{"step": 1, "split": "train", "loss": 2.5}}')
    for name, value in numbers(line).items():
        if type(value) not in (int, float):
            raise UserError(f"{where}: {name} is {json.dumps(value)[:60]}, needs a number or null")
    return line


def check_metrics_file(path: Path) -> None:
    """Hold the file of --longpo-metrics to be absent, of metrics, or no file but something to write to.

    Raises:
        UserError: it is a folder, or a file of something else.
    """
    if path.is_dir():
        raise UserError(f"--longpo-metrics {path} is a folder; give a file")
    _lines(path)


def _lines(path: Path) -> list[str]:
    """The whole lines of a metrics file that is there; what a kill cut short is left out."""
    if not path.is_file():
        return []
    try:
        *lines, _ = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a metrics file (not UTF-8); choose another for --longpo-metrics") from error
    for number, line in enumerate(lines, start=1):
        if _step(line) is None:
            raise UserError(f"{path}:{number}: not a line of metrics; choose another file for --longpo-metrics")
    if not lines and not b'{"step"'.startswith(path.read_bytes()[:7]):
        raise UserError(f"{path}: not a metrics file; choose another for --longpo-metrics")
    return lines


def _step(line: str) -> int | None:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value["step"] if _is_line(value) else None


def _is_line(value: Any) -> bool:
    return is_object(value) and type(value.get("step")) is int and value.get("split") in SPLITS


def _drop_later_steps(path: Path, name: Path, resume_step: int, own: set[str] | None) -> None:
    """Drop the lines of steps beyond ``resume_step``; ``own``: those that may be dropped, None for all."""
    lines = _lines(path)
    later = [line for line in lines if (_step(line) or 0) > resume_step]
    if own is not None and (foreign := [line for line in later if line not in own]):
        raise UserError(
            f"--longpo-metrics {name} holds {len(foreign)} lines beyond step {resume_step} that are not of this run; "
            "choose another file, or move this one away"
        )
    _drop_cut_line(path, [line for line in lines if line not in later])


def _drop_cut_line(path: Path, kept: list[str]) -> None:
    """Leave these lines of the file, and rewrite it only if that is not what it holds."""
    content = "".join(line + "\n" for line in kept)
    if content.encode() != path.read_bytes():
        with atomic_file(path) as partial:
            partial.write_text(content, encoding="utf-8")
