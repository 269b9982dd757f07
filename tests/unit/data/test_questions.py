"""data/questions.py: what was rendered from one pair is never refused, another instruction in one place always is."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_longpo.data.labels import learn_template
from megatron_longpo.data.pair import parse_pair
from megatron_longpo.data.questions import Questions, learn_questions
from megatron_longpo.data.render import RenderedPair, render_pair
from megatron_longpo.data.tokenizer import load_tokenizer
from megatron_longpo.errors import UserError
from tests.pairs import make_record

FAMILIES = ("chatml", "mistral", "llama3", "qwen3", "mistral-v1", "mistral-v3", "llama2")
Family = tuple[Any, Questions]


@pytest.fixture(scope="module")
def families(tokenizer_folders: dict[str, Path]) -> dict[str, Family]:
    loaded = {name: load_tokenizer(tokenizer_folders[name]) for name in FAMILIES}
    return {name: (one, learn_questions(one, learn_template(one))) for name, one in loaded.items()}


def rendered(record: dict[str, Any], tokenizer: Any) -> RenderedPair:
    pair = render_pair(parse_pair(json.dumps(record).encode(), ""), tokenizer, 10**6, "refuse")
    assert pair is not None
    return pair


def asking(*instructions: str) -> dict[str, Any]:
    record = make_record(3, len(instructions))
    for turn, instruction in zip(record["turns"], instructions, strict=True):
        turn["instruction"] = instruction
    return record


def message_of(family: Family, long: dict[str, Any], short: dict[str, Any]) -> str:
    """What is said of the long conversation of one record with the short ones of another; empty if nothing."""
    tokenizer, questions = family
    try:
        questions.check(rendered(long, tokenizer).long, rendered(short, tokenizer).short)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", FAMILIES)
def test_what_the_template_writes_before_an_instruction(families: dict[str, Family], name: str) -> None:
    before = families[name][1].before
    assert before.strip().endswith(("user", "<|end_header_id|>", "[INST]"))
    assert "Which" not in before


# Texts that tokenizers find hard; what spells a control token is refused before, so none is drawn.
texts = st.text(st.sampled_from("aé中🙂 \n\t.,?▁W9'-"), min_size=1, max_size=12).filter(lambda text: text.strip())


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_same_pair_is_never_refused(families: dict[str, Family], data: st.DataObject) -> None:
    record = asking(data.draw(texts), data.draw(texts))
    record["context"] = data.draw(texts)
    for turn in record["turns"]:
        turn["short_context"] = data.draw(texts)
    for family in families.values():
        assert message_of(family, record, record) == ""


@pytest.mark.parametrize("instruction", ["▁", "\n▁", " a ", "?\n", "中\n\n"])
def test_blanks(families: dict[str, Family], instruction: str) -> None:
    """Sentencepiece writes a blank as that character, so the first of them decodes to nothing but one."""
    for record in (asking("9", instruction), asking(instruction, "9")):
        for family in families.values():
            assert message_of(family, record, record) == ""


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is it?", "Who is it?"),
        ("What is it?", "What is it"),
        ("What is it?", "What is that thing called, and who made it?"),
        ("Ein Wort?", "Kein Wort?"),
        ("中文", "文"),
    ],
)
def test_another_instruction_is_refused(families: dict[str, Family], name: str, one: str, other: str) -> None:
    """In either turn, and whichever of the two conversations has it."""
    for turn in (0, 1):
        first, second = asking("Why?", "How?"), asking("Why?", "How?")
        first["turns"][turn]["instruction"], second["turns"][turn]["instruction"] = one, other
        message = message_of(families[name], first, second)
        assert message.startswith(f"turn {turn} asks ") and one in message and other in message
        assert message_of(families[name], second, first).startswith(f"turn {turn} asks ")


def test_short_conversations_of_another_order(families: dict[str, Family]) -> None:
    record = asking("Why?", "How many?")
    swapped = copy.deepcopy(record)
    swapped["turns"].reverse()
    assert message_of(families["chatml"], record, swapped).startswith("turn 0 asks ")


def test_empty_lines_in_an_instruction(families: dict[str, Family]) -> None:
    """The limit that the head of the file states: in the first turn, what stands before the last one is not seen."""
    one, other = asking("A\n\nB?", "A\n\nB?"), asking("C\n\nB?", "A\n\nB?")
    assert message_of(families["chatml"], one, other) == ""
    one, other = asking("A\n\nB?", "A\n\nB?"), asking("A\n\nB?", "C\n\nB?")
    assert message_of(families["chatml"], one, other).startswith("turn 1 asks ")


def test_instructions_longer_than_the_window(families: dict[str, Family]) -> None:
    long = " ".join(f"word{index}" for index in range(3000))
    for record in (asking(long, "Why?"), asking("Why?", long)):
        assert message_of(families["chatml"], record, record) == ""
    assert message_of(families["chatml"], asking(long), asking(long + "!")).startswith("turn 0 asks ")
