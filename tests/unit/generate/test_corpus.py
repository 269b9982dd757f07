"""The corpus as a run draws from it: all of it, a part of it, the first few contexts of it."""

import random
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.errors import UserError
from megatron_longpo.generate.corpus.corpus import Corpus, CorpusOptions
from megatron_longpo.generate.corpus.documents import Counts
from megatron_longpo.generate.journal import Shard
from megatron_longpo.generate.settings import Sampling, Settings

WHOLE = Shard(1, 1)
SETTINGS = Settings(
    length=800,
    min_length=400,
    num_turns=2,
    min_turns=1,
    min_chunk_tokens=60,
    max_chunk_tokens=150,
    answer=Sampling(temperature=1.0, top_p=1.0, max_new_tokens=32),
)


@pytest.fixture
def corpus(tmp_path: Path, tokenizer_folders: dict[str, Path]) -> Corpus:
    generator = random.Random(0)
    for number in range(8):
        words = ["".join(generator.choices("abcdefgh", k=5)) for _ in range(60 + 160 * number)]
        sentences = (" ".join(words[start : start + 8]).capitalize() + "." for start in range(0, len(words), 8))
        (tmp_path / f"{number}.txt").write_text(" ".join(sentences), encoding="utf-8")
    return Corpus(CorpusOptions(paths=(str(tmp_path),)), SETTINGS, load_tokenizer(tokenizer_folders["chatml"]))


def with_at_most(corpus: Corpus, max_contexts: int, tokenizer: Path) -> Corpus:
    return Corpus(replace(corpus.options, max_contexts=max_contexts), SETTINGS, load_tokenizer(tokenizer))


def test_the_first_contexts_are_those_of_the_whole_and_are_counted(
    corpus: Corpus, tokenizer_folders: dict[str, Path]
) -> None:
    counts, few = Counts(), with_at_most(corpus, 3, tokenizer_folders["chatml"])
    everything = list(corpus.contexts(WHOLE, Counts()))
    assert len(everything) > 5
    assert list(few.contexts(WHOLE, counts)) == everything[:3]
    assert counts.contexts == few.expected_contexts(WHOLE) == 3


def test_a_journal_of_the_first_contexts_is_one_of_the_whole(
    corpus: Corpus, tokenizer_folders: dict[str, Path]
) -> None:
    assert with_at_most(corpus, 3, tokenizer_folders["chatml"]).identity == corpus.identity


def test_shards_have_every_context_once(corpus: Corpus) -> None:
    everything = list(corpus.contexts(WHOLE, Counts()))
    shards = [list(corpus.contexts(Shard(number, 3), Counts())) for number in (1, 2, 3)]
    assert all(shards)
    assert sorted(chain.from_iterable(shards), key=lambda found: found[0]) == everything


def test_about_so_many_contexts_are_expected_as_there_are(corpus: Corpus) -> None:
    num_contexts = len(list(corpus.contexts(WHOLE, Counts())))
    assert abs(corpus.expected_contexts(WHOLE) - num_contexts) <= 0.4 * num_contexts


def test_no_contexts_at_all_cannot_be_asked_for(corpus: Corpus, tokenizer_folders: dict[str, Path]) -> None:
    with pytest.raises(UserError, match="--max-contexts 0: needs at least 1"):
        with_at_most(corpus, 0, tokenizer_folders["chatml"])
