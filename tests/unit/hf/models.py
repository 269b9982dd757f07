"""Small random Hugging Face folders, one for every shape of model that the door has to pass."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCAB_SIZE = 101  # odd, so that every padding shows
_SIZES = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_attention_heads": 4, "num_key_value_heads": 4, "rope_theta": 5e5}),
    "llama-tied-groups": ("llama", {"num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "mistral-wide-heads": (
        "mistral",
        {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 12, "sliding_window": None},
    ),
    "qwen2": ("qwen2", {"num_attention_heads": 8, "num_key_value_heads": 4, "rope_theta": 1e6}),
    "qwen2-tied": ("qwen2", {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12, "rope_theta": 1e6}),
    "qwen3-tied": (
        "qwen3",
        {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": True},
    ),
}


def save_model(folder: Path, name: str = "llama", dtype: torch.dtype = torch.float32, **overrides: Any) -> Path:
    """Write the shape ``name`` of SHAPES, with ``overrides`` of its configuration, as transformers does.

    Every parameter is random, norms and biases too, and large enough that a wrong one shows in the logits.
    """
    model_type, options = SHAPES[name]
    config = AutoConfig.for_model(model_type, **{**_SIZES, "max_position_embeddings": 128, **options, **overrides})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.2 if parameter.ndim > 1 else 1.0, 0.2, generator=generator)
            if parameter.ndim > 1:
                parameter.sub_(0.2)
    model.to(dtype).save_pretrained(folder)  # pyright: ignore[reportArgumentType]  # transformers' wrapper is mistyped
    save_tokenizer(folder)
    (folder / "LICENSE").write_text("as you like\n", encoding="utf-8")
    return folder


def save_tokenizer(folder: Path) -> None:
    vocabulary = {f"w{index}": index for index in range(VOCAB_SIZE - 4)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    template = "{% for message in messages %}{{ message.content }} w1 {% endfor %}"
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="w1", chat_template=template).save_pretrained(folder)


def edit_config(folder: Path, **changes: Any) -> None:
    """Change fields of ``folder/config.json``; None as a value is written as null."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **changes}), encoding="utf-8")
