"""A conversation that begins as another one was tokenised: only its end is, and the tokens are those of the whole."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from megatron_longpo.data import tokenise as module
from megatron_longpo.data.chat import render_text
from megatron_longpo.data.tokenise import Codec, Tokens, codec_of, tokenise
from megatron_longpo.data.tokenizer import chat_template_of, load_tokenizer
from tests import tokenizers

FAMILIES = {
    "chatml": tokenizers.chatml_tokenizer,
    "gpt2": tokenizers.gpt2_tokenizer,
    "llama3": tokenizers.llama3_tokenizer,
    "mistral": tokenizers.mistral_tokenizer,
    "qwen3": tokenizers.qwen3_tokenizer,
    "sentencepiece": lambda folder: tokenizers.bare_folder(folder, "llama2"),
}
PIECES = [
    "the licence", " grants", "  \t", "\n\n", "\r\n", "12345678", "!!!", "...abc", "don't", "e\u0301", "\u00fc\u00df",
    "\u4e2d\u6587\u5b57\u7b26", "\U0001f600\U0001f468\u200d\U0001f469", "\u00a0", "_", "\u2581", "x" * 40,
    "a,b;c", "\u0e01\u0e33",
]  # fmt: skip
FIELDS = ("ids", "starts", "ends", "spans")


@pytest.fixture(scope="module", params=FAMILIES)
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Codec:
    make: Callable[[Path], Path] = FAMILIES[request.param]
    tokenizer = load_tokenizer(make(tmp_path_factory.mktemp(request.param)))
    return codec_of(tokenizer, chat_template_of(tokenizer))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Characters of every text that is tokenised."""
    lengths: list[int] = []
    encode = module._encode

    def counted(codec: Codec, text: str) -> Any:
        lengths.append(len(text))
        return encode(codec, text)

    monkeypatch.setattr(module, "_encode", counted)
    return lengths


def both(codec: Codec, context: str, answers: tuple[str, str]) -> tuple[Tokens, Tokens]:
    """The second answer's conversation, tokenised whole and like the first one's."""
    first, second = (render_text(codec.tokenizer, context, ["Which one?"], [answer]) for answer in answers)
    return tokenise(codec, second), tokenise(codec, second, like=(first, tokenise(codec, first)))


@pytest.mark.parametrize("seed", range(8))
def test_same_tokens(codec: Codec, seed: int) -> None:
    draw = random.Random(seed)
    context = "".join(draw.choice(PIECES) for _ in range(draw.choice((0, 3, 40, 400))))
    answers = ("".join(draw.choice(PIECES) for _ in range(5)) + end for end in ("one", "other"))
    whole, joined = both(codec, context, ("A: " + next(answers), "B: " + next(answers)))
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(whole, field), getattr(joined, field))


def test_only_the_end_is_tokenised(codec: Codec, encoded: list[int]) -> None:
    both(codec, "This licence grants you a right. " * 200, ("Yes.", "No."))
    whole, first, end = encoded
    assert whole == first - 1
    assert end < whole / 4


def test_other_texts_share_nothing(codec: Codec, encoded: list[int]) -> None:
    first, second = (
        render_text(codec.tokenizer, f"{context} {'word ' * 200}", ["Which?"], ["An answer."]) for context in "ab"
    )
    found = tokenise(codec, second, like=(first, tokenise(codec, first)))
    np.testing.assert_array_equal(found.ids, tokenise(codec, second).ids)
    assert encoded[1] == len(second.text)


def test_another_model_of_tokens_is_tokenised_whole(tmp_path: Path, encoded: list[int]) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tokenizers.chatml_tokenizer(tmp_path))
    codec = codec_of(tokenizer, chat_template_of(tokenizer))
    by_chance = Codec(codec.tokenizer, codec.backend, codec.added_ids, codec.control_token, merges=False)
    both(by_chance, "This licence grants you a right. " * 200, ("Yes.", "No."))
    assert encoded[2] == encoded[0]
