"""Rows of the tables: one for each model and engine, with its cells.

A task that was run with several limits has a score for each, and no row can hold two: then there is a row for each
limit.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.cells import Cell
from megatron_longpo.evaluate.report.estimates import Estimate, Place, ascending
from megatron_longpo.evaluate.suites import Suite


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model as one engine ran it."""

    label: str
    """Its name in the tables: the model's, with what tells it from other rows of the model."""
    model: str
    engine: str
    weights: str
    cells: Mapping[Place, Cell]

    @property
    def limits(self) -> list[int | None]:
        """Of its cells, each once, ascending; None, for all samples, is the last."""
        return sorted({cell.limit for cell in self.cells.values()}, key=lambda limit: (limit is None, limit or 0))

    def estimates(self, suite: Suite) -> dict[Place, Estimate]:
        """Its scores in a suite."""
        return {
            place: Estimate(cell.score, cell.standard_error)
            for place, cell in self.cells.items()
            if cell.suite == suite.name
        }

    def lengths(self, suite: Suite) -> list[int | None]:
        """Where it has a score of the suite, ascending; [None] for suites without lengths."""
        return ascending(cell.length for cell in self.cells.values() if cell.suite == suite.name)


def make_rows(cells: Mapping[Path, Cell], models: Sequence[str] | None = None) -> list[Row]:
    """Sort cells into rows, in the order of the models.

    Args:
        cells: of any order, by their files.
        models: which ones, in which order; None: all, in the order that they were given to ``evaluate run``.

    Raises:
        UserError: a model is not there or named twice, or two cells of a row contradict each other.
    """
    order = _order(cells.values(), models)
    chosen = {path: cell for path, cell in cells.items() if cell.model in order}
    engines = {cell.engine for cell in chosen.values()}
    rows: list[Row] = []
    keys = {(cell.model, cell.engine) for cell in chosen.values()}
    for model, engine in sorted(keys, key=lambda key: (order.index(key[0]), key[1])):
        ours = {path: cell for path, cell in chosen.items() if (cell.model, cell.engine) == (model, engine)}
        by_limit = _by_limit(ours) if _has_several_limits(ours.values()) else {"": ours}
        for limit, some in by_limit.items():
            notes = [*([engine] if len(engines) > 1 else []), *([limit] if limit else [])]
            label = f"{model} ({', '.join(notes)})" if notes else model
            rows.append(_row(label, some))
    return rows


def _has_several_limits(cells: Iterable[Cell]) -> bool:
    """Whether a task was run with several."""
    limits: dict[Place, int | None] = {}
    return any(limits.setdefault((cell.task, cell.length), cell.limit) != cell.limit for cell in cells)


def _by_limit(cells: Mapping[Path, Cell]) -> dict[str, dict[Path, Cell]]:
    found: dict[str, dict[Path, Cell]] = {}
    for path, cell in sorted(cells.items(), key=lambda item: (item[1].limit is not None, item[1].limit or 0)):
        limit = "all samples" if cell.limit is None else f"first {cell.limit}"
        found.setdefault(limit, {})[path] = cell
    return found


def _row(label: str, cells: Mapping[Path, Cell]) -> Row:
    files: dict[Place, Path] = {}
    for path, cell in cells.items():
        _refuse_contradiction(cells, path, files)
        files[cell.task, cell.length] = path
    first = next(iter(cells.values()))
    return Row(
        label=label,
        model=first.model,
        engine=first.engine,
        weights=first.weights,
        cells={place: cells[path] for place, path in files.items()},
    )


def base_of(row: Row, bases: Sequence[Row]) -> Row | None:
    """The one of the first model's rows that a row is compared with: by the same engine and limits where there is one.

    Its own other rows are compared with the first one. None if there is nothing to compare with.
    """
    if not bases or row is bases[0]:
        return None
    if row in bases:
        return bases[0]
    return min(bases, key=lambda one: (one.engine != row.engine, one.limits != row.limits))


def _order(cells: Iterable[Cell], models: Sequence[str] | None) -> list[str]:
    places: dict[str, int] = {}
    for cell in cells:
        places[cell.model] = min(cell.order, places.get(cell.model, cell.order))
    there = sorted(places, key=lambda name: (places[name], name))
    if models is None:
        return there
    if unknown := [name for name in models if name not in places]:
        raise UserError(f"--models: no cells of {unknown[0]!r}; there are: {', '.join(there)}")
    if not models:
        raise UserError(f"--models: names no model; there are: {', '.join(there)}")
    if len(set(models)) < len(models):
        raise UserError(f"--models {','.join(models)}: names a model twice; name each once, the first to compare with")
    return list(models)


def _refuse_contradiction(cells: Mapping[Path, Cell], path: Path, files: Mapping[Place, Path]) -> None:
    """One row is of one model with the same weights, and has one cell at each place."""
    cell = cells[path]
    for other_path in files.values():
        other = cells[other_path]
        if cell.weights != other.weights:
            raise UserError(
                f"{other_path} and {path}: both are of {cell.model!r}, with other weights ({other.weights[:12]}, "
                f"{cell.weights[:12]}); remove the cells of the older model, or evaluate it under another name"
            )
    if (twin := files.get((cell.task, cell.length))) is not None:
        old, new = cells[twin].settings, cell.settings
        names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        differ = ", ".join(f"{name} {old.get(name)!r} and {new.get(name)!r}" for name in names) or "nothing"
        at_length = "" if cell.length is None else f" at {cell.length}"
        raise UserError(
            f"{twin} and {path}: both are {cell.task}{at_length} of {cell.model!r}; what differs: {differ}; remove one"
        )
