"""What a run will need of a rank's memory, from its own options (plan/memory.py)."""

import argparse
from typing import Any

from megatron_longpo import platform
from megatron_longpo.arguments.settings import LongPOSettings
from megatron_longpo.model.parallel_sizes import ParallelSizes
from megatron_longpo.plan.memory import StepMemory, worst_stage
from megatron_longpo.plan.step_shape import Recompute, StepShape
from megatron_longpo.reference.options import OnlineSettings


def planned_memory(args: argparse.Namespace, settings: LongPOSettings) -> StepMemory:
    """Derive it for the micro-batch with the most tokens, on the pipeline stage that needs most.

    Args:
        args: Megatron's, after validation.
    """
    num_microbatches = args.global_batch_size // args.data_parallel_size // args.micro_batch_size
    num_steps = max(1, args.train_iters)
    pairs = settings.plan.largest_microbatch(num_microbatches, num_steps)
    return worst_stage(
        StepShape(
            options=vars(args),
            trees=settings.trees.of_pairs(pairs),
            sizes=ParallelSizes.of(args),
            sequence_parallel=args.sequence_parallel,
            data=args.data_parallel_size,
            num_microbatches=num_microbatches,
            recompute=recompute_of(args),
            optimizer="rmsprop" if args.longpo_optimizer == "rmsprop" else "adam",
            shares_optimizer=args.use_distributed_optimizer,
            offloads_optimizer=args.optimizer_cpu_offload,
            half_gradients=args.grad_reduce_in_bf16,
            online_reference=isinstance(settings.reference, OnlineSettings),
            element_size=2 if args.bf16 or args.fp16 else 4,
            is_fused=not platform.is_cpu(),
        )
    )


def recompute_of(args: Any) -> Recompute:
    """The planner's word for Megatron's options and ours."""
    if args.longpo_recompute:
        return "keep-attention"
    found: Recompute = args.recompute_granularity or "none"
    return found
