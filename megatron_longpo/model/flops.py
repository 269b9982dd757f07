"""How much work a pair is: for dealing pairs out evenly, and for Megatron's throughput."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def pair_flops(options: Mapping[str, Any], lengths_P3: NDArray[np.int64]) -> NDArray[np.float64]:
    """FLOPs of one shared forward pass over each pair, float64 [P]; a backward pass is twice as many.

    A multiplication with an addition counts 2; causal attention counts the half that is computed, as Megatron does
    (megatron/training/training.py, ``num_floating_point_operations``).

    Args:
        options: the model's shape, by Megatron's names (hf.config.megatron_options).
        lengths_P3: tokens of trunk, chosen and rejected branch.
    """
    trunk_P, chosen_P, rejected_P = lengths_P3.T.astype(np.float64)
    heads, groups, dim = options["num_attention_heads"], options["num_query_groups"], options["kv_channels"]
    attention_weights = options["hidden_size"] * dim * (2 * heads + 2 * groups)
    mlp_weights = 3 * options["hidden_size"] * options["ffn_hidden_size"]
    per_token = 2 * (options["num_layers"] * (attention_weights + mlp_weights))
    per_token += 2 * options["hidden_size"] * options["vocab_size"]
    attended_P = _squares(lengths_P3) / 2
    return per_token * (trunk_P + chosen_P + rejected_P) + 4 * options["num_layers"] * heads * dim * attended_P


def tokens_and_squares(lengths_P3: NDArray[np.int64]) -> tuple[float, float]:
    """What Megatron computes the FLOPs of a step from: its tokens, and the squared lengths of its sequences, summed.

    A pair counts with the square that makes its attention's FLOPs come out right: a causal sequence of n tokens costs
    n^2 / 2 (megatron/training/training.py, ``num_floating_point_operations``).
    """
    return float(lengths_P3.sum()), float(_squares(lengths_P3).sum())


def _squares(lengths_P3: NDArray[np.int64]) -> NDArray[np.float64]:
    trunk_P, chosen_P, rejected_P = lengths_P3.T.astype(np.float64)
    return trunk_P**2 + chosen_P**2 + rejected_P**2 + 2 * trunk_P * (chosen_P + rejected_P)
