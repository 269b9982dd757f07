"""Every rule of the benchmarks on cases made by hand; the expected figures are worked out beside them."""

import pytest

from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.rules import (
    RULES,
    infinitebench_en_mc,
    infinitebench_en_qa,
    infinitebench_en_sum,
    ruler_all,
    ruler_any,
)

OPTIONS = ("Walking the dog", "Baking bread", "Light housework", "None of these")


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("The cat sat", ["a cat sat"], 1.0),  # articles and case do not count
        ("cat-sat!", ["cat sat"], 0.0),  # punctuation goes without leaving a blank: catsat
        ("the cat sat down", ["cat sat"], 0.8),  # precision 2/3, recall 1
        ("cat cat", ["cat"], 2 / 3),  # one of the two is matched
        ("Lyon", ["Paris", "to Lyon", "Lyon, France"], 2 / 3),  # the best reference
        ("", ["Lyon"], 0.0),
        ("the", ["an"], 0.0),  # nothing is left of either, which is no match
        ("theatre", ["the atre"], 0.0),  # an article is a word
        ("5 o\u2019clock", ["5 oclock"], 0.5),  # a typographic apostrophe is not in string.punctuation
    ],
)
def test_infinitebench_qa(answer: str, references: list[str], score: float) -> None:
    assert infinitebench_en_qa(answer, references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("C", 1),
        ("  C. Light housework", 1),
        ("B", 0),
        ("Consider the text: it is A", 1),  # a first character from A to D decides, word or not
        ("Light housework", 1),
        ("Light housework.", 0),  # not the option to the letter, and nothing else applies
        ("The answer is: C", 1),
        ("The answer is C.", 1),
        ("The answer is:C", 0),  # one character after the prefix is skipped, whatever it is
        ("The answer is:", 0),
        ("the correct option is Light housework, of course", 1),
        ("I say answer: B, no, the answer is C", 0),  # "answer:" is looked for before "answer is"
        ("I think it is C", 1),
        ("I think it is C or B", 1),
        ("I think it is B or C", 0),
        ("It is BC", 0),  # letters side by side are a word of letters, and no option
        ("It is 'C'!", 1),
        ("it is c", 0),
        ("", 0),
        (" \n", 0),
    ],
)
def test_infinitebench_choice(answer: str, score: float) -> None:
    for references in (["Light housework", "C"], ["Light housework"], ["C"]):
        assert infinitebench_en_mc(answer, references, OPTIONS) == score
    assert infinitebench_en_mc(answer, ["Light housework", "C"]) == score


def test_a_choice_needs_the_right_letter() -> None:
    with pytest.raises(UserError, match="its letter is not known; give"):
        infinitebench_en_mc("C", ["Light housework"])
    with pytest.raises(UserError, match="'Cooking' is none of the options"):
        infinitebench_en_mc("C", ["Cooking"], OPTIONS)
    same = ("Yes", "No", "Yes", "Perhaps")
    assert infinitebench_en_mc("A", ["Yes"], same) == 1  # the first of two equal options
    assert infinitebench_en_mc("C", ["Yes"], same) == 0


def test_infinitebench_summary_is_rouge_by_line_without_stemming() -> None:
    assert infinitebench_en_sum("the cat sat", ["the cat sat"]) == 1.0
    assert infinitebench_en_sum("", ["the cat sat"]) == 0.0
    assert infinitebench_en_sum("cats", ["cat"]) == 0.0  # no stemming
    # Each line of the reference against all lines of the answer: all five words are found, though the lines stand in
    # the other order. On one line the longest common subsequence has three of five.
    assert infinitebench_en_sum("it slept\nthe cat sat", ["the cat sat\nit slept"]) == 1.0
    assert infinitebench_en_sum("it slept the cat sat", ["the cat sat it slept"]) == pytest.approx(3 / 5)
    assert infinitebench_en_sum("the cat", ["a dog", "the cat"]) == 1.0  # the best reference


def test_ruler_looks_for_references_without_case() -> None:
    assert ruler_all("The numbers are 12 and ABC.", ["12", "abc"]) == 1.0
    assert ruler_all("The numbers are 12.", ["12", "34", "56"]) == pytest.approx(1 / 3)
    assert ruler_all("123", ["12"]) == 1.0  # within a word too
    assert ruler_any("in 23 YEARS' time", ["23 years", "23", "twenty"]) == 1.0  # not their mean
    assert ruler_any("no idea", ["23 years", "23"]) == 0.0
    assert ruler_any("New\x00York", ["new\nyork"]) == 1.0  # control characters are line ends


def test_every_task_of_the_tables_has_its_rule() -> None:
    ruler = [name for name in RULES if name.startswith("ruler_")]
    assert len(ruler) == 13
    assert {name for name in ruler if RULES[name] is ruler_any} == {"ruler_qa_squad", "ruler_qa_hotpot"}
    assert all(rule("no", ["Yes", "A"], ("Yes", "b", "c", "d")) == 0.0 for rule in RULES.values())
    assert all(rule("Yes", ["Yes", "A"], ("Yes", "b", "c", "d")) in (0.5, 1.0) for rule in RULES.values())
