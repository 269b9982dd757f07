"""A cell is written whole, reads back equal, and what is no cell is told with its file and field."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.cells import read_cell, read_cell_files, write_cell
from megatron_longpo.evaluate.rules import RULES
from megatron_longpo.evaluate.suites import INFINITEBENCH, RULER, SUITES
from tests.unit.evaluate.making_cells import cell, written

HOSTILE = '<script>alert(1)</script> "quoted" \\ \n\r\u2028 \u4f60\u597d \U0001f409 \x00'


def test_the_tasks_are_those_that_have_rules() -> None:
    assert [*INFINITEBENCH.tasks, *RULER.tasks] == list(RULES)
    assert [len(column.tasks) for column in RULER.columns] == [8, 1, 2, 2, 13]
    for suite in SUITES.values():
        parts = [task for column in suite.columns[:-1] for task in column.tasks]
        assert parts == list(suite.tasks), "the last column is all the others"


def test_reads_back_equal_and_is_json(tmp_path: Path) -> None:
    one = cell([0, 0.25, 1], answer=HOSTILE, limit=3, settings={"z": None, "a": True, "shots": 5, "part": 0.5})
    path = tmp_path / "cells" / "a.json"
    write_cell(path, one)
    assert read_cell(path) == one
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record.pop("format_version") == 1
    assert record == json.loads(json.dumps(asdict(one)))
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_the_same_cell_gives_the_same_bytes(tmp_path: Path) -> None:
    one = cell([0, 1], settings={"b": 1, "a": 2})
    write_cell(tmp_path / "1", one)
    write_cell(tmp_path / "2", replace(one, settings={"a": 2, "b": 1}))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_half_a_surrogate_pair_does_not_stop_a_run(tmp_path: Path) -> None:
    write_cell(tmp_path / "1", cell([1], answer="a\ud800b"))
    assert read_cell(tmp_path / "1").samples[0].answer == "a?b"


def changed(path: Path, **values: Any) -> Path:
    record = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps({name: value for name, value in record.items() if value != "gone"}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"score": "gone"}, '"score" is missing'),
        ({"extra": 1}, '"extra" is not known'),
        ({"format_version": 2}, "format_version"),
        ({"order": True}, '"order" is not a whole number'),
        ({"num": 2.0}, '"num" is not a whole number'),
        ({"model": None}, '"model" is not a text'),
        ({"length": "4K"}, '"length" is not a whole number or null'),
        ({"length": None}, '"length" is None'),
        ({"limit": 0}, '"limit" is 0'),
        ({"settings": []}, '"settings" is not an object'),
        ({"settings": {"a": [1]}}, '"settings" has a value'),
        ({"engine": "tgi"}, "not one of hf, vllm, openai"),
        ({"suite": "long"}, "not one of ruler, infinitebench, short"),
        ({"task": "mmlu"}, "\"task\" is 'mmlu'"),
        ({"num": 3}, '"num" is 3'),
        ({"score": 51.0}, "not the samples' mean, 50.0000"),
        ({"standard_error": -1.0}, "below 0"),
        ({"samples": []}, '"num" is 2'),
        ({"samples": [7, 8]}, "sample 1: is no JSON object"),
        ({"samples": [{"id": 1, "prompt_sha256": "", "answer": "", "score": 1}] * 2}, 'sample 1: "id" is not a text'),
        ({"samples": [{"id": "1", "prompt_sha256": "", "answer": "", "score": 1}] * 2}, "has an id twice"),
        ({"samples": [{"id": "1", "prompt_sha256": "", "answer": ""}] * 2}, '"score" is missing'),
    ],
)
def test_every_field_is_checked(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    write_cell(path, cell([0, 1]))
    with pytest.raises(UserError) as error:
        read_cell(changed(path, **values))
    assert message in str(error.value) and str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": NaN}', b"\xff", b"[" * 100_000, b"[]"])
def test_what_is_no_json_object(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"one\.json: "):
        read_cell(path)


def test_cells_of_a_folder_are_in_order_of_model_task_and_length(tmp_path: Path) -> None:
    cells = [
        cell([1], "mmlu", model="a", order=1),
        cell([1], "ruler_vt", 8192, model="a", order=1),
        cell([1], "ruler_vt", 4096, model="a", order=1),
        cell([1], "ruler_qa_squad", 4096, model="z", order=0),
        cell([1], "ruler_niah_single_1", 16384, model="z", order=0),
    ]
    read = list(read_cell_files(written(tmp_path, *cells)).values())
    assert [(one.model, one.task, one.length) for one in read] == [
        ("z", "ruler_niah_single_1", 16384),
        ("z", "ruler_qa_squad", 4096),
        ("a", "ruler_vt", 4096),
        ("a", "ruler_vt", 8192),
        ("a", "mmlu", None),
    ]


def test_a_cell_that_is_being_written_is_none_yet(tmp_path: Path) -> None:
    written(tmp_path, cell([1]))
    (tmp_path / "cells" / ".abc.json.partial").write_text("{")
    assert len(read_cell_files(tmp_path)) == 1


def test_no_cells_and_a_broken_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no cells; make them: megatron-longpo evaluate run"):
        read_cell_files(tmp_path)
    written(tmp_path, cell([1]))
    (tmp_path / "cells" / "b.json").write_text('{"format_version": 1')
    with pytest.raises(UserError, match=r"b\.json: .*; remove the file and run evaluate run again"):
        read_cell_files(tmp_path)
