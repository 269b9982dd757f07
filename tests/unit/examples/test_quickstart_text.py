"""The rules that make documents and questions of the text: sentences, openings, dealing, what a question may say."""

import pytest

from examples.quickstart.text import Chunk, leading_clauses, make_documents, split_sentences
from examples.quickstart.writer import has_only_names_of, is_evidence_of, is_usable_question

FACT = 'Origin of the capital\'s name: the name means "smoky bay" and may refer to the steam of hot springs'
CHUNK = Chunk("Iceland", ("Terrain: mostly plateau with the volcano Askja, 1510 m high", "Capital: Reykjavik", FACT))


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


def test_leading_clauses_are_whole_within_the_limit_and_at_least_one() -> None:
    text = "aaaa bbbb; cccc dddd; eeee"
    assert leading_clauses(text, 20) == "aaaa bbbb; cccc dddd"
    assert leading_clauses(text, 19) == "aaaa bbbb"
    assert leading_clauses(text, 3) == "aaaa bbbb"


def test_documents_are_long_enough_hold_each_chunk_once_and_follow_the_seed() -> None:
    chunks = [Chunk(f"Land{n:02}", ("x" * 90,)) for n in range(25)]
    documents = make_documents(chunks, seed=1, min_characters=290)
    used = [chunk for document in documents for chunk in document.chunks]
    assert [document.number for document in documents] == list(range(8))
    assert len(used) == len(set(used)) == 24  # three a document; the last chunk alone is too short for one
    assert all(len(document.context) >= 290 for document in documents)
    assert documents == make_documents(chunks, seed=1, min_characters=290)
    assert documents != make_documents(chunks, seed=2, min_characters=290)


@pytest.mark.parametrize(
    "question",
    ["How high is the volcano Askja of Iceland?", "What does the name of the capital of Iceland refer to?"],
)
def test_questions_from_the_chunk_are_usable(question: str) -> None:
    assert is_usable_question(question, CHUNK)


@pytest.mark.parametrize(
    "question",
    [
        "How high is the volcano Askja?",  # of which country?
        "Was the volcano Askja of Iceland 2000 m high?",  # a number that is not in the chunk
        "How high is the volcano Hekla of Iceland?",  # a name that is not
        "Who influences football matches of Iceland?",  # about something else
        "How high is the volcano Askja of Iceland",  # cut short
        "How high is the volcano of Iceland? What is the terrain?",  # two
        "What is Iceland?",  # no main word
        f"How high is the volcano Askja of Iceland{', the volcano' * 7}?",  # too long
    ],
)
def test_other_questions_are_not(question: str) -> None:
    assert not is_usable_question(question, CHUNK)


def test_names_and_numbers_of_an_answer_must_stand_in_its_source() -> None:
    assert has_only_names_of(CHUNK.text, "Its capital, Reykjavik, lies far from Askja. Volcanoes are 1510 m high.")
    assert not has_only_names_of(CHUNK.text, "Its capital, Oslo, lies far from Askja.")
    assert not has_only_names_of(CHUNK.text, "Its volcano is 1511 m high.")


def test_an_answer_must_take_up_the_fact_beyond_the_question() -> None:
    question = "What does the name of the capital of Iceland mean?"
    assert is_evidence_of(FACT, question, "It means smoky bay, after the steam.")
    assert not is_evidence_of(FACT, question, "The name of the capital of Iceland has a meaning.")
    assert is_evidence_of("Capital: Reykjavik", "What is the capital of Iceland?", "It is Reykjavik.")
    assert not is_evidence_of("Capital: Reykjavik", "What is the capital of Iceland?", "It is the capital.")
