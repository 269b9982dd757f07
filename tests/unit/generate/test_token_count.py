"""Counts are the tokenizer's own wherever they decide something, for every part of every text."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, trainers

from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.generate.corpus import token_count
from megatron_longpo.generate.corpus.token_count import Ruler, TokenCounter
from tests.unit.generate.counting import tokens_alone

FAMILIES = ("chatml", "llama3", "mistral", "llama2", "gpt2")
WORDS = (
    "the", "The", "don't", "x'S", "_it_", "3.14", "1234567", "e\u0301", "\u4e2d\u6587", "\u00bd", "...", "--", "(a)",
    "<|im_end|>", "</s>", "\ufdd0", "\u2019s", "\U0001f642", "\u200b", "\x1c", "<0x0A>", "\u2581", "na\u00efve",
    "\u0301", "(it's)", "2nd", "v1.0b", "f(x=1)", "a\u201db\u2014c", "\ufffd",
)  # fmt: skip
SPACES = (" ", " ", " ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\r\n", "\u00a0", "\u3000 ", "\n\n    ", "")
texts = st.lists(st.one_of(st.sampled_from(WORDS + SPACES), st.text(max_size=4)), max_size=60).map("".join)


@pytest.fixture(autouse=True)
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_count, "BLOCK_CHARACTERS", 16)
    monkeypatch.setattr(token_count, "BLOCKS_AT_A_TIME", 2)


def check_parts(text: str, counter: TokenCounter, tokens_of: Callable[[str], int], data: Any) -> None:
    """Any part, against any bound; asked in any order."""
    ruler = Ruler(text, counter)
    for _ in range(3):
        start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
        bound = data.draw(st.integers(0, len(text)))
        tokens = tokens_of(text[start:end])
        assert ruler.tokens(start, end) == tokens
        compared = ruler.compare(start, end, bound)
        assert (compared <= bound, compared >= bound) == (tokens <= bound, tokens >= bound)
        fits, behind = ruler.around(start, bound)
        assert start <= fits <= behind
        assert tokens_of(text[start:fits]) <= bound
        assert behind == len(text) or tokens_of(text[start:behind]) > bound


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts, data=st.data())
def test_any_part_against_any_bound(counters: Any, family: str, text: str, data: Any) -> None:
    tokenizer, counter = counters[family]
    check_parts(text.encode("utf-8", "ignore").decode(), counter, partial(tokens_alone, tokenizer), data)


@pytest.fixture(scope="module")
def phrases() -> Tokenizer:
    """A vocabulary of phrases: its entries span blanks."""
    backend = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, initial_alphabet=[chr(code) for code in range(128)]
    )
    lines = (Path(__file__).resolve().parents[3] / "LICENSE").read_text(encoding="utf-8")[:4000].split("\n\n")
    backend.train_from_iterator((" ".join(line.split()) for line in lines), trainer)
    assert any(" " in entry.strip() for entry in backend.get_vocab())
    return backend


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text("ab the of\n.", max_size=200), data=st.data())
def test_a_tokenizer_whose_entries_span_words(phrases: Tokenizer, text: str, data: Any) -> None:
    check_parts(text, TokenCounter(phrases), lambda part: len(phrases.encode(part).ids), data)


def test_a_text_is_read_as_far_as_it_was_asked_about(counters: Any) -> None:
    ruler = Ruler("one two three " * 1000, counters["chatml"][1])
    assert ruler._end == 0
    ruler.compare(0, 20, 3)
    ruler.around(40, 5)
    assert 20 <= ruler._end < 300


def test_batches(counters: Any) -> None:
    tokenizer, counter = counters["mistral"]
    parts = ["", "a", "one two", "</s>", "\u4e2d\u6587" * 100]
    assert counter.batch(parts) == [tokens_alone(tokenizer, part) for part in parts]
    assert counter.batch([]) == []


def test_truncation_and_padding_of_the_tokenizer_do_not_count(tokenizer_folders: dict[str, Path]) -> None:
    backend = load_tokenizer(tokenizer_folders["chatml"]).backend_tokenizer
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    assert TokenCounter(backend)("one two three four five, six") > 6
    assert len(backend.encode("one two three four five, six").ids) == 50
