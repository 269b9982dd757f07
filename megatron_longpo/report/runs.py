"""Runs as they lie on disk: their metrics, and how they were made."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longpo.errors import UserError
from megatron_longpo.hf.training_record import METRICS_FILE, Stretch, training_record_at
from megatron_longpo.metrics import numbers
from megatron_longpo.metrics_file import read_metrics
from megatron_longpo.strict_json import is_array, is_object

Points = list[tuple[int, float]]
"""Step and value, by step."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training run."""

    label: str
    path: Path
    """Of its metrics file."""
    stretches: Sequence[Stretch]
    """Of the stage that the metrics are of; empty where nobody recorded them."""
    series: Mapping[tuple[str, str], Points]
    """(path of the metric, split) -> its points."""

    def resumes(self) -> list[int]:
        """The steps that the program went on from, other than the first."""
        starts = [start for _, start in self.series.get(("resumed_from", "train"), [])]
        return [int(start) for start, before in zip(starts[1:], starts, strict=False) if start != before]

    def recipe(self) -> dict[str, str]:
        """Option -> its value; of one that a resume changed all values, with the step that each came after."""
        found: dict[str, list[str]] = {}
        for stretch in self.stretches:
            for name, value in _flat("", stretch.settings):
                values = found.setdefault(name, [])
                if not values or values[-1].split(" (after", 1)[0] != value:
                    values.append(value if not stretch.after_step else f"{value} (after step {stretch.after_step})")
        return {name: " \u2192 ".join(values) for name, values in found.items()}


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read runs, each a folder that training saved into, or a file of metrics.

    Raises:
        UserError: there is nothing to read, it is broken, or it is given twice.
    """
    files = [path / METRICS_FILE if path.is_dir() else path for path in paths]
    for path, file in zip(paths, files, strict=True):
        if not file.is_file():
            reason = f"has no {METRICS_FILE}" if path.is_dir() else "there is no such file or folder"
            raise UserError(f"{path}: {reason}; give the --save of a run, or the file of its --longpo-metrics")
    if len({file.resolve() for file in files}) < len(files):
        raise UserError("the same run is given twice; give each once")
    return [_read_run(file, label) for file, label in zip(files, _labels(files), strict=True)]


def _read_run(file: Path, label: str) -> Run:
    lines = read_metrics(file)
    stages = training_record_at(file.parent, lines[-1]["step"]) if file.name == METRICS_FILE else []
    return Run(label, file, stages[-1].stretches if stages else (), _series(lines))


def _series(lines: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Points]:
    found: dict[tuple[str, str], Points] = {}
    for line in lines:
        for path, value in numbers(line).items():
            found.setdefault((path, line["split"]), []).append((line["step"], value))
    return found


def _labels(files: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart; the file's own name only where it tells something."""
    parts = [
        (path.parent if path.name == METRICS_FILE else path.with_suffix("")).parts
        for path in (file.resolve() for file in files)
    ]
    longest = max(map(len, parts))
    for length in range(1, longest + 1):
        labels = ["/".join(one[-length:]) for one in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [str(file) for file in files]


def _flat(above: str, value: Any) -> Iterator[tuple[str, str]]:
    if is_object(value):
        for name, below in value.items():
            yield from _flat(f"{above}.{name}" if above else name, below)
    elif is_array(value):
        yield above, ", ".join(map(str, value))
    else:
        yield above, f"{value:g}" if isinstance(value, float) else str(value)
