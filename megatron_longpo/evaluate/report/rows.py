"""Rows of the tables: one for each model, engine and limit, with its cells."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.cells import Cell
from megatron_longpo.evaluate.report.estimates import Estimate, Place, ascending
from megatron_longpo.evaluate.suites import Suite


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One model as one engine ran it, over the first so many samples."""

    label: str
    """Its name in the tables: the model's, with engine and limit where these differ among the rows."""
    model: str
    engine: str
    limit: int | None
    weights: str
    cells: Mapping[Place, Cell]

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
    found: dict[tuple[str, str, int | None], dict[Place, Path]] = {}
    for path, cell in cells.items():
        if cell.model not in order:
            continue
        files = found.setdefault((cell.model, cell.engine, cell.limit), {})
        _refuse_contradiction(cells, path, files)
        files[cell.task, cell.length] = path
    keys = sorted(found, key=lambda key: (order.index(key[0]), key[1], key[2] is not None, key[2] or 0))
    return [
        Row(
            label=_label(key, keys),
            model=key[0],
            engine=key[1],
            limit=key[2],
            weights=cells[next(iter(found[key].values()))].weights,
            cells={place: cells[path] for place, path in found[key].items()},
        )
        for key in keys
    ]


def base_of(row: Row, bases: Sequence[Row]) -> Row | None:
    """The one of the first model's rows that a row is compared with: by the same engine and limit where there is one.

    Its own other rows are compared with the first one. None if there is nothing to compare with.
    """
    if not bases or row is bases[0]:
        return None
    if row in bases:
        return bases[0]
    return min(bases, key=lambda one: (one.engine != row.engine, one.limit != row.limit))


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


def _label(key: tuple[str, str, int | None], keys: Sequence[tuple[str, str, int | None]]) -> str:
    model, engine, limit = key
    notes = [engine] if len({one[1] for one in keys}) > 1 else []
    if len({one[2] for one in keys}) > 1:
        notes.append("all samples" if limit is None else f"first {limit}")
    return f"{model} ({', '.join(notes)})" if notes else model
