"""The joined layouts, computed by hand element by element, and their inverses on random shapes."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megatron_longpo.hf.config import Architecture
from megatron_longpo.hf.names import (
    NameRule,
    cut_gate_up,
    cut_qkv,
    extra_state_keys,
    join_gate_up,
    join_qkv,
    name_table,
)


def rows(*labels: int) -> Tensor:
    """``[num_rows, 1]``: one number a row, so that an order can be read off."""
    return torch.tensor(labels)[:, None]


def test_qkv_rows_by_hand() -> None:
    """2 groups of 2 query heads, head dim 2; tens digit = head, units digit = row of the head."""
    q, k, v = rows(10, 11, 20, 21, 30, 31, 40, 41), rows(50, 51, 60, 61), rows(70, 71, 80, 81)
    joined = join_qkv([q, k, v], num_query_groups=2)
    assert joined[:, 0].tolist() == [10, 11, 20, 21, 50, 51, 70, 71, 30, 31, 40, 41, 60, 61, 80, 81]


def test_gate_comes_first() -> None:
    assert join_gate_up([rows(1, 2), rows(3, 4)])[:, 0].tolist() == [1, 2, 3, 4]


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.randoms(use_true_random=False))
def test_cut_undoes_join(groups: int, queries: int, head_dim: int, is_bias: bool, random: object) -> None:
    del random  # shapes are what varies; the values only have to differ
    trailing = () if is_bias else (3,)
    sizes = [groups * queries * head_dim, groups * head_dim, groups * head_dim]
    parts = [torch.randn(size, *trailing) for size in sizes]
    back = cut_qkv(join_qkv(parts, groups), groups, head_dim)
    assert all(torch.equal(part, again) for part, again in zip(parts, back, strict=True))
    gate_up = parts[1:]
    again = cut_gate_up(join_gate_up(gate_up))
    assert all(torch.equal(part, other) for part, other in zip(gate_up, again, strict=True))


def shape(**changes: bool) -> Architecture:
    sizes = {"num_layers": 2, "hidden_size": 8, "ffn_hidden_size": 10, "num_heads": 4, "num_query_groups": 2}
    flags = {"qkv_bias": False, "qk_norm": False, "tied_embeddings": False, **changes}
    return Architecture(**sizes, head_dim=6, vocab_size=11, **flags)


def table(**changes: bool) -> dict[str, NameRule]:
    return {rule.megatron: rule for rule in name_table(shape(**changes))}


def test_table_by_model() -> None:
    plain, biased, tied = table(), table(qkv_bias=True), table(tied_embeddings=True)
    assert biased.keys() - plain.keys() == {"decoder.layers.self_attention.linear_qkv.bias"}
    attention = "decoder.layers.self_attention."
    normed = table(qk_norm=True)
    assert normed.keys() - plain.keys() == {f"{attention}q_layernorm.weight", f"{attention}k_layernorm.weight"}
    assert normed[f"{attention}k_layernorm.weight"].joined_shape == (6,)
    assert plain.keys() - tied.keys() == {"output_layer.weight"}
    assert plain["decoder.layers.self_attention.linear_qkv.weight"].joined_shape == (2 * (2 + 2) * 6, 8)
    assert biased["decoder.layers.self_attention.linear_qkv.bias"].joined_shape == (48,)
    assert plain["decoder.layers.mlp.linear_fc1.weight"].joined_shape == (20, 8)
    assert plain["decoder.layers.mlp.linear_fc1.weight"].hf_names(1) == (
        "model.layers.1.mlp.gate_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    )


def test_extra_states_of_both_specs() -> None:
    keys = extra_state_keys(shape())
    assert len(keys) == len(set(keys)) == 2 * 5 + 1
    assert "decoder.layers.self_attention.core_attention._extra_state/shard_1_2" in keys
    normed = set(extra_state_keys(shape(qk_norm=True))) - set(keys)
    assert normed == {
        f"decoder.layers.self_attention.{x}_layernorm._extra_state/shard_{layer}_2" for x in "qk" for layer in (0, 1)
    }
    assert "decoder.final_layernorm._extra_state/shard_0_1" in keys
