"""How much work a tree is: for dealing pairs out evenly, and for Megatron's throughput."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def tree_flops(options: Mapping[str, Any], lengths_T3: NDArray[np.int64]) -> NDArray[np.float64]:
    """Count the FLOPs of one shared forward pass over each tree, float64 [T]; a backward pass is twice as many.

    A multiplication with an addition counts 2; causal attention counts the half that is computed, as Megatron does
    (megatron/training/training.py, ``num_floating_point_operations``).

    Args:
        options: the model's shape, by Megatron's names (hf.config.megatron_options).
        lengths_T3: tokens of the trunk and of two branches; 0 for a branch that is not there.
    """
    heads, groups, dim = options["num_attention_heads"], options["num_query_groups"], options["kv_channels"]
    attention_weights = options["hidden_size"] * dim * (2 * heads + 2 * groups)
    mlp_weights = 3 * options["hidden_size"] * options["ffn_hidden_size"]
    per_token = 2 * (options["num_layers"] * (attention_weights + mlp_weights))
    per_token += 2 * options["hidden_size"] * options["vocab_size"]
    attended_T = squared_lengths(lengths_T3) / 2
    return per_token * lengths_T3.sum(1).astype(np.float64) + 4 * options["num_layers"] * heads * dim * attended_T


def separate_flops(options: Mapping[str, Any], lengths_T3: NDArray[np.int64]) -> NDArray[np.float64]:
    """Count the FLOPs of `tree_flops` where nothing is shared: each branch is a sequence with a trunk of its own."""
    trunk_T, *branches_T = lengths_T3.T
    alone = [np.stack((trunk_T, branch_T, np.zeros_like(trunk_T)), axis=1) for branch_T in branches_T]
    return np.sum([tree_flops(options, one_T3) * (one_T3[:, 1] > 0) for one_T3 in alone], axis=0)


def squared_lengths(lengths_T3: NDArray[np.int64]) -> NDArray[np.float64]:
    """Give each tree the squared length of a causal sequence whose attention costs as many FLOPs, float64 [T].

    Megatron computes the FLOPs of a step from the tokens and these squares: a causal sequence of n tokens costs n^2 / 2
    (megatron/training/training.py, ``num_floating_point_operations``).
    """
    trunk_T, first_T, second_T = lengths_T3.T.astype(np.float64)
    return trunk_T**2 + first_T**2 + second_T**2 + 2 * trunk_T * (first_T + second_T)
