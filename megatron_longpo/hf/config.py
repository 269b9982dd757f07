"""A Hugging Face ``config.json`` read as Megatron options; whatever Megatron would compute differently is refused.

Read from the raw JSON, not through transformers: every training rank does this at start-up, and it must not depend on
which transformers version happens to be installed. Fields that a file may omit get the default of the model's own
configuration class (transformers 5, ``configuration_{llama,mistral,qwen2,qwen3}.py``); a test compares with those.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never

from megatron_longpo.errors import UserError
from megatron_longpo.hf.rope import rope_parameters
from megatron_longpo.strict_json import is_array

SUPPORTED_MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")

_DEFAULT_NUM_KEY_VALUE_HEADS = {"mistral": 8, "qwen2": 32, "qwen3": 32}  # Llama's default is num_attention_heads
_DEFAULT_QWEN3_HEAD_DIM = 128  # of the others: hidden_size / num_attention_heads
_DEFAULT_WINDOW = 4096  # of Mistral, Qwen2 and Qwen3
_DEFAULT_QWEN_MAX_WINDOW_LAYERS = 28
_MOST_LAYERS = 10_000  # every layer has names of its own to look for
_EXPERT_FIELDS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """The sizes that fix the shape of every weight of a dense decoder."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    """Rows of gate_proj, and of up_proj."""
    num_heads: int
    """Query heads."""
    num_query_groups: int
    """Key/value heads; each serves num_heads / num_query_groups query heads."""
    head_dim: int
    """Need not be hidden_size / num_heads."""
    vocab_size: int
    """Rows of the embedding, without Megatron's padding."""
    qkv_bias: bool
    qk_norm: bool
    """Queries and keys are normed, head by head, before the rotation (Qwen3)."""
    tied_embeddings: bool
    """The output layer is the embedding."""


def architecture(hf_config: Mapping[str, Any]) -> Architecture:
    """The weight shapes of the model that ``hf_config`` describes.

    Raises:
        UserError: the model is not one of SUPPORTED_MODEL_TYPES, uses something unsupported, or a field is wrong.
    """
    _refuse_unsupported(hf_config)
    model_type = hf_config["model_type"]
    num_heads = _positive_int(hf_config, "num_attention_heads")
    num_query_groups = num_heads
    if hf_config.get("num_key_value_heads") is not None:
        num_query_groups = _positive_int(hf_config, "num_key_value_heads")
    elif "num_key_value_heads" not in hf_config:
        num_query_groups = _DEFAULT_NUM_KEY_VALUE_HEADS.get(model_type, num_heads)
    if num_heads % num_query_groups:
        _refuse("num_key_value_heads", num_query_groups, f"it must divide num_attention_heads = {num_heads}")
    hidden_size = _positive_int(hf_config, "hidden_size")
    if hf_config.get("head_dim") is not None:
        head_dim = _positive_int(hf_config, "head_dim")
    elif model_type == "qwen3":
        head_dim = _DEFAULT_QWEN3_HEAD_DIM
    elif hidden_size % num_heads:
        _refuse("hidden_size", hidden_size, f"without head_dim it must be a multiple of {num_heads} attention heads")
    else:
        head_dim = hidden_size // num_heads
    if head_dim % 2:
        _refuse("head_dim", head_dim, "rotary embeddings turn pairs of dimensions, so it must be even")
    return Architecture(
        num_layers=_positive_int(hf_config, "num_hidden_layers", most=_MOST_LAYERS),
        hidden_size=hidden_size,
        ffn_hidden_size=_positive_int(hf_config, "intermediate_size"),
        num_heads=num_heads,
        num_query_groups=num_query_groups,
        head_dim=head_dim,
        vocab_size=_positive_int(hf_config, "vocab_size"),
        qkv_bias=model_type == "qwen2",
        qk_norm=model_type == "qwen3",
        tied_embeddings=_flag(hf_config, "tie_word_embeddings"),
    )


def megatron_options(hf_config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """The Megatron arguments that the model fixes, by their ``dest`` in megatron/training/arguments.py (0.19).

    Dropout is 0 whatever ``attention_dropout`` says: that field is a habit of the original training, not part of the
    function the model computes, and policy and reference must agree exactly on equal inputs.

    Raises:
        UserError: as `architecture` and `rope.rope_parameters`.
    """
    shape = architecture(hf_config)
    theta = rope_parameters(hf_config).rope_theta
    return {
        "num_layers": shape.num_layers,
        "hidden_size": shape.hidden_size,
        "ffn_hidden_size": shape.ffn_hidden_size,
        "num_attention_heads": shape.num_heads,
        "group_query_attention": shape.num_query_groups != shape.num_heads,
        "num_query_groups": shape.num_query_groups,
        "kv_channels": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "untie_embeddings_and_output_weights": not shape.tied_embeddings,
        "max_position_embeddings": _positive_int(hf_config, "max_position_embeddings"),
        "position_embedding_type": "rope",
        "rotary_base": int(theta) if theta.is_integer() else theta,  # Megatron's option is an int
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "normalization": "RMSNorm",
        "layernorm_epsilon": _positive_float(hf_config, "rms_norm_eps", 1e-6),
        "swiglu": True,
        "add_bias_linear": False,
        "add_qkv_bias": shape.qkv_bias,
        "qk_layernorm": shape.qk_norm,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "init_method_std": _positive_float(hf_config, "initializer_range", 0.02),
    }


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    model_type = config.get("model_type")
    if model_type not in SUPPORTED_MODEL_TYPES:
        _refuse("model_type", model_type, f"supported are {', '.join(SUPPORTED_MODEL_TYPES)}")
    if config.get("auto_map"):  # the folder's own class computes something else than model_type says, or may
        advice = f"code of a model is never run; remove it if this is a {model_type} as transformers itself computes it"
        _refuse("auto_map", config["auto_map"], advice)
    if config.get("quantization_config") is not None:
        _refuse("quantization_config", config["quantization_config"], "dequantize the weights to bf16 or fp32 first")
    for field in _EXPERT_FIELDS:
        if config.get(field):
            _refuse(field, config[field], "mixtures of experts are not supported, only dense models")
    if config.get("hidden_act", "silu") != "silu":
        _refuse("hidden_act", config["hidden_act"], "only 'silu' is supported")
    for field in {"llama": ("attention_bias", "mlp_bias"), "qwen3": ("attention_bias",)}.get(model_type, ()):
        if config.get(field):
            _refuse(field, config[field], "biases are not supported here, only false")
    _refuse_sliding_window(config, model_type)


def _refuse_sliding_window(config: Mapping[str, Any], model_type: str) -> None:
    """A window hides the trunk from the branches, so a long context would not be seen at all."""
    advice = 'only full attention is supported; set "sliding_window": null if the model was trained without a window'
    layer_types = config.get("layer_types")
    if layer_types and not (is_array(layer_types) and all(kind == "full_attention" for kind in layer_types)):
        _refuse("layer_types", layer_types, "only 'full_attention' is supported")
    if model_type in ("llama", "mistral"):  # transformers windows the cache of a Llama that has the field, too
        window = config.get("sliding_window", _DEFAULT_WINDOW if model_type == "mistral" else None)
        if window is not None:
            absent = "" if "sliding_window" in config else " (the default where the field is absent)"
            _refuse("sliding_window", window, f"{advice}{absent}")
    else:
        full_layers = config.get("max_window_layers", _DEFAULT_QWEN_MAX_WINDOW_LAYERS)
        if not isinstance(full_layers, int):
            _refuse("max_window_layers", full_layers, "it must be a whole number")
        windowed = config.get("use_sliding_window") and config.get("sliding_window", _DEFAULT_WINDOW) is not None
        if windowed and not layer_types and _positive_int(config, "num_hidden_layers") > full_layers:
            _refuse("use_sliding_window", True, "only full attention is supported; set it to false")


def _positive_int(config: Mapping[str, Any], field: str, most: int = 2**31 - 1) -> int:
    value = config.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        _refuse(field, value, f"it must be a whole number from 1 to {most}")
    return value


def _positive_float(config: Mapping[str, Any], field: str, default: float) -> float:
    value = config.get(field, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        _refuse(field, value, "it must be a number above 0")
    return float(value)


def _flag(config: Mapping[str, Any], field: str) -> bool:
    value = config.get(field, False)
    if not isinstance(value, bool):
        _refuse(field, value, "it must be true or false")
    return value


def _refuse(field: str, value: object, needed: str) -> Never:
    raise UserError(f"config.json: {field} is {json.dumps(value, default=str)}; {needed}")


def check_divides(options: Mapping[str, Any], tensor: int, pipeline: int, source: Path) -> None:
    """The shape of ``source`` (``options``, by Megatron's names) divides by the sizes of the parallel axes.

    Raises:
        UserError: it does not.
    """
    for name, axis, size in (
        ("num_attention_heads", "tensor", tensor),
        ("num_query_groups", "tensor", tensor),
        ("ffn_hidden_size", "tensor", tensor),
        ("num_layers", "pipeline", pipeline),
    ):
        if options[name] % size:
            raise UserError(
                f"{name} = {options[name]} of {source} is not divisible by --{axis}-model-parallel-size {size}; "
                f"choose a divisor"
            )
