"""The committed pairs are what examples/quickstart/README.md says they are."""

import re
from pathlib import Path

import pytest

from examples.quickstart.fetch_model import default_folder
from examples.quickstart.make_pairs import MAX_CHUNK_CHARACTERS
from examples.quickstart.writer import MAX_QUESTION_CHARACTERS
from megatron_longpo.data.pair import Pair, read_pairs

PAIRS = Path(__file__).resolve().parents[3] / "examples" / "quickstart" / "pairs.jsonl"


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return [pair for _, pair in read_pairs([PAIRS])]


def test_there_are_enough_pairs_and_turns(pairs: list[Pair]) -> None:
    num_turns = [len(pair.turns) for pair in pairs]
    assert len(pairs) >= 24
    assert sum(num in (2, 3) for num in num_turns) >= 6
    assert max(num_turns) == 3


def test_every_document_is_used_once(pairs: list[Pair]) -> None:
    chunks = [chunk for pair in pairs for chunk in pair.context.split("\n\n")]
    assert len(set(chunks)) == len(chunks)


def test_the_evidence_is_one_chunk_of_the_context(pairs: list[Pair]) -> None:
    for pair in pairs:
        chunks = pair.context.split("\n\n")
        assert len(chunks) >= 3
        assert [chunks[number] for number in pair.meta["evidence_chunks"]] == [t.short_context for t in pair.turns]
        assert [chunk.split("\n")[0] for chunk in chunks] == pair.meta["chunks"]


def test_every_instruction_is_one_question_on_its_chunk(pairs: list[Pair]) -> None:
    for pair in pairs:
        for turn in pair.turns:
            question = turn.instruction.removesuffix(" Answer in one sentence.")
            assert question != turn.instruction
            assert re.fullmatch(r"[A-Z][^\n?]*\?", question)
            assert len(question) <= MAX_QUESTION_CHARACTERS
            assert turn.short_context.split("\n")[0] in question


def test_the_answers_differ_and_are_whole_sentences(pairs: list[Pair]) -> None:
    for pair in pairs:
        for turn in pair.turns:
            assert turn.chosen != turn.rejected
            for answer in (turn.chosen, turn.rejected):
                assert re.fullmatch(r"[A-Z][^\n]*[.!?]", answer)
                assert 20 <= len(answer) <= 600  # 96 tokens


def test_sizes_in_characters(pairs: list[Pair]) -> None:
    for pair in pairs:
        assert 2900 <= len(pair.context) <= 6000
        for turn in pair.turns:
            assert len(turn.short_context) <= MAX_CHUNK_CHARACTERS + 30  # the country's name and a line break
            assert 3 * len(turn.short_context) < len(pair.context)


def test_trunks_have_700_to_1500_tokens(pairs: list[Pair]) -> None:
    folder = default_folder()
    if not (folder / "tokenizer.json").exists():
        pytest.skip("the quickstart's model has not been fetched: python -m examples.quickstart.fetch_model")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    for pair in pairs:
        message = {"role": "user", "content": f"{pair.context}\n\n{pair.turns[0].instruction}"}
        text = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        assert 700 <= len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= 1500, pair.id
