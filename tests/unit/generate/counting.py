"""Tokens as the tokenizer itself counts them."""

from typing import Any


def tokens_alone(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False).input_ids)
