"""What training on the chosen branch alone costs: our step on a tree of one branch over Megatron's own causal step.

    python -m benchmarks.sft [--trunk 4096 8192] [--branch 256] [--repeats 5]

Both sides are the same Megatron model (a random 30M-parameter Mistral) on the same tokens, forward and backward, with
the NLL of all tokens. The plain side is Megatron's: one causal sequence through torch's scaled_dot_product_attention,
all logits, and Megatron's cross entropy. Ours reads the trunk and the branch, and has the log-prob head, which never
holds all logits and therefore computes them twice. Before anything is timed, loss and gradients of both must agree.

FLOPs are counted as they are dispatched: matrix products by torch's counter, attention by its own formula (half of the
square where it is causal).
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.causal import compare, seconds_in_turn, set_causal_attention, set_tree_attention
from benchmarks.common import on_ranks, write_result
from benchmarks.operators import ATTENTION_FLOPS
from benchmarks.small_mistral import VOCAB_SIZE, random_ids, random_mistral, tree
from megatron_longpo.model.attention import TreeParams
from megatron_longpo.model.forward import forward_pack
from megatron_longpo.model.targets import tree_logps


def main() -> None:
    """Measure and write the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", type=int, nargs="+", default=[4096, 8192], help="tokens")
    parser.add_argument("--branch", type=int, default=256, help="tokens")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rows = []
    for trunk in args.trunk:
        rows.append(on_ranks(measure, 1, trunk, args.branch, args.repeats)[0])
        print(
            "trunk {trunk}, branch {branch}: sft / causal step: FLOPs {flops_ratio:.3f}, time median "
            "{median_ratio:.3f}, {least:.3f} to {most:.3f}; largest difference "
            "{largest_relative_difference:.1e}".format(
                **rows[-1], least=min(rows[-1]["ratios"]), most=max(rows[-1]["ratios"])
            ),
            flush=True,
        )
    write_result("sft", rows)


def measure(trunk: int, branch: int, repeats: int) -> dict[str, Any]:
    """Check that both sides agree, count their FLOPs, then time them in turn; seconds."""
    model = random_mistral()
    sides: dict[str, Callable[[], Tensor]] = {
        "sft": lambda: sft(model, trunk, branch),
        "causal": lambda: causal(model, trunk, branch),
    }
    difference = compare(model, sides)
    flops = {name: count_flops(side) for name, side in sides.items()}
    times = seconds_in_turn(sides, repeats)
    ratios = [ours / plain for ours, plain in zip(times["sft"], times["causal"], strict=True)]
    return {
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "trunk": trunk,
        "branch": branch,
        "flops": flops,
        "flops_ratio": flops["sft"] / flops["causal"],
        "seconds": times,
        "ratios": ratios,
        "median_ratio": statistics.median(ratios),
        "largest_relative_difference": difference,
    }


def sft(model: GPTModel, trunk: int, branch: int) -> Tensor:
    """The product's: nats per token."""
    set_tree_attention(model)
    batch = tree(random_ids(trunk, branch), ("chosen",))
    logp = forward_pack(model, batch, VOCAB_SIZE, parallel_state.get_tensor_model_parallel_group())
    (policy,) = tree_logps(logp, batch.targets, parallel_state.get_context_parallel_group())
    return policy.nll / policy.num_in_nll


def causal(model: GPTModel, trunk: int, branch: int) -> Tensor:
    """Megatron's own: nats per token."""
    set_causal_attention(model, parallel_state.get_context_parallel_group())
    trunk_T, chosen_B, _ = random_ids(trunk, branch)
    ids_S = torch.cat((trunk_T, chosen_B)).to(torch.cuda.current_device())
    positions_S = torch.arange(len(ids_S), device=ids_S.device)
    labels_S = torch.roll(ids_S, -1)
    loss_1S = model(
        input_ids=ids_S[None],
        position_ids=positions_S[None],
        attention_mask=None,
        labels=labels_S[None],
        packed_seq_params=TreeParams(qkv_format="sbhd", positions_L=positions_S),
    )
    return loss_1S[0, :-1].mean()


def count_flops(side: Callable[[], Tensor]) -> int:
    """FLOPs of forward and backward, as they are dispatched."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_FLOPS) as counter:
        side().backward()
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
