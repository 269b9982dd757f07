"""FLOPs of real steps as torch counts them while they run: ``python -m tests.unit.plan.count_flops CASES``.

CASES is a JSON list of [ranks, list of [recomputation, trunk, branch]]; the sum over the context-parallel ranks of each
is printed, in a JSON list. torch counts causal attention in full and backward passes without their recomputed scores,
so the attention kernels have formulas here: 2 products of queries by keys forward, 5 backward, the half that is causal.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import on_ranks
from benchmarks.recompute import step
from benchmarks.small_mistral import random_mistral

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def products(number: int, q: Sequence[int], k: Sequence[int], causal: bool) -> int:
    """FLOPs of so many products between queries [B, H, T, D] and keys [B, G, U, D]."""
    batch, heads, queries, dim = q
    return number * 2 * batch * heads * dim * (queries * (queries + 1) // 2 if causal else queries * k[2])


def forward(q: Any, k: Any, v: Any, dropout: float = 0.0, causal: bool = False, *_: Any, **__: Any) -> int:
    """From the shapes of the kernel's arguments."""
    return products(2, q, k, causal)


def backward(grad: Any, q: Any, k: Any, v: Any, out: Any, lse: Any, dropout: float, causal: bool, **_: Any) -> int:
    """From the shapes of the kernel's arguments."""
    return products(5, q, k, causal)


def measure(cases: Sequence[tuple[str, int, int]], num_ranks: int) -> list[int]:
    """Each case, on one rank."""
    model, found = random_mistral(num_ranks), list[int]()
    for recompute, trunk, branch in cases:
        counter = FlopCounterMode(display=False, custom_mapping={ATTENTION: forward, BACKWARD: backward})
        with counter:
            step(model, recompute, trunk, branch)
        found.append(counter.get_total_flops())
    return found


if __name__ == "__main__":
    by_ranks = [on_ranks(measure, ranks, cases, ranks) for ranks, cases in json.loads(sys.argv[1])]
    print(json.dumps([sum(of_ranks) for ranks in by_ranks for of_ranks in zip(*ranks, strict=True)]))
