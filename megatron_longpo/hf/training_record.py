"""How a checkpoint came about: ``DIR/training_record.json`` and ``DIR/metrics.jsonl``; the model card comes from them.

Both lie beside the checkpoints and move with them; neither names a machine or a path. A run may go on with other
options than it began with, so a recipe is a list of stretches; and a run may start from a trained checkpoint, counting
its steps anew, so there are stages.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_longpo.errors import UserError
from megatron_longpo.hf.sidecar import write_json
from megatron_longpo.strict_json import is_array, is_object, read_json_object

FORMAT_VERSION = 1
TRAINING_RECORD_FILE = "training_record.json"
METRICS_FILE = "metrics.jsonl"

SPLITS = {"train": "training", "valid": "held out"}
"""What the splits of the metrics file are called in a card."""

Settings = dict[str, dict[str, Any]]
"""Section -> name -> value, all JSON; ``megatron_longpo/arguments/run_settings.py`` says which.

``method`` says in words what the training was: ``description``, and ``tags`` for the Hub.
"""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps that were taken with the same settings."""

    after_step: int
    """The step before the stretch's first; 0 where a stage begins."""
    settings: Settings


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps that were counted together."""

    num_steps: int
    stretches: tuple[Stretch, ...]


def training_record_at(checkpoint: Path, step: int) -> list[Stage]:
    """The stages that led to one step of a checkpoint folder, the last of them ending there; empty if none is recorded.

    Raises:
        UserError: ``training_record.json`` is broken or of another format version.
    """
    path = checkpoint / TRAINING_RECORD_FILE
    if step == 0 or not path.is_file():
        return []
    stored = read_json_object(path)
    if stored.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path}: format_version is {stored.get('format_version')!r}, needs {FORMAT_VERSION}")
    try:
        *before, last = stored["stages"]
        stages = [_stage(stage, stage["num_steps"]) for stage in before]
        running = _stage(last, step)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: not a recipe ({reason}); restore it, or delete it to go on without") from error
    kept = tuple(stretch for stretch in running.stretches if stretch.after_step < step)
    return [*stages, Stage(step, kept)] if kept else stages


def _stage(stored: dict[str, Any], num_steps: int) -> Stage:
    stretches = tuple(Stretch(**stretch) for stretch in stored["stretches"])
    if not stretches:
        raise ValueError("a stage without stretches")
    for number in (num_steps, *(stretch.after_step for stretch in stretches)):
        if type(number) is not int or number < 0:
            raise ValueError(f"{number!r} is no number of steps")
    for stretch in stretches:
        _check_settings(stretch.settings)
    return Stage(num_steps, stretches)


def _check_settings(settings: Any) -> None:
    """Check that these are sections of named values, and those that the card's sentences are made of."""
    if not is_object(settings) or not all(is_object(section) for section in settings.values()):
        raise ValueError("settings that are no sections of named values")
    method = settings["method"]
    if not isinstance(method["description"], str):
        raise ValueError(f"method.description is {method['description']!r}")
    if not is_array(tags := method["tags"]) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError(f"method.tags is {tags!r}")
    if not isinstance(version := settings["versions"]["megatron-longpo"], str):
        raise ValueError(f"versions.megatron-longpo is {version!r}")


def write_training_record(save: Path, loaded: Path, loaded_step: int, first_step: int, settings: Settings) -> None:
    """Write ``SAVE/training_record.json`` as training starts: what led to the checkpoint, and what is used from now on.

    Stretches of a run that died and left no checkpoint are dropped, as its steps are.

    Args:
        loaded: folder of the checkpoint that training starts from; may be ``save``.
        loaded_step: which of its steps; 0 for an imported checkpoint.
        first_step: the step that training goes on from by its own count: ``loaded_step``, or 0 to count anew.
        settings: without ``schedule`` where that of the loaded checkpoint goes on.

    Raises:
        UserError: the loaded folder's recipe is broken.
    """
    settings = json.loads(json.dumps(settings))  # as it will be read: tuples are lists there
    stages = training_record_at(loaded, loaded_step)
    if first_step == 0 or not stages:
        stages.append(Stage(0, ()))
    stretches = stages[-1].stretches
    if "schedule" not in settings and stretches and "schedule" in stretches[-1].settings:
        settings["schedule"] = stretches[-1].settings["schedule"]
    if not stretches or stretches[-1].settings != settings:
        stretches = (*stretches, Stretch(first_step, settings))
    stages[-1] = Stage(first_step, stretches)
    written = [asdict(stage) for stage in stages]
    del written[-1]["num_steps"]  # which grows as the run does
    write_json(save / TRAINING_RECORD_FILE, {"format_version": FORMAT_VERSION, "stages": written})


def metrics_at(checkpoint: Path, step: int) -> dict[str, dict[str, Any]]:
    """What was reported up to one step, by where it was: the last training step, and the first and last evaluation."""
    path = checkpoint / METRICS_FILE
    if step == 0 or not path.is_file():
        return {}
    lines = [line for line in map(_parsed, path.read_text(encoding="utf-8", errors="replace").splitlines()) if line]
    train, valid = ([line for line in lines if line["split"] == split and line["step"] <= step] for split in SPLITS)
    chosen = [*train[-1:], *valid[:1], *valid[1:][-1:]]
    return {f"{SPLITS[line['split']]}, step {line['step']}": line for line in chosen}


def _parsed(text: str) -> dict[str, Any] | None:
    """One line of the metrics file; None for one that a kill cut short or that something else wrote."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if is_object(line) and "split" in line and type(line.get("step")) is int else None
