"""Counts from memory are the tokenizer's own, for every part of every text."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.generate.corpus import cells, token_count
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


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40)
@given(text=texts, data=st.data())
def test_any_part_has_the_tokens_it_has_alone(counters: Any, family: str, text: str, data: Any) -> None:
    tokenizer, counter = counters[family]
    text = text.encode("utf-8", "ignore").decode()
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_count, "BLOCK_CHARACTERS", 16)
        patch.setattr(token_count, "BLOCKS_AT_A_TIME", 2)
        ruler = Ruler(text, counter)
        assert ruler.tokens(start, end) == tokens_alone(tokenizer, text[start:end])
        fits, behind = ruler.around(start, 7)
        if fits < len(text):
            assert ruler.estimate(start, fits) <= 7
        assert behind == len(text) or ruler.estimate(start, behind) > 7


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_have_cells(counters: Any, family: str) -> None:
    assert cells.BLANK in counters[family][1].cells.kinds


def test_cells_are_cut_where_words_end(counters: Any) -> None:
    kinds = {family: counters[family][1].cells.kinds.intersection(cells.INSIDE) for family in FAMILIES}
    gpt2, qwen = {cells.LETTER, cells.DIGIT, cells.MARK}, {cells.LETTER, cells.DIGIT}
    assert kinds == {"gpt2": gpt2, "chatml": qwen, "llama3": qwen, "mistral": set(), "llama2": set()}
    keys = [" f(x1)[0]", " don't", " 2nd<|im_end|>"]
    parts, sizes = counters["gpt2"][1].cells.parts([key.lstrip() for key in keys])
    assert parts == [" f", "(", "x", "1", ")[", "0", "]", " don", "'t", " 2nd<|im_end|>"] and sizes == [7, 2, 1]


@pytest.mark.parametrize(
    ("first_byte", "kinds"),
    [("\u00e2", {cells.DIGIT, cells.MARK}), ("\u00e1", {cells.LETTER, cells.DIGIT, cells.MARK})],
    ids=["of a mark", "of a letter"],
)
def test_an_entry_that_ends_within_a_mark_forbids_the_cut_before_it(first_byte: str, kinds: set[str]) -> None:
    backend = Tokenizer(models.BPE(_numbered("a", *"\u00e1\u00e2\u0122\u013f", f"a{first_byte}"), [("a", first_byte)]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    quote = ["a\u00e2"] if first_byte == "\u00e2" else ["a", "\u00e2"]
    assert backend.encode("a\u201d").tokens == [*quote, "\u0122", "\u013f"]
    tried = cells.cells_of(backend)
    assert tried is not None and tried.kinds.intersection(cells.INSIDE) == kinds


def _numbered(*entries: str) -> dict[str, int]:
    return {entry: index for index, entry in enumerate(entries)}


def test_real_text_with_few_cells_kept(counters: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_count, "MAX_CACHED_CELLS", 300)
    text = (Path(__file__).resolve().parents[3] / "LICENSE").read_text(encoding="utf-8")
    tokenizer, counter = counters["chatml"]
    assert counter(text) == tokens_alone(tokenizer, text)
    assert len(counter._counts) <= 300 + len(text) // 16


@pytest.mark.parametrize("family", ["mistral", "llama2"])
@pytest.mark.parametrize("text", ["a\u2581 b", "a \u2581 b", "x</s> y </s>  z", "\u2581 \u2581\u2581  "])
def test_marks_and_added_tokens_in_a_text(counters: Any, family: str, text: str) -> None:
    tokenizer, counter = counters[family]
    assert counter(text) == tokens_alone(tokenizer, text)


def test_truncation_and_padding_of_the_tokenizer_do_not_count(tokenizer_folders: dict[str, Path]) -> None:
    backend = load_tokenizer(tokenizer_folders["chatml"]).backend_tokenizer
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    assert TokenCounter(backend)("one two three four five, six") > 6
    assert len(backend.encode("one two three four five, six").ids) == 50


def test_a_kind_of_cut_that_changes_the_tokens_is_found_out(tokenizer_folders: dict[str, Path]) -> None:
    backend = load_tokenizer(tokenizer_folders["chatml"]).backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's: a line feed stays with the next
    counter = TokenCounter(backend)
    tried = cells.cells_of(backend)
    assert tried is not None and cells.LINE in tried.kinds and counter.cells is not None
    assert cells.LINE not in counter.cells.kinds
    assert counter.in_cells(tried.only({cells.LINE}), ["a\n\nb"]) != counter.whole(["a\n\nb"])


@cache
def phrase_tokenizer(looks_behind: bool) -> Tokenizer:
    """A vocabulary of phrases: its entries span blanks."""
    backend = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=600, show_progress=False, initial_alphabet=[chr(code) for code in range(128)]
    )
    lines = (Path(__file__).resolve().parents[3] / "LICENSE").read_text(encoding="utf-8")[:4000].split("\n\n")
    backend.train_from_iterator((" ".join(line.split()) for line in lines), trainer)
    if looks_behind:
        backend.pre_tokenizer = pre_tokenizers.Split(Regex("(?<=a) "), "isolated")
    return backend


@cache
def counter_of_phrases(looks_behind: bool) -> TokenCounter:
    return TokenCounter(phrase_tokenizer(looks_behind))


@pytest.mark.parametrize("looks_behind", [False, True])
@given(text=st.text("ab the of\n.", max_size=200), data=st.data())
def test_a_tokenizer_without_cells_counts_whole_texts(looks_behind: bool, text: str, data: Any) -> None:
    backend = phrase_tokenizer(looks_behind)
    assert any(" " in entry.strip() for entry in backend.get_vocab())
    counter = counter_of_phrases(looks_behind)
    assert counter.cells is None or cells.BLANK not in counter.cells.kinds
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    assert Ruler(text, counter).tokens(start, end) == len(backend.encode(text[start:end]).ids)


def test_a_text_without_cuts_is_counted_whole(counters: Any) -> None:
    tokenizer, counter = counters["chatml"]
    text = "one two " * 500 + "\u4e2d\u6587" * 20_000 + " one two" * 500
    ruler = Ruler(text, counter)
    assert ruler.tokens(7, len(text) - 3) == tokens_alone(tokenizer, text[7:-3])
    assert abs(ruler.estimate(0, len(text)) - tokens_alone(tokenizer, text)) < 100
