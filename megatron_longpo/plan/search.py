"""Layouts of so many GPUs, the ones that fit first, and of those the fastest."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_longpo.errors import UserError
from megatron_longpo.hf.config import check_divides
from megatron_longpo.plan.plan import Layout, Plan

Planner = Callable[[Layout], Plan]
RECOMPUTE = ("none", "keep-attention", "full")
"""``selective`` is left out: with tree attention it keeps more than ``none`` (docs/memory.md)."""
MOST_GPUS = 1024


def layouts(
    options: Mapping[str, Any], num_gpus: int, gpus_per_node: int, batch: int, like: Layout
) -> Iterator[Layout]:
    """Every division of ``num_gpus`` that the model allows, with each recomputation; what else differs is ``like``'s.

    Tensor parallelism stays within a machine. A data-parallel rank has the same number of pairs as any other.
    """
    for tensor in _divisors(min(gpus_per_node, num_gpus)):
        for pipeline in _divisors(num_gpus // tensor if num_gpus % tensor == 0 else 0):
            try:
                check_divides(options, tensor, pipeline, Path("model"))
            except UserError:
                continue
            ranks = num_gpus // (tensor * pipeline)
            for context in _divisors(ranks):
                if batch % (ranks // context):
                    continue
                sizes = {"tensor": tensor, "pipeline": pipeline, "context": context, "data": ranks // context}
                for recompute in RECOMPUTE:
                    yield replace(like, **sizes, recompute=recompute)


def search(found: Iterator[Layout], planner: Planner) -> list[Plan]:
    """Plan all; those that fit with room to spare first, each kind by the time of a step.

    Raises:
        UserError: the pairs of a batch fit none.
    """
    order, every = {"OK": 0, "TIGHT": 1, "OUT OF MEMORY": 2}, list(found)
    plans = sorted(_planned(every, planner), key=lambda plan: (order[plan.verdict], plan.step_seconds))
    return plans or [planner(every[0])]  # which says what is wrong


def nearest(plan: Plan, options: Mapping[str, Any], gpus_per_node: int, batch: int, planner: Planner) -> list[Plan]:
    """The plans that fit and differ least from one that does not, three at most.

    Of as many GPUs; where there are none, with the optimizer offloaded and then with gradients in bf16 as well; where
    there are none either, of the smallest number of GPUs, doubled and doubled again, that has some.
    """
    num_gpus = plan.layout.num_gpus
    while num_gpus <= MOST_GPUS:
        for like in _savings(plan.layout):
            every = layouts(options, num_gpus, gpus_per_node, batch, like)
            if fit := [one for one in _planned(every, planner) if one.verdict == "OK"]:
                return sorted(fit, key=lambda one: (one.layout.changes(plan.layout), one.step_seconds))[:3]
        num_gpus *= 2
    return []


def _savings(layout: Layout) -> Sequence[Layout]:
    offloaded = replace(layout, offloads_optimizer=True)
    return (layout, offloaded, replace(offloaded, half_gradients=True))


def _planned(found: Iterable[Layout], planner: Planner) -> Iterator[Plan]:
    for layout in found:
        try:
            yield planner(layout)
        except UserError:  # the pairs of a batch do not fit so many ranks
            continue


def _divisors(number: int) -> list[int]:
    return [one for one in range(1, number + 1) if number % one == 0]
