"""examples/templates: what each renders, and that the ids are those that the models were trained with."""

from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.data.chat import check_chat_template
from megatron_longpo.data.pair import Pair, Turn
from megatron_longpo.data.render import render_pair
from megatron_longpo.data.tokenizer import load_tokenizer, read_chat_template
from megatron_longpo.errors import UserError
from tests.tokenizers import TEMPLATES, sentencepiece_of

Messages = list[dict[str, str]]

TEMPLATE_OF = {
    "chatml": "chatml",
    "qwen3": "qwen3",
    "mistral-v1": "mistral-v1",
    "mistral-v3": "mistral-v3",
    "llama2": "llama2",
}
TALK = ("A  question?", "One.", "And then?", " Two, after a blank")
RENDERED = {
    "chatml": "<|im_start|>user\nA  question?<|im_end|>\n<|im_start|>assistant\nOne.<|im_end|>\n"
    "<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n Two, after a blank<|im_end|>\n",
    "qwen3": "<|im_start|>user\nA  question?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nOne.<|im_end|>\n"
    "<|im_start|>user\nAnd then?<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n Two, after a blank<|im_end|>\n",
    "mistral-v1": "<s> [INST] A  question? [/INST] One.</s> [INST] And then? [/INST]  Two, after a blank</s>",
    "mistral-v3": "<s>[INST] A  question?[/INST] One.</s>[INST] And then?[/INST]  Two, after a blank</s>",
    "llama2": "<s> [INST] A  question? [/INST] One. </s><s> [INST] And then? [/INST] Two, after a blank </s>",
}
PROMPT = {"chatml": "<|im_start|>assistant\n", "qwen3": "<|im_start|>assistant\n<think>\n\n</think>\n\n"}


def messages_of(*contents: str) -> Messages:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(contents)]


def tokenizer_with_template(folders: dict[str, Path], family: str) -> Any:
    return load_tokenizer(folders[family], read_chat_template(TEMPLATES / f"{TEMPLATE_OF[family]}.jinja"))


def test_every_template_is_tested() -> None:
    assert {path.stem for path in TEMPLATES.glob("*.jinja")} == set(TEMPLATE_OF.values())


@pytest.mark.parametrize("family", TEMPLATE_OF)
def test_what_is_rendered(family: str, tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = tokenizer_with_template(tokenizer_folders, family)
    check_chat_template(tokenizer)
    whole = tokenizer.apply_chat_template(messages_of(*TALK), tokenize=False)
    assert whole == RENDERED[family]
    question = messages_of(*TALK[:3])
    prompt = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert prompt == tokenizer.apply_chat_template(question, tokenize=False) + PROMPT.get(family, "")
    assert whole.startswith(prompt), "a model answers after the very text that it is trained with"


def mistral_v1_ids(encode: Any) -> list[int]:
    """As Mistral's own tokenizer composes them: every text encoded by itself, [INST] a part of the text."""
    return [1] + [
        token
        for question, answer in (TALK[:2], TALK[2:])
        for token in (*encode(f"[INST] {question} [/INST]"), *encode(answer), 2)
    ]


def mistral_v3_ids(encode: Any) -> list[int]:
    """Likewise, with [INST] and [/INST] as tokens 3 and 4."""
    return [1] + [
        token
        for question, answer in (TALK[:2], TALK[2:])
        for token in (3, *encode(question), 4, *encode(answer.rstrip(" ")), 2)
    ]


def llama2_ids(encode: Any) -> list[int]:
    """As Llama 2's own code does: a turn is one text between <s> and </s>, its parts stripped."""
    return [
        token
        for question, answer in (TALK[:2], TALK[2:])
        for token in (1, *encode(f"[INST] {question.strip()} [/INST] {answer.strip()} "), 2)
    ]


@pytest.mark.parametrize(
    ("family", "expected"), [("mistral-v1", mistral_v1_ids), ("mistral-v3", mistral_v3_ids), ("llama2", llama2_ids)]
)
def test_ids_are_composed_as_by_the_models_own_tokenizers(
    family: str, expected: Any, tokenizer_folders: dict[str, Path]
) -> None:
    tokenizer = tokenizer_with_template(tokenizer_folders, family)
    ids = tokenizer.apply_chat_template(messages_of(*TALK), tokenize=True, return_dict=False)
    assert ids == expected(sentencepiece_of(tokenizer_folders[family]).encode)


def test_the_empty_thought_belongs_to_the_header(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = tokenizer_with_template(tokenizer_folders, "qwen3")
    pair = Pair("p", "Long.", (Turn("Short.", "Q?", "Yes.", "No."), Turn("Short.", "R?", "Two.", "Three.")), {})
    rendered = render_pair(pair, tokenizer, 10**6, "refuse")
    assert rendered is not None
    for answers, branch in ((("Yes.", "Two."), rendered.long.chosen), (("No.", "Three."), rendered.long.rejected)):
        texts = [tokenizer.decode(branch.tokens[start:end].tolist()) for start, end in branch.spans]
        assert texts == [f"{answer}<|im_end|>" for answer in answers]
    prompt = tokenizer.apply_chat_template(
        messages_of("Long.\n\nQ?"), add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert [*rendered.long.trunk, rendered.long.chosen.tokens[0]] == prompt


def test_a_template_that_thinks_in_the_last_turn_only_is_told_of_these(tokenizer_folders: dict[str, Path]) -> None:
    """As Qwen3's own one: the empty thought stands in the last answer alone, so no answer is a prefix of the next."""
    tokenizer = load_tokenizer(
        tokenizer_folders["qwen3"],
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ m.content + '<|im_end|>\n' }}{% endfor %}",
    )
    with pytest.raises(UserError, match=r"not prefix-stable.* --chat-template \(examples/templates has some\)"):
        check_chat_template(tokenizer)


def test_an_answer_with_a_thought_is_refused(tokenizer_folders: dict[str, Path]) -> None:
    tokenizer = tokenizer_with_template(tokenizer_folders, "qwen3")
    pair = Pair("p", "Long.", (Turn("Short.", "Q?", "<think>\nhm\n</think>\n\nYes.", "No."),), {})
    with pytest.raises(UserError, match=r"pair 'p': .*an answer holds a thought"):
        render_pair(pair, tokenizer, 10**6, "refuse")


def test_system_messages(tokenizer_folders: dict[str, Path]) -> None:
    talk = [{"role": "system", "content": "Be brief."}, *messages_of("Q?")]
    rendered = {
        "chatml": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQ?<|im_end|>\n",
        "llama2": "<s> [INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nQ? [/INST]",
    }
    for family, text in rendered.items():
        assert tokenizer_with_template(tokenizer_folders, family).apply_chat_template(talk, tokenize=False) == text
    for family in ("mistral-v1", "mistral-v3"):
        with pytest.raises(Exception, match="write a system prompt into the first user message"):
            tokenizer_with_template(tokenizer_folders, family).apply_chat_template(talk, tokenize=False)
