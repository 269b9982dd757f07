"""What one shared pass saves: the time of two full passes over the time of one, for one pair, forward and backward.

    python -m benchmarks.sharing [--trunk 4096 8192] [--branch 256] [--ranks 1 2] [--repeats 5]

Both sides are the same Megatron model (a random 30M-parameter Mistral), the same log-prob head and the same objective.
The two-pass side runs [trunk, chosen] and [trunk, rejected] as two ordinary causal sequences, as DPO trainers do: with
torch's scaled_dot_product_attention on one rank, with zigzag ring attention on several context-parallel ones. Before
anything is timed, loss and gradients of both must agree. The time of a step is that of the slowest rank.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor
from torch.distributed import ProcessGroup

from benchmarks.causal import (
    compare,
    seconds_in_turn,
    sequence_logps,
    set_causal_attention,
    set_tree_attention,
)
from benchmarks.common import on_ranks, write_result
from benchmarks.small_mistral import loss_of, random_ids, random_mistral, random_pair, shared_pass


def main() -> None:
    """Measure and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", type=int, nargs="+", default=[4096, 8192], help="tokens")
    parser.add_argument("--branch", type=int, default=256, help="tokens")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="context-parallel ranks")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rows = []
    for trunk in args.trunk:
        for num_ranks in args.ranks:
            rows.append(on_ranks(measure, num_ranks, trunk, args.branch, args.repeats)[0])
            print(
                "trunk {trunk}, branches {branch}, cp {num_ranks}: two passes / shared: median {median_ratio:.3f}, "
                "{least:.3f} to {most:.3f}; largest difference {largest_relative_difference:.1e}".format(
                    **rows[-1], least=min(rows[-1]["ratios"]), most=max(rows[-1]["ratios"])
                ),
                flush=True,
            )
    write_result("sharing", rows)


def measure(trunk: int, branch: int, repeats: int) -> dict[str, Any]:
    """On every rank: check that both sides agree, then time them in turn; seconds."""
    group = parallel_state.get_context_parallel_group()
    model = random_mistral(group.size())
    sides: dict[str, Callable[[], Tensor]] = {
        "two_passes": lambda: two_passes(model, trunk, branch, group),
        "shared": lambda: shared(model, trunk, branch),
    }
    difference = compare(model, sides)
    times = seconds_in_turn(sides, repeats)
    ratios = [two / one for two, one in zip(times["two_passes"], times["shared"], strict=True)]
    return {
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_ranks": group.size(),
        "trunk": trunk,
        "branch": branch,
        "seconds": times,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "largest_relative_difference": difference,
    }


def shared(model: GPTModel, trunk: int, branch: int) -> Tensor:
    """The product's loss."""
    set_tree_attention(model)
    return shared_pass(model, random_pair(trunk, branch))


def two_passes(model: GPTModel, trunk: int, branch: int, group: ProcessGroup) -> Tensor:
    """The same loss from two full sequences."""
    set_causal_attention(model, group)
    trunk_T, *branches = random_ids(trunk, branch)
    chosen, rejected = (sequence_logps(model, torch.cat((trunk_T, ids)), trunk, group) for ids in branches)
    return loss_of(chosen.logp_BK[0], rejected.logp_BK[0], chosen.nll / chosen.num_in_nll)


if __name__ == "__main__":
    main()
