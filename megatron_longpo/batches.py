"""The micro-batches of this data-parallel rank: planned before anything is built, then read ahead of the step."""

import argparse
import os
import signal
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
from megatron.training.dist_signal_handler import DistributedSignalHandler
from torch.utils.data import DataLoader, Dataset

from megatron_longpo.data.dataset import PairOrder
from megatron_longpo.data.packing import BatchPlan
from megatron_longpo.data.trees import TreeLengths
from megatron_longpo.model.flops import tree_flops


def plan_batches(args: argparse.Namespace, order: PairOrder, trees: TreeLengths) -> tuple[BatchPlan, str]:
    """Deal the pairs of every step out, and set the micro-batch size that Megatron derives their number from.

    Returns:
        (the plan, what a step is in words).
    """
    num_ranks = num_data_parallel_ranks(args)
    plan = BatchPlan(
        pair_of_sample=order,
        tokens=trees.tokens,
        work=trees.sum_by_pair(tree_flops(vars(args), trees.lengths_T3)),
        global_batch_size=args.global_batch_size,
        num_ranks=num_ranks,
        max_tokens=args.longpo_tokens_per_microbatch,
        multiple=microbatch_multiple(args),
    )
    num_steps = args.train_iters or args.train_samples // args.global_batch_size
    num_microbatches = plan.num_microbatches(num_steps)
    args.micro_batch_size = args.global_batch_size // num_ranks // num_microbatches
    text = (
        f"{num_microbatches} micro-batches on each of {num_ranks} data-parallel ranks; the busiest rank has "
        f"{plan.imbalance(num_microbatches, num_steps):.3f} of their mean work"
    )
    return plan, text


def num_data_parallel_ranks(args: argparse.Namespace) -> int:
    """Of the ranks that were started, before Megatron's groups exist."""
    one_pair = args.tensor_model_parallel_size * args.pipeline_model_parallel_size * args.context_parallel_size
    return max(1, int(os.environ.get("WORLD_SIZE", "1")) // one_pair)


def microbatch_multiple(args: argparse.Namespace) -> int:
    """An interleaved pipeline runs micro-batches in rounds of one a stage (schedules.py,
    ``forward_backward_pipelining_with_interleaving``)."""
    virtual = args.num_layers_per_virtual_pipeline_stage or args.num_virtual_stages_per_pipeline_rank
    return args.pipeline_model_parallel_size if virtual else 1


def loader(args: argparse.Namespace, dataset: Dataset[Any], microbatches: Iterable[list[int]]) -> Iterator[Any]:
    """Reads the samples of each micro-batch, ahead, in ``--num-workers`` processes.

    With ``--exit-signal-handler`` these survive the signal, as Megatron's own do (data_samplers.py).
    """
    return iter(
        DataLoader(
            dataset,
            batch_sampler=microbatches,  # type: ignore[arg-type]  # any iterable of lists of indices
            num_workers=args.num_workers,
            collate_fn=as_tensors,
            pin_memory=True,
            persistent_workers=args.num_workers > 0,
            worker_init_fn=partial(_leave_signal, args.exit_signal) if args.exit_signal_handler else None,
        )
    )


def _leave_signal(exit_signal: signal.Signals, worker: int) -> None:
    DistributedSignalHandler(exit_signal).__enter__()


def as_tensors(value: Any) -> Any:
    """The samples of a micro-batch as step.py takes them: lists and dicts as they are, arrays as tensors."""
    if isinstance(value, list):
        return [as_tensors(one) for one in value]
    if isinstance(value, dict):
        return {name: as_tensors(one) for name, one in value.items()}
    return torch.from_numpy(value)
