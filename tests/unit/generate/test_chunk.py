"""The invariants of chunk.py, held against the tokenizer run on every chunk and every possible end alone."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.errors import UserError
from megatron_longpo.generate.corpus.borders import LEVELS, Borders
from megatron_longpo.generate.corpus.chunk import Chunk, Chunker
from megatron_longpo.generate.corpus.sentences import Sentences
from megatron_longpo.generate.corpus.token_count import TokenCounter
from tests.unit.generate.counting import tokens_alone

FAMILIES = ("chatml", "mistral")
LINES = (
    "# Heading", "\\section{One}", "def f(x):", "    return x", "A sentence. Another one! And Dr. Who asks?", "", "",
    "", "word " * 30, "\u4e2d\u6587\u3002\u65e5\u672c\u8a9e\u3002", "```", "x" * 70, "class A:",
    "@decorator", "# comment",
)  # fmt: skip
texts = st.lists(st.one_of(st.sampled_from(LINES), st.text("ab. \n\r", max_size=40)), max_size=80).map("\n".join)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEGATRON_LONGPO_HOME", str(tmp_path_factory.mktemp("home")))
        yield Sentences(lambda: "Dr. Who came. He left. Dr. No stayed. Then he went.\n\n" * 50)


def chunk_text(
    text: str, domain: Any, count: TokenCounter, sentences: Sentences, *, min_tokens: int, max_tokens: int
) -> Iterator[Chunk]:
    """All chunks of a text, one after the other, with the same bounds."""
    chunker = Chunker(text, domain, count, sentences)
    start = 0
    while start < len(text):
        chunk = chunker.chunk(start, min_tokens=min_tokens, max_tokens=max_tokens)
        yield chunk
        start = chunk.end


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("domain", LEVELS)
@settings(max_examples=25)
@given(text=texts, bounds=st.tuples(st.integers(1, 120), st.integers(40, 200)))
def test_chunks_give_back_the_text_within_their_bounds_at_the_strongest_borders(
    counters: Any, sentences: Sentences, family: str, domain: Any, text: str, bounds: tuple[int, int]
) -> None:
    tokenizer, counter = counters[family]
    low, high = bounds[0], sum(bounds)
    chunks = list(chunk_text(text, domain, counter, sentences, min_tokens=low, max_tokens=high))
    assert "".join(text[chunk.start : chunk.end] for chunk in chunks) == text
    borders = Borders(text, domain, sentences)
    for chunk in chunks:
        assert chunk.num_tokens == tokens_alone(tokenizer, text[chunk.start : chunk.end]) <= high
        assert text[chunk.end - 1 : chunk.end + 1] != "\r\n"
        if chunk is chunks[-1]:
            continue
        assert chunk.num_tokens >= low
        assert tokens_alone(tokenizer, text[chunk.start :]) > high
        for level in LEVELS[domain]:
            ends = borders.within(level, chunk.start + 1, len(text))
            fitting = [end for end in ends if low <= tokens_alone(tokenizer, text[chunk.start : end]) <= high]
            if fitting:
                assert chunk.end == fitting[-1], level
                break


@pytest.mark.parametrize("bounds", [(0, 100), (100, 100), (100, 131), (-1, 50)])
def test_bounds_that_cannot_be_held_are_refused(counters: Any, sentences: Sentences, bounds: tuple[int, int]) -> None:
    low, high = bounds
    with pytest.raises(UserError, match=f"chunks of {low} to {high} tokens"):
        list(chunk_text("text", "prose", counters["chatml"][1], sentences, min_tokens=low, max_tokens=high))


@pytest.mark.parametrize(
    ("repeated", "times"),
    [("\U0001f642", 5000), ("\n", 20_000), (" ", 20_000), ("x", 40_000), ("\u4e2d\u6587", 20_000)],
)
def test_texts_without_any_border(counters: Any, sentences: Sentences, repeated: str, times: int) -> None:
    text = repeated * times
    tokenizer, counter = counters["chatml"]
    chunks = list(chunk_text(text, "prose", counter, sentences, min_tokens=1000, max_tokens=2000))
    assert "".join(text[chunk.start : chunk.end] for chunk in chunks) == text
    counts = [tokens_alone(tokenizer, text[chunk.start : chunk.end]) for chunk in chunks]
    assert counts == [chunk.num_tokens for chunk in chunks]
    assert max(counts) <= 2000 and min(counts[:-1], default=2000) >= 1000


@pytest.mark.slow
def test_a_document_of_ten_megabytes_takes_little_memory(counters: Any, sentences: Sentences) -> None:
    generator = random.Random(0)
    words = ["".join(generator.choices("etaoinshr", k=generator.randint(2, 9))) for _ in range(20_000)]
    paragraphs = (" ".join(generator.choices(words, k=80)) for _ in range(21_000))
    text = "\n\n".join(paragraphs)
    assert len(text) > 10_000_000
    Path("/proc/self/clear_refs").write_text("5")  # Linux: reset the peak to what is resident now
    before = resident_megabytes("VmRSS")
    chunks = sum(
        1 for _ in chunk_text(text, "prose", counters["chatml"][1], sentences, min_tokens=8000, max_tokens=16000)
    )
    assert chunks > 100
    # Four bytes a token, a batch of blocks, and the allocators' slack; the text has 10 MB.
    assert resident_megabytes("VmHWM") - before < 60


def resident_megabytes(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith(f"{field}:"))
