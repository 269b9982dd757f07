"""The rules that make documents and questions of the text: sentences, openings, dealing, what a question may say."""

import pytest

from examples.quickstart.text import Chunk, make_documents, opening, split_sentences
from examples.quickstart.writer import has_only_names_of, is_usable_question

CHUNK = Chunk(
    "Iceland",
    "Iceland boasts the world's oldest legislative assembly, the Althingi, which was established in 930. "
    "Fallout from the Askja volcano of 1875 devastated the Icelandic economy.",
)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One came. Two went.", ["One came.", "Two went."]),
        ("The U.S. Navy left. It came back.", ["The U.S. Navy left.", "It came back."]),
        ("J. SMITH of St. Louis won in 1900. He lost.", ["J. SMITH of St. Louis won in 1900.", "He lost."]),
        ('He said "no." Then "yes!" came.', ['He said "no."', 'Then "yes!" came.']),
        ("It grew 3.5 percent.", ["It grew 3.5 percent."]),
        ("", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_an_opening_is_whole_sentences_within_the_limit_and_at_least_one() -> None:
    text = "Aaaa bbbb. Cccc dddd. Eeee."
    assert opening(text, 21) == "Aaaa bbbb. Cccc dddd."
    assert opening(text, 20) == "Aaaa bbbb."
    assert opening(text, 3) == "Aaaa bbbb."


def test_documents_are_long_enough_hold_each_chunk_once_and_follow_the_seed() -> None:
    chunks = [Chunk(f"Land{n:02}", "x" * 90) for n in range(25)]
    documents = make_documents(chunks, seed=1, min_characters=290)
    used = [chunk for document in documents for chunk in document.chunks]
    assert [document.number for document in documents] == list(range(8))
    assert len(used) == len(set(used)) == 24  # three a document; the last chunk alone is too short for one
    assert all(len(document.context) >= 290 for document in documents)
    assert documents == make_documents(chunks, seed=1, min_characters=290)
    assert documents != make_documents(chunks, seed=2, min_characters=290)


def test_a_question_from_the_chunk_is_usable() -> None:
    assert is_usable_question("How did the Askja volcano devastate the economy of Iceland in 1875?", CHUNK)


@pytest.mark.parametrize(
    "question",
    [
        "How did the Askja volcano devastate the economy in 1875?",  # which country?
        "How did the Askja volcano devastate the economy of Iceland in 1998?",  # a year that is not in the chunk
        "How did the Krakatoa volcano devastate the economy of Iceland in 1875?",  # a name that is not
        "How did the weather influence football matches of Iceland?",  # about something else
        "How did the Askja volcano devastate the economy of Iceland in 1875",  # cut short
        "How did the volcano devastate the economy of Iceland? What did the economy do?",  # two
        "What is Iceland?",  # no main word
    ],
)
def test_other_questions_are_not(question: str) -> None:
    assert not is_usable_question(question, CHUNK)


def test_names_and_numbers_of_an_answer_must_stand_in_its_source() -> None:
    assert has_only_names_of(CHUNK.text, "Its assembly, the Althingi, was established in 930. Askja came later.")
    assert not has_only_names_of(CHUNK.text, "Its assembly, the Storting, was established in 930.")
    assert not has_only_names_of(CHUNK.text, "Its assembly, the Althingi, was established in 931.")
