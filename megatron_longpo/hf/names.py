"""One table between Hugging Face tensors and Megatron's global ones, and the functions that join and cut them.

Megatron side: key and shape are those of ``GPTModel.sharded_state_dict`` (megatron-core 0.19,
core/transformer/transformer_block.py): layers are homogeneous, so each kind of layer tensor is one global tensor with
the layers as first dimension, ``[L, ...]``. Norm weights carry the Transformer Engine names in every checkpoint; the
local spec maps its own names to them (``sharded_state_dict_keys_map``, core/models/gpt/gpt_layer_specs.py). So one
checkpoint loads under both specs, at any (tp, pp). No padding of the vocabulary is stored: the embedding and the
output layer load with ``allow_shape_mismatch``, and rows that are not there become zeros.

Letters in shapes: L = layers, H = hidden size, F = ffn hidden size, G = query groups, Q = query heads of one group,
D = head dim, V = vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from megatron_longpo.hf.config import Architecture


@dataclass(frozen=True, slots=True)
class NameRule:
    """One global Megatron tensor and the Hugging Face tensors it is made of."""

    megatron: str
    """Key of the global tensor."""
    hf: tuple[str, ...]
    """Names of the parts, with ``{layer}`` where there is one set a layer."""
    hf_shapes: tuple[tuple[int, ...], ...]
    """Shapes of the parts; the joined tensor has their rows together."""
    join: Callable[[Sequence[Tensor]], Tensor]
    cut: Callable[[Tensor], list[Tensor]]
    """The exact inverse of join; every part has memory of its own."""

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.hf[0]

    @property
    def joined_shape(self) -> tuple[int, ...]:
        """Shape of the joined tensor, of one layer where there are layers."""
        return (sum(shape[0] for shape in self.hf_shapes), *self.hf_shapes[0][1:])

    def hf_names(self, layer: int) -> tuple[str, ...]:
        """The names of the parts of one layer."""
        return tuple(name.format(layer=layer) for name in self.hf)


def name_table(shape: Architecture) -> list[NameRule]:
    """All rules of a model that config.py supports, in the order of the forward pass."""
    vocab, hidden = shape.vocab_size, shape.hidden_size
    output = [_whole("output_layer.weight", "lm_head.weight", vocab, hidden)]
    return [
        _whole("embedding.word_embeddings.weight", "model.embed_tokens.weight", vocab, hidden),
        *_layer_rules(shape),
        _whole("decoder.final_layernorm.weight", "model.norm.weight", hidden),
        *([] if shape.tied_embeddings else output),
    ]


def _layer_rules(shape: Architecture) -> list[NameRule]:
    H, F, D, G = shape.hidden_size, shape.ffn_hidden_size, shape.head_dim, shape.num_query_groups
    query_rows, kv_rows = shape.num_heads * D, G * D
    join, cut = partial(join_qkv, num_query_groups=G), partial(cut_qkv, num_query_groups=G, head_dim=D)
    hf, attention, mlp = "model.layers.{layer}.", "decoder.layers.self_attention.", "decoder.layers.mlp."
    qkv, gate_up = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")
    weights, biases = (tuple(f"{hf}self_attn.{name}.{kind}" for name in qkv) for kind in ("weight", "bias"))
    halves = tuple(f"{hf}mlp.{name}.weight" for name in gate_up)
    weight_shapes, bias_shapes = ((query_rows, H), (kv_rows, H), (kv_rows, H)), ((query_rows,), (kv_rows,), (kv_rows,))
    bias = [NameRule(f"{attention}linear_qkv.bias", biases, bias_shapes, join, cut)]
    norms = [_whole(f"{attention}{x}_layernorm.weight", f"{hf}self_attn.{x}_norm.weight", D) for x in ("q", "k")]
    return [
        _whole(f"{attention}linear_qkv.layer_norm_weight", f"{hf}input_layernorm.weight", H),
        NameRule(f"{attention}linear_qkv.weight", weights, weight_shapes, join, cut),
        *(bias if shape.qkv_bias else []),
        *(norms if shape.qk_norm else []),
        _whole(f"{attention}linear_proj.weight", f"{hf}self_attn.o_proj.weight", H, query_rows),
        _whole(f"{mlp}linear_fc1.layer_norm_weight", f"{hf}post_attention_layernorm.weight", H),
        NameRule(f"{mlp}linear_fc1.weight", halves, ((F, H), (F, H)), join_gate_up, cut_gate_up),
        _whole(f"{mlp}linear_fc2.weight", f"{hf}mlp.down_proj.weight", H, F),
    ]


def _whole(megatron: str, hf: str, *dims: int) -> NameRule:
    return NameRule(megatron, (hf,), (dims,), join_one, cut_one)


def extra_state_keys(shape: Architecture) -> list[str]:
    """Keys of the objects without content that a GPTModel asks a checkpoint for, beside its tensors.

    The linear layers of the local spec and every module of the Transformer Engine spec have an ``_extra_state`` (fp8
    scales; None without fp8), and a load refuses a checkpoint that lacks one. An object that no module asks for is
    ignored, so the union of both specs is written.
    """
    modules = [f"self_attention.{name}" for name in ("linear_qkv", "core_attention", "linear_proj")]
    modules += [f"mlp.{name}" for name in ("linear_fc1", "linear_fc2")]
    if shape.qk_norm:
        modules += [f"self_attention.{name}_layernorm" for name in ("q", "k")]
    keys = [
        f"decoder.layers.{module}._extra_state/shard_{layer}_{shape.num_layers}"
        for layer in range(shape.num_layers)
        for module in modules
    ]
    return [*keys, "decoder.final_layernorm._extra_state/shard_0_1"]


def join_one(parts: Sequence[Tensor]) -> Tensor:
    """A tensor that both sides store alike."""
    (part,) = parts
    return part


def cut_one(tensor: Tensor) -> list[Tensor]:
    """The inverse of `join_one`."""
    return [tensor]


def join_qkv(parts: Sequence[Tensor], num_query_groups: int) -> Tensor:
    """q ``[G*Q*D, ...]``, k and v ``[G*D, ...]`` -> rows by query group, ``[G*(Q+2)*D, ...]``: its q heads, k, v.

    The order that ``SelfAttention.get_query_key_value_tensors`` (core/transformer/attention.py) cuts; a tensor-parallel
    rank then holds whole groups. Weights and biases alike.
    """
    trailing = parts[0].shape[1:]
    grouped = [part.reshape(num_query_groups, -1, *trailing) for part in parts]
    return torch.cat(grouped, dim=1).reshape(-1, *trailing)


def cut_qkv(tensor: Tensor, num_query_groups: int, head_dim: int) -> list[Tensor]:
    """The inverse of `join_qkv`: q, k and v."""
    trailing = tensor.shape[1:]
    grouped = tensor.reshape(num_query_groups, -1, *trailing)
    sizes = [grouped.shape[1] - 2 * head_dim, head_dim, head_dim]
    return [part.reshape(-1, *trailing) for part in torch.split(grouped, sizes, dim=1)]


def join_gate_up(parts: Sequence[Tensor]) -> Tensor:
    """gate and up, ``[F, H]`` each -> ``[2F, H]``, gate first.

    Megatron cuts each half over tp by itself (``apply_swiglu_sharded_factory``, core/transformer/mlp.py), so the global
    tensor is the plain concatenation.
    """
    return torch.cat(list(parts))


def cut_gate_up(tensor: Tensor) -> list[Tensor]:
    """The inverse of `join_gate_up`: gate and up, in the same memory."""
    return list(tensor.chunk(2))
