import pytest

from megatron_longpo.generate.prompts import (
    LEAD_INS,
    ask_for_questions,
    instruction_of,
    parse_questions,
    tells_position,
)

QUESTIONS = [
    "How did the two treaties differ in their aims?",
    "Why did the council move the market to the harbour?",
    "What links the copper trade to the fall of the senate?",
    "In what ways did the winter change the voyage?",
]


def numbered(form: str = "{}. {}", questions: list[str] = QUESTIONS) -> str:
    return "\n".join(form.format(number, question) for number, question in enumerate(questions, 1))


@pytest.mark.parametrize(
    "form", ["{}. {}", "{}) {}", "  {}.  {}", "{}: {}", "**{}.** {}", "Question {}: {}", "{}. **{}**"]
)
def test_usual_forms_of_a_list_are_read(form: str) -> None:
    assert parse_questions(numbered(form), 4, is_cut=False) == QUESTIONS


def test_words_around_the_list_are_let_pass() -> None:
    text = f"Here are four questions:\n\n{numbered()}\n\nI hope they help."
    assert parse_questions(text, 4, is_cut=False) == QUESTIONS
    assert parse_questions(text, 4, is_cut=True) == QUESTIONS  # what was cut is not the last question


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What links the copper trade to the senate?",
        numbered(questions=QUESTIONS[:3]),
        numbered().replace("3.", "5."),
        numbered(questions=[*QUESTIONS[:3], QUESTIONS[0]]),
        numbered(questions=[*QUESTIONS[:3], "Why?"]),
        numbered(questions=[*QUESTIONS[:3], "The council and the market"]),
        numbered(questions=[*QUESTIONS[:3], f"Why {'very ' * 200}old?"]),
    ],
)
def test_malformed_lists_are_refused(text: str) -> None:
    assert parse_questions(text, 4, is_cut=False) is None


def test_a_list_that_was_cut_in_its_last_question_is_refused() -> None:
    assert parse_questions(numbered(), 4, is_cut=True) is None


def test_more_questions_than_asked_for_are_left() -> None:
    assert (
        parse_questions(numbered(questions=[*QUESTIONS, "And what came of it all in the end?"]), 4, False) == QUESTIONS
    )


@pytest.mark.parametrize(
    "question",
    [
        "What does the second paragraph say about trade?",
        "What is the purpose of this passage?",
        "According to the section, why did they leave?",
        "What happens at the end of the story?",
        "What is stated on page 12 about copper?",
        "Which excerpt mentions the harbour?",
        "What do the last two chapters have in common?",
        "What is the main purpose of the two paragraphs?",
        "What is the main idea of the Burundi text?",
    ],
)
def test_questions_that_tell_a_position(question: str) -> None:
    assert tells_position(question)


@pytest.mark.parametrize("question", [*QUESTIONS, "What parts did the union and the king play in the last war?"])
def test_questions_that_tell_none(question: str) -> None:
    assert not tells_position(question)


def test_about_twenty_lead_ins_all_different_and_all_with_the_question() -> None:
    assert len({instruction_of(QUESTIONS[0], lead_in) for lead_in in LEAD_INS}) == len(LEAD_INS) >= 20
    assert all(
        instruction_of(QUESTIONS[0], lead_in).endswith(QUESTIONS[0]) or "{" not in lead_in for lead_in in LEAD_INS
    )
    assert not any(tells_position(lead_in) for lead_in in LEAD_INS)


def test_braces_in_a_document_are_text() -> None:
    assert "{x} and {0}" in ask_for_questions("{x} and {0}", "code", 4)
    assert instruction_of("What does {x} mean here?", LEAD_INS[0]) == "What does {x} mean here?"
