"""The micro-batches of this data-parallel rank: planned before anything is built, then read ahead of the step."""

import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from megatron.training.dist_signal_handler import DistributedSignalHandler
from torch.utils.data import DataLoader, Dataset

from megatron_longpo.data.dataset import PairOrder
from megatron_longpo.data.packing import BatchPlan
from megatron_longpo.data.trees import TreeLengths
from megatron_longpo.micro_batch import MicroBatch
from megatron_longpo.model.flops import tree_flops


def plan_batches(
    pair_of_sample: PairOrder,
    trees: TreeLengths,
    model: Mapping[str, Any],
    *,
    global_batch_size: int,
    num_steps: int,
    max_tokens: int | None,
    num_ranks: int,
    multiple: int,
) -> tuple[BatchPlan, int, str]:
    """Deal the pairs of every step out.

    Args:
        model: its shape, by Megatron's names (hf.config.megatron_options).
        global_batch_size: pairs a step.
        num_steps: that the plan must hold for.
        max_tokens: of a micro-batch; None: a pair each.
        num_ranks: data-parallel ones.
        multiple: of micro-batches.

    Returns:
        (the plan, the micro-batch size that Megatron derives their number from, what a step is in words).
    """
    plan = BatchPlan(
        pair_of_sample=pair_of_sample,
        tokens=trees.tokens,
        work=trees.sum_by_pair(tree_flops(model, trees.lengths_T3)),
        global_batch_size=global_batch_size,
        num_ranks=num_ranks,
        max_tokens=max_tokens,
        multiple=multiple,
    )
    num_microbatches = plan.num_microbatches(num_steps)
    text = (
        f"{num_microbatches} micro-batches on each of {num_ranks} data-parallel ranks; the busiest rank has "
        f"{plan.imbalance(num_microbatches, num_steps):.3f} of their mean work"
    )
    return plan, global_batch_size // num_ranks // num_microbatches, text


def loader(
    dataset: Dataset[Any],
    microbatches: Iterable[list[int]],
    collate: Callable[[list[Any]], MicroBatch],
    num_workers: int,
    exit_signal: signal.Signals | None,
) -> Iterator[MicroBatch]:
    """Make micro-batches ahead, in ``num_workers`` processes.

    These survive ``exit_signal``, which is meant for the training loop, as Megatron's own do (data_samplers.py).
    """
    return iter(
        DataLoader(
            dataset,
            batch_sampler=microbatches,  # type: ignore[arg-type]  # any iterable of lists of indices
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=True,
            persistent_workers=num_workers > 0,
            worker_init_fn=partial(_leave_signal, exit_signal) if exit_signal else None,
        )
    )


def _leave_signal(exit_signal: signal.Signals, worker: int) -> None:
    DistributedSignalHandler(exit_signal).__enter__()
