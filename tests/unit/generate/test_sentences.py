"""Punkt learns from the corpus, once; nothing is downloaded."""

from pathlib import Path

import pytest

from megatron_longpo.generate.corpus.sentences import CELL, SAMPLE_CHARACTERS, Sentences, corpus_sample

SAMPLE = "Prof. Xyz came. He left. We saw Prof. Xyz. Then Prof. Uvw went, cf. the notes.\n\n" * 60


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEGATRON_LONGPO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def sentences_of(text: str, sample: str = SAMPLE) -> list[str]:
    places = Sentences(lambda: sample).within(text, 0, len(text))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


def test_abbreviations_are_learned() -> None:
    text = "We met Prof. Xyz there. He left."
    assert sentences_of(text) == ["We met Prof. Xyz there. ", "He left."]
    assert sentences_of(text, sample="Nothing.") == ["We met Prof. ", "Xyz there. ", "He left."]


def test_what_was_learned_is_kept_and_used(home: Path) -> None:
    sentences_of("A. B.")
    (cache,) = home.rglob("*.json")
    assert '"prof"' in cache.read_text(encoding="ascii")
    cache.write_text(cache.read_text(encoding="ascii").replace('"prof"', '"other"'), encoding="ascii")
    assert len(sentences_of("We met Prof. Xyz there. He left.")) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"abbreviations": [1], "collocations": [], "starters": []}'])
def test_a_broken_cache_is_made_anew(home: Path, content: str) -> None:
    sentences_of("A. B.")
    (cache,) = home.rglob("*.json")
    whole = cache.read_bytes()
    cache.write_text(content, encoding="ascii")
    assert len(sentences_of("We met Prof. Xyz there. He left.")) == 2
    assert cache.read_bytes() == whole and list(home.rglob("*.*")) == [cache]


def test_a_cache_that_cannot_be_written_is_done_without(home: Path) -> None:
    home.write_text("a file, not a folder")
    assert len(sentences_of("We met Prof. Xyz there. He left.")) == 2


@pytest.mark.parametrize(
    "sample", ["", "x", "no marks at all " * 100, "1. 2. 3. " * 50, "\u4e2d\u6587\u3002" * 100, "..."]
)
def test_any_sample_will_do(sample: str) -> None:
    assert sentences_of("This is one. This is two.", sample) == ["This is one. ", "This is two."]


def test_punkt_is_not_trained_before_it_is_needed(home: Path) -> None:
    def sample() -> str:
        raise AssertionError("asked for a sample")

    Sentences(sample)
    assert not home.exists()


def test_a_long_text_without_paragraphs() -> None:
    one = "This is a sentence of some length, and it goes on for a while. "
    text = one * (3 * CELL // len(one))
    assert sentences_of(text)[:-1] == [one] * (len(text) // len(one) - 1)


def test_the_sample_is_bounded_and_reads_no_further() -> None:
    def texts() -> object:
        yield "a" * (SAMPLE_CHARACTERS - 1)
        yield "bcd"
        raise AssertionError("read on")

    sample = corpus_sample(texts())
    assert sample.endswith("a\n\nb") and len(sample) == SAMPLE_CHARACTERS + 2
