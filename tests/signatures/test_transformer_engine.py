"""What Megatron's layers hand to Transformer Engine when our model is made of them and run.

The real model, Megatron's real wrappers around the package's classes, and the classes' recorded signatures: an argument
that a released version does not take ends the run. Of what the package would compute only shapes are here.
"""

import sys
from contextlib import nullcontext
from typing import Any

import pytest

from tests.mutations import Mutation
from tests.ranks import run_ranks
from tests.signatures.mutated import mutations, survivors
from tests.signatures.recorded import Library

VERSIONS = ("2.10.0", "2.20.2")
"""The oldest that setup.py allows, and the newest."""
ENGINE = "transformer_engine.pytorch"
MUTATIONS = mutations(
    "megatron_longpo/model/transformer_engine.py",
    (
        "engine-config-and-number-swapped",
        "            config,\n            layer_number,\n            AttnMaskType",
        "            layer_number,\n            config,\n            AttnMaskType",
    ),
    (
        "engine-mask-and-kind-swapped",
        "            AttnMaskType.causal,\n            attention_type,\n",
        "            attention_type,\n            AttnMaskType.causal,\n",
    ),
    ("engine-scale-renamed", "softmax_scale=self.scale", "scale=self.scale"),
    ("engine-scale-left-out", "            softmax_scale=self.scale,\n", ""),
    (
        "engine-gather-by-its-other-name",
        '"all_gather" if cp_comm_type == "allgather" else cp_comm_type',
        "cp_comm_type",
    ),
    ("engine-groups-renamed", "pg_collection=rest", "process_groups=rest"),
    ("engine-query-and-key-swapped", "self.trunk(q_T1HD, k_T1GD,", "self.trunk(k_T1GD, q_T1HD,"),
    ("engine-key-and-value-swapped", "k_T1GD, v_T1GD, None, AttnMaskType", "v_T1GD, k_T1GD, None, AttnMaskType"),
    ("engine-no-mask-given", "v_T1GD, None, AttnMaskType.causal)", "v_T1GD, AttnMaskType.causal)"),
)
LAYERS, HEADS, KEY_HEADS, SIZE, HIDDEN, WIDTH, VOCAB = 2, 4, 2, 8, 40, 48, 64


def in_process_of(version: str, function: Any, *args: Any) -> Any:
    """Call a function on one rank where this version can be imported, with Megatron imported anew."""
    return run_ranks(_with_package, 1, version, function, *args)[0]


def _with_package(version: str, function: Any, *args: Any) -> Any:
    for name in list(sys.modules):
        if name.partition(".")[0] in ("megatron", "megatron_longpo"):
            del sys.modules[name]
    from torch import nn

    package = Library.of(f"transformer_engine-{version}", nn.Module)
    package.behaviour = _behaviour()
    with package.installed():
        from megatron.core import parallel_state
        from megatron.core.utils import get_te_version

        from megatron_longpo import platform

        platform._is_active = True  # the process is prepared; its modules were imported anew
        assert str(get_te_version()) == version
        parallel_state.initialize_model_parallel()
        return function(package, *args)


def _behaviour() -> dict[str, Any]:
    import torch
    from torch import nn

    def make_linear(layer: Any, given: dict[str, Any]) -> None:
        layer.weight = nn.Parameter(torch.zeros(given["out_features"], given["in_features"]))
        layer.bias = nn.Parameter(torch.zeros(given["out_features"])) if given.get("bias", True) else None
        layer.return_bias = given.get("return_bias", False)
        if "normalization" in given:
            layer.layer_norm_weight = nn.Parameter(torch.ones(given["in_features"]))

    def linear(layer: Any, given: dict[str, Any]) -> Any:
        out = given["inp"] @ layer.weight.T
        return (out, layer.bias) if layer.return_bias else out

    def make_norm(layer: Any, given: dict[str, Any]) -> None:
        layer.weight = nn.Parameter(torch.ones(given["normalized_shape"]))

    return {
        **{f"{ENGINE}.{kind}.__init__": make_linear for kind in ("Linear", "LayerNormLinear")},
        **{f"{ENGINE}.{kind}.forward": linear for kind in ("Linear", "LayerNormLinear")},
        f"{ENGINE}.RMSNorm.__init__": make_norm,
        f"{ENGINE}.RMSNorm.forward": lambda layer, given: given["input"] * layer.weight.mean(),
        f"{ENGINE}.DotProductAttention.forward": lambda layer, given: given["query_layer"].flatten(2) * 1,
        f"{ENGINE}.attention.rope.apply_rotary_pos_emb": lambda given: given["t"] * 1,
        f"{ENGINE}.fp8_autocast": lambda given: nullcontext(),
    }


def config(**changes: Any) -> Any:
    import torch
    from megatron.core.transformer.transformer_config import TransformerConfig

    return TransformerConfig(
        **{
            "num_layers": LAYERS,
            "hidden_size": HIDDEN,
            "num_attention_heads": HEADS,
            "num_query_groups": KEY_HEADS,
            "kv_channels": SIZE,
            "ffn_hidden_size": WIDTH,
            "normalization": "RMSNorm",
            "layernorm_epsilon": 1e-6,
            "add_bias_linear": False,
            "add_qkv_bias": True,
            "qk_layernorm": True,
            "gated_linear_unit": True,
            "activation_func": torch.nn.functional.silu,
            "attention_dropout": 0.0,
            "hidden_dropout": 0.0,
            "transformer_impl": "transformer_engine",
            "use_cpu_initialization": True,
            **changes,
        }
    )


def expect(given: dict[str, Any], **expected: Any) -> None:
    """Of the arguments of a call those named are as expected."""
    assert {name: given.get(name, "left out") for name in expected} == expected


def compare_attention(package: Library, ours: Any) -> None:
    """Our core attention through Megatron's wrapper to DotProductAttention, alone and with context parallelism."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer.enums import AttnMaskType

    from megatron_longpo.model.attention import tree_params
    from megatron_longpo.model.layout import pack_layout, tree_layout

    name = f"{ENGINE}.DotProductAttention"
    groups: Any = ProcessGroupCollection.use_mpu_process_groups(["tp", "cp", "hcp"])
    for axis, known in (("allgather", "all_gather"), ("p2p", "p2p"), ("a2a", "a2a")):
        # As megatron/core/transformer/attention.py makes it.
        core = ours.TransformerEngineAttention(
            config=config(context_parallel_size=2),
            layer_number=7,
            attn_mask_type=AttnMaskType.causal,
            attention_type="self",
            cp_comm_type=axis,
            softmax_scale=0.3,
            pg_collection=groups,
        )
        given = package.arguments(f"{name}.__init__")[-1]
        expect(given, num_attention_heads=HEADS, kv_channels=SIZE, num_gqa_groups=KEY_HEADS, attention_dropout=0.0)
        expect(given, attn_mask_type="causal", attention_type="self", layer_number=7, softmax_scale=0.3)
        expect(given, cp_comm_type=known, cp_group=groups.cp, cp_global_ranks=[0], tp_group=groups.tp, tp_size=1)
    for method in ("__init__", "forward"):  # neither sets it: tokens outermost, as ours are, is the default
        assert package.default(name, "qkv_format", method) == (None if method == "forward" else "sbhd")
    assert package.default(name, "window_size", "__init__") is None

    assert parallel_state.get_context_parallel_world_size() == 1
    layout = pack_layout([tree_layout(13, [5, 3], 1)], 4)
    shapes = ((HEADS, SIZE), (KEY_HEADS, SIZE), (KEY_HEADS, SIZE))
    query, key, value = (torch.randn(layout.length, 1, *shape) for shape in shapes)
    out = core(query, key, value, None, attn_mask_type=AttnMaskType.causal, attention_bias=None,
               packed_seq_params=tree_params(layout, torch.zeros(layout.length)))  # fmt: skip
    assert out.shape == (layout.length, 1, HEADS * SIZE)
    given, trunk = package.arguments(f"{name}.forward")[-1], layout.trees[0].rank_trunk
    for layer, tensor in (("query_layer", query), ("key_layer", key), ("value_layer", value)):
        assert torch.equal(given.pop(layer), tensor[:trunk]), layer
    assert given == {"attention_mask": None, "attn_mask_type": "causal"}


def compare_model(package: Library) -> None:
    """All layers of our model, the output layer's fused gradient included; then the same with FP8."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.fp8_utils import get_fp8_recipe
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from megatron_longpo import megatron_hooks
    from megatron_longpo.model.build import ModelShape, build_model
    from megatron_longpo.model.forward import forward_pack, pack, tree_input
    from megatron_longpo.model.rope_parameters import RopeParameters

    model_parallel_cuda_manual_seed(0)
    settings = config(apply_rope_fusion=True, gradient_accumulation_fusion=True)
    shape = ModelShape(
        vocab_size=VOCAB,
        padded_vocab_size=VOCAB,
        max_position_embeddings=64,
        rope=RopeParameters(rope_theta=1e4),
        tied_embeddings=False,
    )
    with pytest.raises(RuntimeError, match="fused_weight_gradient_mlp_cuda"):  # Megatron's own layer, without Apex
        build_model(settings, shape)
    package.calls.clear()
    megatron_hooks.fuse_without_apex()
    model = build_model(settings, shape)
    tokens = {"trunk": torch.arange(9), "chosen": torch.arange(5), "rejected": torch.arange(4)}
    spans = {"chosen_spans": torch.tensor([[1, 5]]), "rejected_spans": torch.tensor([[1, 4]])}
    batch = pack([tree_input(tokens | spans, ("chosen", "rejected"), nll_tokens=None)], 16)
    tp_group = parallel_state.get_tensor_model_parallel_group()
    logp_N = forward_pack(model, batch, VOCAB, tp_group)
    assert logp_N.shape == batch.labels_N.shape
    logp_N.sum().backward()
    _compare_layers(package)

    settings.fp8, settings.fp8_recipe = "hybrid", "delayed"
    forward_pack(model, batch, VOCAB, tp_group)
    formats = sys.modules["transformer_engine.common.recipe"].Format  # type: ignore[attr-defined]
    (recipe,) = package.arguments("transformer_engine.common.recipe.DelayedScaling.__init__")
    expect(recipe, fp8_format=formats.HYBRID, amax_history_len=settings.fp8_amax_history_len, margin=0)
    (context,) = package.arguments(f"{ENGINE}.fp8_autocast")
    expect(context, enabled=True)
    assert context["fp8_recipe"].fp8_format is formats.HYBRID
    others = {"tensorwise": "Float8CurrentScaling", "blockwise": "Float8BlockScaling", "mxfp8": "MXFP8BlockScaling"}
    for settings.fp8_recipe, kind in others.items():
        get_fp8_recipe(settings)
        (recipe,) = package.arguments(f"transformer_engine.common.recipe.{kind}.__init__")
        expect(recipe, fp8_format=formats.HYBRID)


def _compare_layers(package: Library) -> None:
    made = package.arguments(f"{ENGINE}.LayerNormLinear.__init__")
    qkv, gate_and_up = (HEADS + 2 * KEY_HEADS) * SIZE, 2 * WIDTH
    assert [one["out_features"] for one in made] == [qkv, gate_and_up] * LAYERS
    for one in made:
        expect(one, in_features=HIDDEN, normalization="RMSNorm", eps=1e-6, parallel_mode="column", return_bias=False)
        expect(one, fuse_wgrad_accumulation=True, zero_centered_gamma=False, return_layernorm_output=False)
    assert [one["bias"] for one in made] == [True, False] * LAYERS
    made = package.arguments(f"{ENGINE}.Linear.__init__")
    assert [one["in_features"] for one in made] == [HEADS * SIZE, WIDTH] * LAYERS
    for one in made:
        expect(one, out_features=HIDDEN, bias=False, parallel_mode="row", fuse_wgrad_accumulation=True)
    norms = [one["normalized_shape"] for one in package.arguments(f"{ENGINE}.RMSNorm.__init__")]
    assert norms == [SIZE, SIZE] * LAYERS + [HIDDEN]
    turned = package.arguments(f"{ENGINE}.attention.rope.apply_rotary_pos_emb")
    assert [one["t"].shape[2:] for one in turned] == [(HEADS, SIZE), (KEY_HEADS, SIZE)] * LAYERS
    for one in turned:
        assert one["freqs"].shape == (one["t"].shape[0], 1, 1, SIZE)  # of every token, so as from position 0
        expect(one, tensor_format="sbhd", interleaved=False, fused=True, cp_size="left out")


def everything(package: Library, of_attention: tuple[Mutation, ...]) -> list[str]:
    """Compare, and tell which mutations of our core attention pass as well."""
    from megatron_longpo.model import transformer_engine

    compare_attention(package, transformer_engine)
    compare_model(package)
    return survivors(of_attention, lambda module: compare_attention(package, module))


@pytest.mark.ranks
@pytest.mark.parametrize("version, of_attention", [(VERSIONS[0], ()), (VERSIONS[1], MUTATIONS)], ids=VERSIONS)
def test_every_call_is_one_that_the_package_takes(version: str, of_attention: tuple[Mutation, ...]) -> None:
    """And with one argument of ours swapped or renamed it is not."""
    assert in_process_of(version, everything, of_attention) == []
