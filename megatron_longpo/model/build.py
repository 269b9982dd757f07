"""GPTModel for trees: stock Megatron, but for core attention, rotary angles and, with the local
implementation, a norm that knows sequence parallelism."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from megatron_longpo import platform
from megatron_longpo.errors import UserError
from megatron_longpo.model.attention import TreeAttention
from megatron_longpo.model.rope import TreeRotaryEmbedding
from megatron_longpo.model.rope_parameters import RopeParameters
from megatron_longpo.model.transformer_engine import TransformerEngineAttention

TRANSFORMER_IMPLS = ("local", "transformer_engine")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """What GPTModel needs beside its TransformerConfig."""

    vocab_size: int
    """Tokens of the real vocabulary."""
    padded_vocab_size: int
    """Rows of the embedding, padded so that tensor-parallel ranks hold equal parts."""
    max_position_embeddings: int
    """Longest sequence the model is made for, in tokens."""
    rope: RopeParameters
    tied_embeddings: bool
    """The output layer is the embedding."""

    @classmethod
    def of(cls, options: dict[str, Any], rope: RopeParameters, multiple: int) -> "ModelShape":
        """Make it of hf.config.megatron_options and hf.rope.rope_parameters; pad the vocabulary to ``multiple``."""
        vocab_size = int(options["vocab_size"])
        return cls(
            vocab_size=vocab_size,
            padded_vocab_size=vocab_size + -vocab_size % multiple,
            max_position_embeddings=int(options["max_position_embeddings"]),
            rope=rope,
            tied_embeddings=not options["untie_embeddings_and_output_weights"],
        )


def transformer_config(
    options: dict[str, Any],
    *,
    tensor: int,
    pipeline: int,
    sequence: bool,
    dtype: torch.dtype,
    context: int = 1,
    cp_comm_type: Sequence[str] = ("p2p",),
    transformer_impl: str = "local",
) -> TransformerConfig:
    """Megatron's model config without its argument parser, from hf.config.megatron_options and the sizes of the axes.

    ``cp_comm_type`` is one name for all layers or one a layer, as Megatron's option has it.

    Training takes ``core_transformer_config_from_args`` instead, which reads the same options from the command line.
    """
    return TransformerConfig(
        num_layers=options["num_layers"],
        hidden_size=options["hidden_size"],
        ffn_hidden_size=options["ffn_hidden_size"],
        num_attention_heads=options["num_attention_heads"],
        num_query_groups=options["num_query_groups"],
        kv_channels=options["kv_channels"],
        normalization=options["normalization"],
        layernorm_epsilon=options["layernorm_epsilon"],
        add_bias_linear=options["add_bias_linear"],
        add_qkv_bias=options["add_qkv_bias"],
        qk_layernorm=options["qk_layernorm"],
        gated_linear_unit=options["swiglu"],
        activation_func=torch.nn.functional.silu,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        sequence_parallel=sequence and tensor > 1,
        context_parallel_size=context,
        cp_comm_type=cp_comm_type[0] if len(cp_comm_type) == 1 else list(cp_comm_type),
        transformer_impl=transformer_impl,  # type: ignore[arg-type]  # a Literal
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        use_cpu_initialization=platform.is_cpu(),
        bias_activation_fusion=False,
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
    )


def check_transformer_impl(name: str) -> None:
    """The implementation that ``--transformer-impl`` names can run here.

    Raises:
        UserError: it cannot, or trees do not run with it.
    """
    if name not in TRANSFORMER_IMPLS:
        raise UserError(
            f"--transformer-impl {name} does not run trees of branches; choose {' or '.join(TRANSFORMER_IMPLS)}"
        )
    if name == "transformer_engine" and (platform.is_cpu() or not find_spec("transformer_engine")):
        missing = "a CUDA device" if platform.is_cpu() else "the package transformer-engine (extra: gpu)"
        raise UserError(f"--transformer-impl transformer_engine needs {missing}, not found here; choose local")


class SequenceParallelRMSNorm(nn.RMSNorm):
    """torch's RMSNorm whose weight is marked for the sequence-parallel gradient reduction.

    Each tensor-parallel rank norms its own part of the sequence, so the weight's gradient must be summed over the
    ranks; Megatron does that for parameters that carry the mark (megatron/core/distributed/finalize_model_grads.py,
    ``_allreduce_non_tensor_model_parallel_grads``). Its own WrappedTorchNorm refuses sequence parallelism instead.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)  # pyright: ignore[reportUnknownMemberType]
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def build_model(
    config: TransformerConfig,
    shape: ModelShape,
    *,
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
    pg_collection: ProcessGroupCollection | None = None,
) -> GPTModel:
    """The part of the model that this pipeline stage holds.

    Sets ``config.softmax_scale``, which Megatron hands to core attention, where the rotary settings have a factor of
    attention; and ``config.variable_seq_lengths``: trees differ in length, so pipeline stages exchange shapes first
    (megatron/core/pipeline_parallel/p2p_communication.py; ``validate_args`` resets the option of that name).
    """
    config.variable_seq_lengths = True
    head_dim: int = config.kv_channels  # type: ignore[assignment]  # set by TransformerConfig.__post_init__
    inv_freq, attention_factor = shape.rope.frequencies(head_dim, shape.max_position_embeddings)
    if attention_factor != 1.0:
        # The factor (of YaRN) multiplies cos and sin, so every rotated query and key as a whole, so every score twice.
        config.softmax_scale = attention_factor**2 * head_dim**-0.5
    model = GPTModel(
        config=config,
        transformer_layer_spec=_block_spec(config, vp_stage),  # type: ignore[arg-type]  # GPTModel takes either spec
        vocab_size=shape.padded_vocab_size,
        max_sequence_length=shape.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        parallel_output=True,
        share_embeddings_and_output_weights=shape.tied_embeddings,
        position_embedding_type="rope",
        pg_collection=pg_collection,
        vp_stage=vp_stage,
    )
    model.rotary_pos_emb = TreeRotaryEmbedding(inv_freq)
    return model


def _block_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    if config.transformer_impl == "transformer_engine":
        return _transformer_engine_spec(config, vp_stage)
    layer: ModuleSpec = get_gpt_layer_local_spec(qk_layernorm=config.qk_layernorm, normalization=config.normalization)
    submodules = layer.submodules
    submodules.input_layernorm = SequenceParallelRMSNorm  # type: ignore[union-attr]
    submodules.pre_mlp_layernorm = SequenceParallelRMSNorm  # type: ignore[union-attr]
    attention: Any = submodules.self_attention.submodules  # type: ignore[union-attr]
    attention.core_attention = TreeAttention
    if config.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = SequenceParallelRMSNorm
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=SequenceParallelRMSNorm)


def _transformer_engine_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    from megatron.core.extensions.transformer_engine import TENorm  # absent without the package

    layer = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    layer.submodules.self_attention.submodules.core_attention = TransformerEngineAttention  # type: ignore[union-attr]
    num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=TENorm)
