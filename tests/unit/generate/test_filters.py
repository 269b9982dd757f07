import random
import re
from dataclasses import replace

import pytest

from megatron_longpo.generate.engine import Completion
from megatron_longpo.generate.filters import (
    Candidate,
    first_fault,
    is_refusal,
    other_language,
    repetition,
    similarity,
    without_thoughts,
)
from megatron_longpo.generate.settings import FILTERS, FilterName, Settings

CHUNK = (
    "The harbour was built in the reign of the second king, who had seen the fleets of the southern cities and wanted "
    "one of his own. It took eleven years and most of the copper of the kingdom, and it was never quite finished."
)
CHOSEN = "The king wanted a fleet like those of the southern cities, and paid for it with most of the kingdom's copper."
REJECTED = "It was begun because trade along the river had grown too large for the old wooden landing below the town."
GERMAN = "Der König wollte eine Flotte wie die der südlichen Städte und bezahlte sie mit dem Kupfer seines Reiches."
SETTINGS = Settings()
CONTROL = re.compile(r"<\|im_end\|>")


def answer(text: str, finish: str = "stop") -> Completion:
    return Completion(text=text, finish=finish, num_prompt_tokens=50, num_new_tokens=20)


GOOD = Candidate(
    chunk=CHUNK,
    question="Why was the harbour built at all?",
    chosen=answer(CHOSEN),
    rejected=answer(REJECTED),
    domain="prose",
    num_short_tokens=70,
)


def test_a_good_turn_passes() -> None:
    assert first_fault(GOOD, SETTINGS, CONTROL) is None


BAD: dict[FilterName, list[str]] = {
    "control tokens": ["The king wanted a fleet.<|im_end|> And he got it, at the price of the copper of his kingdom."],
    "thoughts": [
        f"<think>They ask. {CHOSEN}",
        f"{CHOSEN} <think>Good?</think> Yes.",
        f"The mark </think> ends it: {CHOSEN}",
    ],
    "broken characters": [f"{CHOSEN} \ud83d", f"\udead {CHOSEN}", f"{CHOSEN}\ufffd", f"{CHOSEN} \x00 end"],
    "empty": ["", " \n", "Trade."],
    "refusal": [
        "I'm sorry, but I cannot find that in what you gave me.",
        "As an AI language model I have no opinion on it.",
    ],
    "repetition": ["The king wanted a fleet of his own. " * 8],
    "language": [GERMAN],
    "too similar": [CHOSEN, f"{CHOSEN} "],
}


@pytest.mark.parametrize(("fault", "text"), [(fault, text) for fault, texts in BAD.items() for text in texts])
def test_each_filter_on_each_side(fault: FilterName, text: str) -> None:
    other = replace(GOOD, rejected=answer(text))
    assert first_fault(other, SETTINGS, CONTROL) == fault
    if fault != "too similar":
        assert first_fault(replace(GOOD, chosen=answer(text)), SETTINGS, CONTROL) == fault
    kept = first_fault(other, replace(SETTINGS, no_filter=(fault,)), CONTROL)
    assert (kept == fault) == (not text.strip() or text.strip() == CHOSEN)  # those cannot be built, whatever is kept


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_cut_off_on_each_side(side: str) -> None:
    cut = replace(GOOD, **{side: answer("It was begun because trade along the river had grown too", "length")})
    assert first_fault(cut, SETTINGS, CONTROL) == "cut off"
    assert first_fault(cut, replace(SETTINGS, no_filter=("cut off",)), CONTROL) is None


def test_short_conversations_of_the_limit_or_more() -> None:
    assert first_fault(replace(GOOD, num_short_tokens=32767), SETTINGS, CONTROL) is None
    assert first_fault(replace(GOOD, num_short_tokens=32768), SETTINGS, CONTROL) == "too long"


def test_a_control_token_in_the_question() -> None:
    assert first_fault(replace(GOOD, question="Why was <|im_end|> built?"), SETTINGS, CONTROL) == "control tokens"
    assert first_fault(replace(GOOD, question="Why was <|im_end|> built?"), SETTINGS, None) is None


def test_every_filter_of_a_turn_is_tested_here() -> None:
    assert set(FILTERS) == {*BAD, "malformed questions", "position", "cut off", "too long"}


@pytest.mark.parametrize(
    "text",
    [
        "I\u2019m sorry, I can\u2019t help with that.",
        "I am unable to answer this question.",
        "Unfortunately, the text does not say who built it.",
        "I cannot provide an answer based on the text.",
        "The provided text does not contain information about the fleet.",
        "There is no mention of a fleet.",
        "As a language model, I do not know.",
        "I apologize, but that is not in the document.",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        CHOSEN,
        "I think the king was wrong: he said that he could not pay, and then he paid.",
        "The king said: I'm sorry, but the copper is mine.",
        "The text describes a king who does not give up his fleet.",
        "There is no doubt that the fleet was his aim.",
        "Sorry about its state as he was, the king left the harbour as it was.",
        "Unfortunately for him, the fleet was lost. He could not build another.",
    ],
)
def test_no_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_repetition_of_prose_and_of_loops() -> None:
    assert repetition(f"{CHUNK} {CHOSEN} {REJECTED}") == 0.0
    assert repetition("") == repetition("Two words") == 0.0
    assert repetition("and so on and so on and so on and so on and so on") > 0.5
    assert repetition("\u5b83\u662f\u4e00\u4e2a\u6e2f\u53e3\u57ce\u5e02" * 6) > 0.5  # no blanks between words
    draw = random.Random(1)
    loop_at_the_end = f"{CHUNK} {CHOSEN} " + f"{draw.choice(['it', 'he'])} was and was and was and then again " * 12
    assert repetition(loop_at_the_end) > 0.3


def test_similarity() -> None:
    assert similarity(CHOSEN, f"  {CHOSEN}\n") == 1.0
    assert similarity(CHOSEN, CHOSEN.replace("copper", "silver")) > 0.9
    assert similarity(CHOSEN, REJECTED) < 0.6


def test_language_needs_certainty() -> None:
    assert other_language(CHUNK, GERMAN)
    assert not other_language(CHUNK, CHOSEN)
    assert not other_language(CHUNK, "Ja, genau.")
    assert not other_language("x = [1, 2, 3]; y = 4", GERMAN)
    assert first_fault(replace(GOOD, domain="code", rejected=answer(GERMAN)), SETTINGS, None) is None


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nWhy do they ask?\n</think>\n\n{}",
        " \n<THINK></THINK>{}",
        "<thinking>One. <b>Two.</b></thinking>{}",
        "<seed:think>Well.</seed:think>\n{}",
        "[THINK]Well.[/THINK]{}",
        "Why do they ask?\n</think>\n\n{}",
        "{}",
    ],
)
def test_thoughts_that_an_answer_opens_with_are_removed(text: str) -> None:
    assert without_thoughts(text.format(CHOSEN)) == CHOSEN


@pytest.mark.parametrize(
    "text",
    ["<think>and no end", "In HTML </think> is no tag.", f"{CHOSEN} <think>more</think>", "<thinker>One</thinker>", ""],
)
def test_what_is_not_plainly_thoughts_before_an_answer_is_left(text: str) -> None:
    assert without_thoughts(text) == text


def test_an_answer_longer_than_was_asked_for_is_dropped() -> None:
    endless = replace(GOOD.rejected, num_new_tokens=SETTINGS.answer.max_new_tokens + 1)
    assert first_fault(replace(GOOD, rejected=endless), SETTINGS, CONTROL) == "too long"
