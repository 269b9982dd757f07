"""TransformerEngineAttention around a stand-in for the package's attention, which a CPU cannot run: the same numbers as
TreeAttention, and only tensors that the package takes."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_longpo.model.attention import TreeAttention, tree_params
from megatron_longpo.model.layout import pack_layout, tree_layout
from megatron_longpo.model.transformer_engine import TransformerEngineAttention
from tests.ranks import run_ranks

HEADS, KEY_HEADS, SIZE = 4, 2, 8


class PackagesAttention(nn.Module):
    """Causal attention as of ``te.pytorch.DotProductAttention``, and what it refuses."""

    def __init__(
        self, config: Any, layer_number: int, *_: Any, softmax_scale: float, cp_comm_type: str, **__: Any
    ) -> None:
        super().__init__()
        assert cp_comm_type in ("p2p", "all_gather", "a2a", "a2a+p2p")
        self.scale = softmax_scale

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: None, kind: AttnMaskType) -> Tensor:
        for one in (q, k):
            assert one.storage_offset() == 0, "get_qkv_layout finds no layout"
        assert mask is None and kind is AttnMaskType.causal
        q, k, v = (x.permute(1, 2, 0, 3) for x in (q, k, v))
        out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale, enable_gqa=True)
        return out.permute(2, 0, 1, 3).flatten(2)

    def get_extra_state(self) -> None:
        """As every module of the package; a checkpoint of a stock model has none of this name."""


def config() -> TransformerConfig:
    return TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * SIZE,
        num_attention_heads=HEADS,
        num_query_groups=KEY_HEADS,
        attention_dropout=0.0,
        use_cpu_initialization=True,
    )


def attended(kind: type[TreeAttention], num_trees: int) -> list[Tensor]:
    """Output and gradients of the queries, keys and values."""
    package = ModuleType("megatron.core.extensions.transformer_engine")
    package.TEDotProductAttention = PackagesAttention  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, package.__name__, package)
        if not parallel_state.model_parallel_is_initialized():
            parallel_state.initialize_model_parallel()
        core = kind(config(), 1, AttnMaskType.causal, "self", "allgather")
    if isinstance(core, TransformerEngineAttention):
        assert core.sharded_state_dict("x.") == {}
    layout = pack_layout([tree_layout(13 + size, [5, 3], 1) for size in range(num_trees)], 4)
    torch.manual_seed(0)
    leaves = [torch.randn(layout.length, 1, heads, SIZE, requires_grad=True) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    out = core(*leaves, None, packed_seq_params=tree_params(layout, torch.zeros(layout.length)))
    torch.manual_seed(1)
    out.backward(torch.randn_like(out))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def both(num_trees: int) -> list[list[Tensor]]:
    return [attended(kind, num_trees) for kind in (TreeAttention, TransformerEngineAttention)]


@pytest.mark.parametrize("num_trees", [1, 3])
def test_the_same_numbers_as_with_torchs_kernels(num_trees: int) -> None:
    ours, packages = run_ranks(both, 1, num_trees)[0]
    assert len(ours) == len(packages) == 4
    for one, other in zip(ours, packages, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=1e-6)
