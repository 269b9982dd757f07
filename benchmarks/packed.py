"""Short pairs in one micro-batch against one long pair of as many tokens: seconds a token of a step.

    python -m benchmarks.packed [--pairs 8] [--trunk 384] [--branch 64] [--repeats 7]

A random 30M-parameter Mistral, forward and backward, in turn. Packed pairs attend less, and call every kernel once for
each of them. Before anything is timed, the loss of the packed pairs must be the sum of each alone.
"""

import argparse
import statistics
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor

from benchmarks.causal import seconds_in_turn
from benchmarks.common import on_ranks, write_result
from benchmarks.small_mistral import VOCAB_SIZE, loss_of, random_mistral, tree_of
from megatron_longpo.model.forward import TreeInput, forward_pack, pack
from megatron_longpo.model.targets import tree_logps

AGREE = 1e-5


def main() -> None:
    """Measure and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--trunk", type=int, default=384, help="tokens of a short pair's")
    parser.add_argument("--branch", type=int, default=64, help="tokens of each of a short pair's")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    found = on_ranks(measure, 1, args.pairs, args.trunk, args.branch, args.repeats)[0]
    print(f"packed / long, seconds a token: median {found['median_ratio']:.3f}")
    write_result("packed", found)


def measure(pairs: int, trunk: int, branch: int, repeats: int) -> dict[str, Any]:
    """Seconds of both, in turn."""
    model = random_mistral()
    short = [random_tree(seed, trunk, branch) for seed in range(pairs)]
    long = [random_tree(0, pairs * trunk, pairs * branch)]
    alone = sum(float(loss(model, [one]).detach()) for one in short)
    together = float(loss(model, short).detach())
    if abs(together / alone - 1) > AGREE:
        raise RuntimeError(f"packed the loss is {together}, alone {alone}: nothing to time")
    sides = {"packed": lambda: loss(model, short), "long": lambda: loss(model, long)}
    for side in sides.values():
        side().backward()
    seconds = seconds_in_turn(sides, repeats)
    ratios = [packed / whole for packed, whole in zip(seconds["packed"], seconds["long"], strict=True)]
    return {
        "pairs": pairs,
        "trunk": trunk,
        "branch": branch,
        "difference": abs(together / alone - 1),
        "seconds": seconds,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
    }


def random_tree(seed: int, trunk: int, branch: int) -> TreeInput:
    """A pair of that many tokens, with a seed of its own."""
    torch.manual_seed(seed)
    ids = torch.randint(VOCAB_SIZE, (trunk + 2 * branch,))
    ids[trunk + branch] = ids[trunk]
    return tree_of((ids[:trunk], ids[trunk : trunk + branch], ids[trunk + branch :]), ("chosen", "rejected"))


def loss(model: GPTModel, trees: list[TreeInput]) -> Tensor:
    """The sum over the pairs, of one micro-batch."""
    batch = pack(trees).to(torch.cuda.current_device())
    logp = forward_pack(model, batch, VOCAB_SIZE, parallel_state.get_tensor_model_parallel_group())
    policies = tree_logps(logp, batch.targets, parallel_state.get_context_parallel_group())
    return torch.stack([loss_of(one.logp_BK[0], one.logp_BK[1], one.nll / one.num_in_nll) for one in policies]).sum()


if __name__ == "__main__":
    main()
