"""A small random model that chats: Llama's shape, the ChatML test tokenizer, answers of random tokens."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from megatron_longpo.generate.engine import Request, Sampling
from tests.tokenizers import chatml_tokenizer

CONTEXT = 512


def save_chat_model(folder: Path, model_type: str = "llama", **overrides: Any) -> Path:
    """A Hugging Face folder; weights large enough that every token of the prompt matters to the next."""
    chatml_tokenizer(folder)
    options = {
        "vocab_size": len(AutoTokenizer.from_pretrained(folder)),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "rope_theta": 1e4,
        "eos_token_id": None,
    }
    config = AutoConfig.for_model(model_type, **(options | overrides))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.25, generator=generator)
    model.save_pretrained(folder)
    return folder


def ask(text: str, seed: int = 1, context: str = "short", **sampling: Any) -> Request:
    """A request of one message."""
    values = {"temperature": 1.0, "top_p": 0.95, "max_new_tokens": 12} | sampling
    messages = ({"role": "user", "content": text},)
    return Request(messages=messages, sampling=Sampling(**values), seed=seed, context=context)
