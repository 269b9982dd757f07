"""``megatron-longpo evaluate score``: files of answers, what is wrong with them, and what is printed."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.commands.main import main
from megatron_longpo.evaluate.answers import Score, score_of

RIGHT = '{"answer": "Lyon", "references": ["Lyon"]}\n'
WRONG = '{"answer": "Porto", "references": ["Lyon"], "id": 7}\n'


def run(path: Path, task: str = "ruler_vt") -> int:
    return main(["evaluate", "score", "--task", task, "--answers", str(path)])


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "answers.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def printed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    output = capsys.readouterr()
    assert output.err == ""
    return json.loads(output.out)


def test_a_file_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(written(tmp_path, RIGHT * 3 + "\n" + WRONG)) == 0
    found = printed(capsys)
    # Four answers, three right: the standard deviation is sqrt(4/3 * 3/4 * 1/4) = 1/2, its error half of that.
    assert found == {"task": "ruler_vt", "score": 75.0, "num": 4, "standard_error": pytest.approx(25.0)}


def test_one_answer_has_no_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(written(tmp_path, b"\xef\xbb\xbf" + RIGHT.encode().rstrip())) == 0
    assert printed(capsys) == {"task": "ruler_vt", "score": 100.0, "num": 1, "standard_error": None}


def test_a_choice_is_scored_by_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = {"answer": "B", "references": ["In May"], "options": ["In March", "In May", "In June", "Never"]}
    assert run(written(tmp_path, json.dumps(line)), "infinitebench_en_mc") == 0
    assert printed(capsys)["score"] == 100.0


def test_the_standard_error_is_that_of_a_mean() -> None:
    scores = [0.0, 0.25, 1.0, 0.5]
    deviation = math.sqrt(sum((one - 0.4375) ** 2 for one in scores) / 3)
    assert score_of(scores) == Score(43.75, 4, pytest.approx(100 * deviation / 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no answer; give one a line"),
        (RIGHT + '{"answer": ', ":2: not a JSON line"),
        (RIGHT + "[]\n", ':2: no "answer" that is a text'),
        ('{"answer": 7, "references": ["7"]}', ':1: no "answer" that is a text'),
        ('{"answer": "7", "references": "7"}', ':1: "references" is no list of texts'),
        ('{"answer": "7", "references": [7]}', ':1: "references" is no list of texts'),
        ('{"answer": "7", "references": []}', ':1: no "references"'),
        ('{"answer": "7"}', ':1: no "references"'),
        ('{"answer": "7", "answer": "8", "references": ["7"]}', "appears twice"),
        (RIGHT + '{"answer": "7", "references": ["7"], "options": ["7"]}', ':2: "options" has 1 texts; give four'),
        (b'{"answer": "\xff", "references": ["7"]}', ":1: not a JSON line"),
    ],
)
def test_what_is_no_answer_is_named_with_its_line(
    text: str | bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(written(tmp_path, text)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith(f"megatron-longpo evaluate: error: {tmp_path / 'answers.jsonl'}")
    assert message in output.err
    assert output.err.count("\n") == 1


def test_a_choice_without_its_letter_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(written(tmp_path, RIGHT), "infinitebench_en_mc") == 2
    assert "answers.jsonl:1: 'Lyon' is none of the options" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none.jsonl") == 2
    assert "none.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["guess"], ["score"], ["score", "--task", "mmlu", "--answers", "x"]])
def test_a_wrong_command_line_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", *words])
    assert "error: " in capsys.readouterr().err
