"""The committed pairs are what examples/smollm2/README.md says they are, and what `generate` wrote."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from examples.smollm2.fetch_model import default_folder
from examples.smollm2.run import NUM_STEPS, TRAINING_OPTIONS
from megatron_longpo.data.pair import Pair, read_pairs
from megatron_longpo.generate.prompts import LEAD_INS, tells_position

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "smollm2"
PAIRS = FOLDER / "pairs.jsonl"


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return [pair for _, pair in read_pairs([PAIRS])]


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return json.loads((FOLDER / "pairs.jsonl.manifest.json").read_text())


def test_they_are_as_generate_wrote_them(pairs: list[Pair], manifest: dict[str, Any]) -> None:
    assert manifest["sha256"] == hashlib.sha256(PAIRS.read_bytes()).hexdigest()
    assert manifest["engine"]["engine"] == "transformers"
    assert manifest["counts"]["pairs"] == len(pairs) >= 8
    assert manifest["counts"]["turns"] == sum(len(pair.turns) for pair in pairs)


def test_contexts_and_chunks_are_as_long_as_asked_for(pairs: list[Pair], manifest: dict[str, Any]) -> None:
    assert (manifest["settings"]["min_chunk_tokens"], manifest["settings"]["max_chunk_tokens"]) == (500, 800)
    folder = default_folder()
    if not (folder / "tokenizer.json").exists():
        pytest.skip("the quickstart's model has not been fetched: python -m examples.smollm2.fetch_model")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    lengths = [len(tokenizer(pair.context)["input_ids"]) for pair in pairs]
    assert min(lengths) >= 2800
    assert sum(length >= 3000 for length in lengths) >= 8
    for pair in pairs:
        assert all(500 <= len(tokenizer(turn.short_context)["input_ids"]) <= 800 for turn in pair.turns), pair.id


def test_every_context_is_of_other_articles(pairs: list[Pair]) -> None:
    articles = [article for pair in pairs for article in pair.context.split("\n\n") if not article.startswith("##")]
    assert len(set(articles)) == len(articles)


def test_every_short_context_is_in_its_long_one(pairs: list[Pair]) -> None:
    for pair in pairs:
        for turn in pair.turns:
            assert turn.short_context in pair.context
            assert turn.chosen.strip() and turn.rejected.strip() and turn.chosen != turn.rejected


def test_every_instruction_is_a_question_after_a_lead_in(pairs: list[Pair]) -> None:
    heads = [lead_in.partition("{question}")[0] for lead_in in LEAD_INS]
    for pair in pairs:
        for turn in pair.turns:
            assert any(turn.instruction.startswith(head) for head in heads)
            assert not tells_position(turn.instruction)


def test_the_quickstart_trains_on_no_pair_twice_and_holds_two_out(pairs: list[Pair]) -> None:
    trained, held_out, _ = map(int, TRAINING_OPTIONS[TRAINING_OPTIONS.index("--split") + 1].split(","))
    num_held_out = round(len(pairs) * held_out / (trained + held_out))
    assert len(pairs) - num_held_out >= NUM_STEPS
    assert str(num_held_out) == TRAINING_OPTIONS[TRAINING_OPTIONS.index("--eval-iters") + 1]
