"""A run: every cell of a plan that is not there yet and that no other process makes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from megatron_longpo.evaluate.cells import Cell, read_cell, write_cell
from megatron_longpo.evaluate.long.answering import answer_cell, answered_tokens, unfinished_cell
from megatron_longpo.evaluate.mirror import Mirror
from megatron_longpo.evaluate.run.lm_eval_files import write_lm_eval_files
from megatron_longpo.evaluate.run.planning import prompts_of
from megatron_longpo.evaluate.run.wanted import Wanted
from megatron_longpo.evaluate.short.run import ShortResult, run_short
from megatron_longpo.generate.engine import Engine
from megatron_longpo.locks import InUse

if TYPE_CHECKING:
    from megatron_longpo.evaluate.short.tasks import ShortModel
    from megatron_longpo.journal import Journal


class Observer(Protocol):
    """Is told how a run goes on."""

    def opening(self, wanted: Wanted) -> None:
        """The engine is being opened for this cell and those after it."""
        ...

    def begun(self, wanted: Wanted, num_done: int, num_tokens: int) -> None:
        """This process makes the cell; earlier ones answered so many of its prompts, with so many tokens."""
        ...

    def answered(self, num_prompt_tokens: int, num_new_tokens: int) -> None:
        """A prompt of the cell was answered, now."""
        ...

    def progressed(self, num_done: int, num_requests: int) -> None:
        """A short task has answers to so many of its requests."""
        ...

    def finished(self, wanted: Wanted, cell: Cell | None) -> None:
        """The cell is there, or another process makes it (None)."""
        ...


def missing_cells(cells: Sequence[Wanted], output: Path) -> list[Wanted]:
    """Those that are not there. A cell that was made for another name or place in ``--models`` gets the new one.

    Raises:
        UserError: a cell cannot be read.
    """
    missing: list[Wanted] = []
    for wanted in cells:
        path = wanted.path(output)
        if not path.is_file():
            missing.append(wanted)
            continue
        cell = read_cell(path)
        named = replace(cell, model=wanted.model.name, order=wanted.model.order)
        if named != cell:
            write_cell(path, named)
    return missing


async def make_long_cells(
    cells: Sequence[Wanted],
    open_engine: Callable[[], Awaitable[Engine]],
    mirror: Mirror,
    output: Path,
    observer: Observer,
) -> list[Wanted]:
    """Make one model's cells of long-context tasks; returns those that other processes make.

    Args:
        open_engine: called before the first cell that is free.

    Raises:
        UserError: the engine cannot be opened or cannot answer; a set or a journal is damaged.
    """
    engine: Engine | None = None
    left: list[Wanted] = []
    try:
        with closing(_free_cells(cells, output, left, observer)) as free:
            for wanted, journal in free:
                if engine is None:
                    observer.opening(wanted)
                    engine = await open_engine()
                observer.begun(wanted, *answered_tokens(journal))
                prompts = await asyncio.to_thread(prompts_of, wanted, mirror)
                cell = await answer_cell(wanted, prompts, engine, wanted.model.tokenizer, journal, observer)
                _keep(wanted, cell, output)
                observer.finished(wanted, cell)
    finally:
        if engine is not None:
            await engine.aclose()
    return left


def make_short_cells(
    cells: Sequence[Wanted], open_model: Callable[[], "ShortModel"], mirror: Mirror, output: Path, observer: Observer
) -> list[Wanted]:
    """Make one model's cells of short tasks; returns those that other processes make.

    Raises:
        UserError: as `make_long_cells`.
    """
    model: ShortModel | None = None
    left: list[Wanted] = []
    with closing(_free_cells(cells, output, left, observer)) as free:
        for wanted, _ in free:
            if model is None:
                observer.opening(wanted)
                model = open_model()
            observer.begun(wanted, 0, 0)
            observer.finished(wanted, _make_short(wanted, model, mirror, output, observer))
    return left


def _make_short(wanted: Wanted, model: "ShortModel", mirror: Mirror, output: Path, observer: Observer) -> Cell:
    kept = wanted.unfinished(output).with_suffix(".requests")
    started_s = time.monotonic()
    result = run_short(
        model, wanted.task, mirror=mirror, limit=wanted.limit, kept_answers=kept, on_progress=observer.progressed
    )
    cell = _short_cell(wanted, result, time.monotonic() - started_s)
    _keep(wanted, cell, output, result)
    kept.unlink(missing_ok=True)
    return cell


def _free_cells(
    cells: Sequence[Wanted], output: Path, left: list[Wanted], observer: Observer
) -> Generator[tuple[Wanted, "Journal"]]:
    """Yield each cell that is for this process to make, with its journal, which is held until the next is asked for.

    Args:
        left: gets the cells that other processes make.
    """
    for wanted in cells:
        try:
            with unfinished_cell(wanted, output) as journal:
                if not wanted.path(output).is_file():  # or another process made it since the plan
                    yield wanted, journal
        except InUse:
            left.append(wanted)
            observer.finished(wanted, None)


def _keep(wanted: Wanted, cell: Cell, output: Path, result: ShortResult | None = None) -> None:
    if result is None:
        write_lm_eval_files(output, wanted.key, cell)
    else:
        write_lm_eval_files(output, wanted.key, cell, result.lm_eval_results, result.lm_eval_samples)
    write_cell(wanted.path(output), cell)  # last: a cell that is there is not looked at again


def _short_cell(wanted: Wanted, result: ShortResult, seconds: float) -> Cell:
    return Cell(
        **wanted.about(),
        score=result.score,
        standard_error=result.standard_error,
        num=len(result.samples),
        num_truncated=result.num_truncated,
        real_length=None,
        seconds=seconds,
        prompt_tokens=result.prompt_tokens,
        new_tokens=0,
        samples=result.samples,
    )
