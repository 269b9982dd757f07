"""``megatron-longpo generate --questions FILE``: a user's own questions in place of the model's."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_longpo.commands.main import main
from megatron_longpo.data.pair import read_pairs
from megatron_longpo.journal import journal_lines
from tests.ranks import free_port
from tests.tokenizers import chatml_tokenizer
from tests.unit.generate.model_by_rule import TEXT
from tests.unit.generate.rule_server import serving

FIGURES = [
    *("--length", "1500", "--min-length", "500", "--num-turns", "2", "--min-turns", "1", "--min-chunk-tokens", "100"),
    *("--max-chunk-tokens", "200", "--answer-tokens", "200", "--question-room", "32", "--no-filter", "language"),
]
FACTS = [f"The {word} of house {number} is old." for number, word in enumerate(("mill", "barn", "well", "gate"))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer, and a document of four facts far from each other."""
    folder = tmp_path_factory.mktemp("questions")
    chatml_tokenizer(folder / "model")
    paragraphs = [f"{fact} {TEXT.capitalize()} {number}." for number, fact in enumerate(FACTS)]
    (folder / "book.txt").write_text("\n\n".join(f"{one} {TEXT} {TEXT}." for one in paragraphs))
    return folder


@pytest.fixture(scope="module")
def endpoint(folder: Path) -> Iterator[str]:
    with serving(free_port(), folder / "model") as endpoint:
        yield endpoint


def generate(folder: Path, endpoint: str, output: Path, lines: list[object]) -> int:
    questions = output.with_suffix(".questions")
    questions.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    given = ["--documents", folder / "book.txt", "--model", folder / "model", "--questions", questions]
    server = ["--engine", "openai", "--endpoint", endpoint, "--retry-for", "60"]
    return main(["generate", *FIGURES, *server, *map(str, given), "--output", str(output)])


def about(number: int, *others: int, document: str = "book.txt") -> dict[str, object]:
    evidence = FACTS[number] if not others else [FACTS[one] for one in (number, *others)]
    return {"document": document, "question": f"How old is number {number}?", "evidence": evidence}


def test_they_are_put_as_they_stand_about_the_chunk_of_their_evidence(
    folder: Path, endpoint: str, tmp_path: Path
) -> None:
    output = tmp_path / "pairs.jsonl"
    # The third has its evidence in two chunks, the fourth in another document.
    given = [about(1), about(0), about(0, 3), about(2, document="other.txt"), ""]
    assert generate(folder, endpoint, output, given) == 0
    ((_, pair),) = read_pairs([output])
    assert {turn.instruction for turn in pair.turns} == {"How old is number 1?", "How old is number 0?"}
    for turn in pair.turns:
        assert FACTS[int(turn.instruction[-2])] in turn.short_context
    counts = json.loads((tmp_path / "pairs.jsonl.manifest.json").read_text())["counts"]
    assert (counts["asked"], counts["requests"], counts["sources"]["questions"]) == (2, 4, 2)


def test_a_journal_belongs_to_its_questions(
    folder: Path, endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "pairs.jsonl"
    assert generate(folder, endpoint, output, [about(1)]) == 0
    output.unlink()
    assert generate(folder, endpoint, output, [about(1)]) == 0  # nothing is asked again
    lines = [line for _, _, line in journal_lines(tmp_path / "pairs.jsonl.journal" / "shard-1-of-1.journal")]
    assert [line["kind"] for line in lines].count("answer") == 2
    output.unlink()
    assert generate(folder, endpoint, output, [about(2)]) == 2
    assert "corpus.questions" in capsys.readouterr().err


BAD: dict[str, tuple[list[object], str]] = {
    "no file line": ([""], "holds no question; give one a line"),
    "no JSON": ([about(1), "{"], ":2: not a JSON line"),
    "half a character": (['{"document": "\\ud800", "question": "Why?", "evidence": "x"}'], ":1: not a JSON line"),
    "no object": (["[]"], ":1: a question has the fields document, evidence, question"),
    "another field": ([about(1) | {"answer": "x"}], ":1: a question has the fields"),
    "empty": ([about(1) | {"question": " "}], ":1: question is ' ', and must be a text"),
    "no text": ([about(1) | {"document": 7}], ":1: document is 7, and must be a text"),
    "no evidence": ([about(1) | {"evidence": []}], ":1: evidence is an empty list"),
    "evidence of another type": ([about(1) | {"evidence": [None]}], ":1: evidence is None"),
    "about nothing": ([about(1, document="b.txt")], "no question of --questions is about a chunk"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_questions_are_one_line(
    case: str, folder: Path, endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, message = BAD[case]
    assert generate(folder, endpoint, tmp_path / "pairs.jsonl", lines) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "pairs.jsonl").exists()
