"""How much work a pair is, for dealing pairs out evenly."""

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
    branches_P = chosen_P + rejected_P
    attended_P = (trunk_P**2 + chosen_P**2 + rejected_P**2) / 2 + branches_P * trunk_P
    return per_token * (trunk_P + branches_P) + 4 * options["num_layers"] * heads * dim * attended_P
