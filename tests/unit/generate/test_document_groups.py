"""Units, repeated documents and long contexts."""

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.errors import UserError
from megatron_longpo.generate.corpus import deduplicate
from megatron_longpo.generate.corpus.contexts import ContextShape, long_contexts
from megatron_longpo.generate.corpus.deduplicate import Repeats
from megatron_longpo.generate.corpus.document_groups import Unit, units
from megatron_longpo.generate.corpus.documents import Counts, Document
from megatron_longpo.generate.corpus.sentences import Sentences
from megatron_longpo.generate.corpus.token_count import TokenCounter

SHAPE = ContextShape(num_chunks=3, min_tokens=40, max_tokens=100, context_tokens=280)


def documents(texts: Iterable[str], domain: Any = "prose", source: str = "") -> list[Document]:
    return [Document(f"d{index}", text, domain, f"f:{index}", source) for index, text in enumerate(texts)]


def words(num_words: int, seed: int) -> str:
    generator = random.Random(seed)
    return " ".join("".join(generator.choices("abcdefgh", k=4)) for _ in range(num_words))


def made(given_documents: list[Document], **options: Any) -> tuple[list[Unit], Counts]:
    counts = Counts()
    defaults: dict[str, Any] = {"min_tokens": 100, "short": "join"}
    settings = defaults | {"count_tokens": lambda text: len(text.split()), "counts": counts} | options
    return list(units(given_documents, **settings)), counts


def test_short_documents_are_joined_until_they_are_long_enough() -> None:
    found, counts = made(documents([words(60, 1), words(300, 2), words(40, 3), words(10, 4), words(9, 5)]))
    assert [(unit.id, unit.index) for unit in found] == [("d1", 0), ("d0+2", 1)]
    assert found[1].text == "\n\n".join([words(60, 1), words(40, 3), words(10, 4)])
    assert (counts.units, counts.joined, counts.short) == (2, 3, 1)


def test_domains_are_not_mixed_and_ids_stay_unique() -> None:
    mixed = [*documents([words(60, 1)]), Document("d0+1", words(200, 2), "code", "f", "")]
    mixed += [Document("c", words(60, 3), "code", "f", ""), Document("e", words(60, 4), "prose", "f", "")]
    found, counts = made(mixed)
    assert [(unit.id, unit.domain) for unit in found] == [("d0+1+0", "code"), ("d0+1", "prose")]
    assert counts.short == 1


def test_short_documents_can_be_skipped() -> None:
    found, counts = made(documents([words(60, 1), words(300, 2), words(60, 3)]), short="skip")
    assert [unit.id for unit in found] == ["d1"] and counts.short == 2


def test_every_shard_numbers_the_units_alike() -> None:
    given_documents = documents([words(30 + 37 * seed % 200, seed) for seed in range(40)])
    together, all_counts = made(given_documents)
    shards = [made(given_documents, shard=(number, 3)) for number in range(3)]
    assert sorted((unit for found, _ in shards for unit in found), key=lambda unit: unit.index) == together
    assert all(counts == all_counts for _, counts in shards) and all(unit.index % 3 == 2 for unit in shards[2][0])
    with pytest.raises(UserError, match="shard 3 of 3: shards are numbered from 0 to 2"):
        made(given_documents, shard=(3, 3))


def test_no_more_than_a_sample_of_a_source_is_tokenised() -> None:
    tokenised = list[int]()

    def count(text: str) -> int:
        tokenised.append(len(text))
        return len(text.split())

    made(documents([words(2000, seed) for seed in range(60)], source="rows.jsonl"), count_tokens=count)
    assert sum(tokenised) == 100_000


def test_repeated_documents_are_dropped() -> None:
    first, second = [words(15, seed) for seed in range(10)], [words(15, 100 + seed) for seed in range(10)]
    texts = [
        "\n\n".join(first),
        "\n\n".join(part.replace(" ", "\n  ") for part in first),  # the same but for white space
        "\n\n".join(first[:6] + second[:4]),  # more than half known
        "\n\n".join(first[:4] + second[:6]),  # less
        "\n\n".join(second[6:] * 2 + second[6:]),  # repeats itself, nothing earlier
        "short\n\nlines\n\nalone",
        "short\n\nlines\n\nalone",
        "short\n\nlines\n\nmore",
    ]
    found, counts = made(documents(texts), min_tokens=1)
    assert [unit.id for unit in found] == ["d0", "d3", "d4", "d5", "d7"] and counts.duplicate == 3
    assert len(made(documents(texts), min_tokens=1, max_duplicate=1.0)[0]) == 6


def test_known_paragraphs_are_found_in_the_compact_array_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deduplicate, "MIN_MERGE", 10)
    known = Repeats(0.5)
    texts = [words(20, seed) for seed in range(100)]
    assert [known.add(text) for text in texts] == [True] * 100
    assert len(known._sorted) > 80
    assert [known.add(text) for text in texts] == [False] * 100


@pytest.fixture(scope="module")
def counter(tokenizer_folders: dict[str, Path]) -> tuple[Any, TokenCounter]:
    tokenizer = load_tokenizer(tokenizer_folders["chatml"])
    return tokenizer, TokenCounter(tokenizer.backend_tokenizer)


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(1, 60), max_size=30), context_tokens=st.integers(216, 300))
def test_contexts(counter: Any, sizes: list[int], context_tokens: int) -> None:
    tokenizer, count = counter
    shape = ContextShape(num_chunks=3, min_tokens=40, max_tokens=100, context_tokens=context_tokens)
    unit = Unit("u", "\n\n".join(words(size, size) for size in sizes), "prose", 0)
    counts, sentences = Counts(), Sentences(lambda: "")
    found = list(long_contexts(unit, shape, count=count, sentences=sentences, counts=counts))
    joined = "".join(context.text for context in found)
    assert unit.text.startswith(joined) and counts.characters_cut == len(unit.text) - len(joined)
    assert [context.id for context in found] == [f"u-{number + 1}" for number in range(len(found))]
    assert (counts.contexts, counts.units_too_short) == (len(found), int(not found))
    tokens = lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)  # noqa: E731
    for context in found:
        assert context.num_tokens == tokens(context.text) <= context_tokens
        pieces = [context.text[chunk.start : chunk.end] for chunk in context.chunks]
        assert "".join(pieces) == context.text and len(pieces) == 3
        assert [tokens(piece) for piece in pieces] == [chunk.num_tokens for chunk in context.chunks]
        assert all(40 <= chunk.num_tokens <= 100 for chunk in context.chunks)
    # What is left would not have done: three chunks, each with room to find a border.
    assert tokens(unit.text[len(joined) :]) < 3 * (40 + 32) + 40


def test_a_shape_that_cannot_be(counter: Any) -> None:
    shape = ContextShape(num_chunks=4, min_tokens=100, max_tokens=200, context_tokens=500)
    with pytest.raises(UserError, match="4 chunks of at least 100 tokens need a context of 528, which may have 500"):
        next(
            long_contexts(
                Unit("u", "x", "prose", 0), shape, count=counter[1], sentences=Sentences(str), counts=Counts()
            )
        )
