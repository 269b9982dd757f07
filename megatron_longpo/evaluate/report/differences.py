"""Paired differences: what a model scored above another on the same prompts, sample by sample.

Two models that answer the same questions go right and wrong on much the same ones, so the mean of the differences is
known far better than the difference of the means.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_longpo.evaluate.answers import score_of
from megatron_longpo.evaluate.cells import Cell
from megatron_longpo.evaluate.report.estimates import Estimate, Place
from megatron_longpo.evaluate.report.rows import Row
from megatron_longpo.evaluate.suites import Suite


@dataclass(frozen=True, slots=True)
class Paired:
    """What pairs of answers to the same questions say."""

    difference: Estimate | None
    """The second model's score minus the first one's; None without a pair."""
    num_pairs: int
    num_other_prompts: int
    """Questions that both answered, with another prompt each: not compared."""


def paired(base: Cell, cell: Cell) -> Paired:
    """Compare two cells of one task and length."""
    others = {sample.id: sample for sample in base.samples}
    both = [(others[sample.id], sample) for sample in cell.samples if sample.id in others]
    pairs = [(one, other) for one, other in both if one.prompt_sha256 == other.prompt_sha256]
    if not pairs:
        return Paired(None, 0, len(both))
    mean = score_of([other.score - one.score for one, other in pairs])
    return Paired(Estimate(mean.score, mean.standard_error), len(pairs), len(both) - len(pairs))


def paired_rows(base: Row, row: Row, suite: Suite) -> dict[Place, Paired]:
    """Compare two rows wherever both have a cell of the suite."""
    return {
        place: paired(base.cells[place], cell)
        for place, cell in row.cells.items()
        if cell.suite == suite.name and place in base.cells
    }


def known(differences: Mapping[Place, Paired]) -> dict[Place, Estimate]:
    """The differences where there is one."""
    return {place: one.difference for place, one in differences.items() if one.difference is not None}
