"""config.json -> Megatron options: equal to what transformers makes of the same file, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from megatron_longpo.errors import UserError
from megatron_longpo.hf.config import megatron_options
from megatron_longpo.strict_json import read_json_object

REQUIRED = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 128,
}
LLAMA = {"model_type": "llama", **REQUIRED}
MISTRAL = {"model_type": "mistral", "sliding_window": None, **REQUIRED}
QWEN2 = {"model_type": "qwen2", **REQUIRED, "num_key_value_heads": 4}
QWEN3 = {**QWEN2, "model_type": "qwen3"}


@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        MISTRAL,
        QWEN2,
        {**QWEN2, "num_attention_heads": 32, "head_dim": 6} | {"num_key_value_heads": 32},
        {**QWEN2, "num_key_value_heads": None},
        {key: value for key, value in {**QWEN2, "num_attention_heads": 32}.items() if key != "num_key_value_heads"},
        {**LLAMA, "num_key_value_heads": 2, "head_dim": 24, "rms_norm_eps": 1e-5, "initializer_range": 0.01},
        {**LLAMA, "num_key_value_heads": None, "head_dim": None, "rope_theta": 5e5, "rope_scaling": None},
        {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 12345.5}, "tie_word_embeddings": True},
        {**LLAMA, "rope_parameters": {"rope_theta": 2e6}, "rope_theta": 3e6},
        {**LLAMA, "rope_scaling": {"type": "default", "rope_theta": 4e6}, "rope_parameters": {"rope_theta": 2e6}},
        {**QWEN2, "use_sliding_window": False, "sliding_window": 16},
        {**QWEN2, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 4},
        {**QWEN2, "layer_types": ["full_attention"] * 4},
        QWEN3,
        {**QWEN3, "head_dim": 24},
        {**QWEN3, "num_key_value_heads": None},
    ],
)
def test_equals_what_transformers_reads(config: dict[str, Any]) -> None:
    """Absent fields included: transformers' own configuration classes are the oracle."""
    options = megatron_options(config)
    theirs = AutoConfig.for_model(**json.loads(json.dumps(config))).to_dict()
    head_dim = theirs.get("head_dim") or theirs["hidden_size"] // theirs["num_attention_heads"]
    assert options == {
        "num_layers": theirs["num_hidden_layers"],
        "hidden_size": theirs["hidden_size"],
        "ffn_hidden_size": theirs["intermediate_size"],
        "num_attention_heads": theirs["num_attention_heads"],
        "group_query_attention": theirs["num_key_value_heads"] < theirs["num_attention_heads"],
        "num_query_groups": theirs["num_key_value_heads"],
        "kv_channels": head_dim,
        "vocab_size": theirs["vocab_size"],
        "untie_embeddings_and_output_weights": not theirs["tie_word_embeddings"],
        "max_position_embeddings": theirs["max_position_embeddings"],
        "position_embedding_type": "rope",
        "rotary_base": theirs["rope_parameters"]["rope_theta"],
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "normalization": "RMSNorm",
        "layernorm_epsilon": theirs["rms_norm_eps"],
        "swiglu": True,
        "add_bias_linear": False,
        "add_qkv_bias": config["model_type"] == "qwen2",
        "qk_layernorm": config["model_type"] == "qwen3",
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "init_method_std": theirs["initializer_range"],
    }


def test_every_option_is_one_of_megatrons() -> None:
    """The dests exist in Megatron's parser, and take a value of the type given (rotary_base may be fractional)."""
    import argparse

    from megatron.training.arguments import add_megatron_arguments

    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_megatron_arguments(parser)
    actions = {action.dest: action for action in parser._actions}
    for name, value in megatron_options(LLAMA).items():
        taken = actions[name].type or (bool if actions[name].nargs == 0 else str)
        assert isinstance(value, taken), name  # type: ignore[arg-type]


def test_whole_rotary_base_is_an_int() -> None:
    """Megatron's option is an int; a fraction survives as it is."""
    assert repr(megatron_options({**LLAMA, "rope_theta": 1e7})["rotary_base"]) == "10000000"
    assert repr(megatron_options({**LLAMA, "rope_theta": 0.5})["rotary_base"]) == "0.5"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**LLAMA, "model_type": "gpt2"}, 'model_type is "gpt2"; supported are llama, mistral, qwen2, qwen3'),
        ({**REQUIRED}, "model_type is null"),
        ({**LLAMA, "model_type": ["llama"]}, 'model_type is ["llama"]'),
        ({**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 'rope_scaling: rope_type is "dynamic"'),
        ({**MISTRAL, "sliding_window": 4096}, "sliding_window is 4096"),
        ({"model_type": "mistral", **REQUIRED}, "sliding_window is 4096; only full attention"),
        ({**QWEN2, "use_sliding_window": True, "max_window_layers": 2}, "use_sliding_window is true"),
        ({**QWEN2, "max_window_layers": None}, "max_window_layers is null"),
        ({**QWEN2, "layer_types": ["full_attention", "sliding_attention"] * 2}, "layer_types is"),
        ({**LLAMA, "sliding_window": 4096}, "sliding_window is 4096; only full attention"),
        ({**LLAMA, "layer_types": ["sliding_attention"] * 4}, "layer_types is"),
        ({**MISTRAL, "layer_types": 4}, "layer_types is 4"),
        ({**LLAMA, "attention_bias": True}, "attention_bias is true"),
        ({**QWEN3, "attention_bias": True}, "attention_bias is true"),
        ({**QWEN3, "use_sliding_window": True, "max_window_layers": 2}, "use_sliding_window is true"),
        ({**LLAMA, "mlp_bias": True}, "mlp_bias is true"),
        ({**LLAMA, "hidden_act": "gelu"}, 'hidden_act is "gelu"'),
        ({**LLAMA, "quantization_config": {"bits": 4}}, 'quantization_config is {"bits": 4}'),
        ({**MISTRAL, "num_local_experts": 8}, "num_local_experts is 8"),
        ({**LLAMA, "hidden_size": None}, "hidden_size is null; it must be a whole number"),
        ({**LLAMA, "hidden_size": "64"}, 'hidden_size is "64"'),
        ({**LLAMA, "hidden_size": 60}, "must be a multiple of 8"),
        ({**LLAMA, "num_hidden_layers": True}, "num_hidden_layers is true"),
        ({**LLAMA, "num_hidden_layers": 10**30}, "it must be a whole number from 1 to 10000"),
        ({**LLAMA, "vocab_size": 0}, "vocab_size is 0"),
        ({**LLAMA, "max_position_embeddings": 1.5}, "max_position_embeddings is 1.5"),
        ({**LLAMA, "num_key_value_heads": 3}, "num_key_value_heads is 3; it must divide"),
        ({**LLAMA, "head_dim": 7}, "head_dim is 7; rotary"),
        ({**LLAMA, "rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06"),
        ({**LLAMA, "tie_word_embeddings": "no"}, 'tie_word_embeddings is "no"; it must be true or false'),
    ],
)
def test_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        megatron_options(config)
    assert message in str(caught.value)
    assert str(caught.value).startswith("config.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n\n oops}', ":3: not valid JSON"),
        (b"[1]", "holds a JSON list, needs an object"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"", ":1: not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_json(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_json_object(path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_json_object(tmp_path / "config.json")
    (tmp_path / "file").touch()
    for path, message in ((tmp_path, "Is a directory"), (tmp_path / "file" / "config.json", "Not a directory")):
        with pytest.raises(UserError, match=f"^{path}: {message}; it must be a JSON file"):
            read_json_object(path)
