"""Prompts are counted as transformers' own chat templating tokenises them."""

from pathlib import Path

import pytest

from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.errors import UserError
from megatron_longpo.generate.engines.prompt_length import prompt_ids, prompt_tokens, require_room
from tests.unit.generate.chat_models import ask

MESSAGES = [
    {"role": "user", "content": "One line.\n\n  Another, indented: caf\u00e9 \u4e2d\u6587."},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?"},
]


@pytest.mark.parametrize("family", ["chatml", "mistral", "llama3", "qwen3", "llama2"])
def test_ids_are_those_of_the_chat_template(tokenizer_folders: dict[str, Path], family: str) -> None:
    tokenizer = load_tokenizer(tokenizer_folders[family])
    expected = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert prompt_ids(tokenizer, MESSAGES) == expected
    assert prompt_tokens(tokenizer, MESSAGES) == len(expected)


@pytest.mark.parametrize("family", ["chatml", "mistral", "llama3", "qwen3", "llama2"])
def test_a_begun_answer_is_continued_as_transformers_continues_it(
    tokenizer_folders: dict[str, Path], family: str
) -> None:
    tokenizer = load_tokenizer(tokenizer_folders[family])
    begun = [*MESSAGES, {"role": "assistant", "content": "Because the answer is"}]
    expected = tokenizer.apply_chat_template(begun, continue_final_message=True, return_dict=False)
    ids = prompt_ids(tokenizer, MESSAGES, "Because the answer is")
    assert ids == expected
    assert ids[-1] != prompt_ids(tokenizer, begun[:-1])[-1]


def test_room_is_for_prompt_and_answer() -> None:
    request = ask("-", context="long", max_new_tokens=10)
    require_room(request, 90, {"short": 0, "long": 100})
    with pytest.raises(UserError, match="a prompt of 91 tokens and an answer of up to 10 need a long context of 101"):
        require_room(request, 91, {"short": 1000, "long": 100})
