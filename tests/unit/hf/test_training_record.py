"""The recipe beside the checkpoints: resumed, begun anew, given up; and the metrics of a step."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.errors import UserError
from megatron_longpo.hf.training_record import (
    Settings,
    Stage,
    Stretch,
    metrics_at,
    training_record_at,
    write_training_record,
)

METHOD = {"description": "LongPO", "tags": ["longpo"]}


def settings(beta: float) -> Settings:
    return {"method": METHOD, "objective": {"name": "longpo", "beta": beta}, "versions": {"megatron-longpo": "0.1"}}


def test_begins_at_an_imported_checkpoint(tmp_path: Path) -> None:
    write_training_record(tmp_path / "run", tmp_path / "imported", 0, 0, settings(1.0))
    assert training_record_at(tmp_path / "run", 7) == [Stage(7, (Stretch(0, settings(1.0)),))]
    assert training_record_at(tmp_path / "run", 0) == [], "nothing is trained"
    assert training_record_at(tmp_path / "imported", 7) == [], "nothing is recorded"


def test_goes_on(tmp_path: Path) -> None:
    """The same settings are the same stretch; others begin one; another folder takes the history along."""
    write_training_record(tmp_path, tmp_path, 0, 0, settings(1.0))
    before = (tmp_path / "training_record.json").read_bytes()
    write_training_record(tmp_path, tmp_path, 4, 4, settings(1.0))
    assert (tmp_path / "training_record.json").read_bytes() == before
    assert training_record_at(tmp_path, 9) == [Stage(9, (Stretch(0, settings(1.0)),))]
    write_training_record(tmp_path, tmp_path, 8, 8, settings(2.0))
    write_training_record(tmp_path / "other", tmp_path, 9, 9, settings(3.0))
    assert training_record_at(tmp_path / "other", 10) == [Stage(10, tuple(Stretch(*at) for at in AT))]
    assert training_record_at(tmp_path / "other", 8) == [Stage(8, (Stretch(0, settings(1.0)),))]


AT = ((0, settings(1.0)), (8, settings(2.0)), (9, settings(3.0)))


def test_a_schedule_goes_on(tmp_path: Path) -> None:
    """Where the checkpoint's is used, and the options are not."""
    schedule: Settings = {"schedule": {"learning_rate": 0.5}}
    write_training_record(tmp_path, tmp_path, 0, 0, settings(1.0) | schedule)
    write_training_record(tmp_path, tmp_path, 5, 5, settings(1.0))
    write_training_record(tmp_path, tmp_path, 7, 7, settings(2.0))
    expected = (Stretch(0, settings(1.0) | schedule), Stretch(7, settings(2.0) | schedule))
    assert training_record_at(tmp_path, 9) == [Stage(9, expected)]


def test_a_stretch_that_left_no_checkpoint_is_dropped(tmp_path: Path) -> None:
    write_training_record(tmp_path, tmp_path, 0, 0, settings(1.0))
    for beta in (2.0, 3.0, 3.0):
        write_training_record(tmp_path, tmp_path, 5, 5, settings(beta))
    assert training_record_at(tmp_path, 6) == [Stage(6, (Stretch(0, settings(1.0)), Stretch(5, settings(3.0))))]
    write_training_record(tmp_path, tmp_path, 5, 5, settings(1.0))
    assert training_record_at(tmp_path, 6) == [Stage(6, (Stretch(0, settings(1.0)),))]


def test_counting_anew_is_another_stage(tmp_path: Path) -> None:
    write_training_record(tmp_path / "a", tmp_path / "imported", 0, 0, settings(1.0))
    write_training_record(tmp_path / "b", tmp_path / "a", 30, 0, settings(1.0))
    first = Stage(30, (Stretch(0, settings(1.0)),))
    assert training_record_at(tmp_path / "b", 20) == [first, Stage(20, (Stretch(0, settings(1.0)),))]
    write_training_record(tmp_path / "b", tmp_path / "b", 20, 20, settings(2.0))
    assert training_record_at(tmp_path / "b", 25)[0] == first
    assert [stretch.after_step for stretch in training_record_at(tmp_path / "b", 25)[1].stretches] == [0, 20]


def test_a_beginning_that_nobody_recorded(tmp_path: Path) -> None:
    write_training_record(tmp_path / "run", tmp_path / "old", 5, 5, settings(1.0))
    assert training_record_at(tmp_path / "run", 9) == [Stage(9, (Stretch(5, settings(1.0)),))]
    assert training_record_at(tmp_path / "run", 4) == [], "its recipe is of later steps"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"format_version": 0}', "format_version is 0, needs 1"),
        ('{"format_version": 1}', "not a recipe"),
        ('{"format_version": 1, "stages": []}', "not a recipe"),
        ('{"format_version": 1, "stages": [{"num_steps": 1, "stretches": [{}]}]}', "not a recipe"),
        ("[]", "needs an object"),
        ('{"format_version": 1, "sta', "training_record.json:1: not valid JSON"),
        ('{"format_version": 1, "stages": 7}', "not a recipe"),
        ('{"format_version": 1, "stages": [null]}', "not a recipe"),
        ('{"format_version": 1, "stages": [{"stretches": []}]}', "a stage without stretches"),
    ],
)
def test_broken_recipe(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "training_record.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        training_record_at(tmp_path, 1)
    assert str(tmp_path / "training_record.json") in str(caught.value)


SECTIONS = {"method": METHOD, "versions": {"megatron-longpo": "0.1"}, "data": {"num_pairs": 3}}


@pytest.mark.parametrize(
    ("stage", "stretch", "message"),
    [
        ({}, {"settings": None}, "settings that are no sections"),
        ({}, {"settings": {**SECTIONS, "data": ["x"]}}, "settings that are no sections"),
        ({}, {"settings": {**SECTIONS, "method": {}}}, "KeyError: 'description'"),
        ({}, {"settings": {"method": METHOD}}, "KeyError: 'versions'"),
        ({}, {"settings": {**SECTIONS, "method": METHOD | {"description": 7}}}, "method.description is 7"),
        ({}, {"settings": {**SECTIONS, "method": METHOD | {"tags": "x"}}}, "method.tags is 'x'"),
        ({}, {"settings": {**SECTIONS, "versions": {"megatron-longpo": 7}}}, "versions.megatron-longpo is 7"),
        ({}, {"after_step": "x"}, "'x' is no number of steps"),
        ({}, {"after_step": -1}, "-1 is no number of steps"),
        ({"num_steps": 1.5}, {}, "1.5 is no number of steps"),
        ({"num_steps": None}, {}, "None is no number of steps"),
        ({}, {"more": 1}, "unexpected keyword argument"),
    ],
)
def test_damaged_recipe(tmp_path: Path, stage: dict[str, Any], stretch: dict[str, Any], message: str) -> None:
    """Of two stages, the fault in the first; what is damaged is told in one line, wherever it lies."""
    whole = {"num_steps": 5, "stretches": [{"after_step": 0, "settings": SECTIONS}]}
    stages = [whole | {"stretches": [whole["stretches"][0] | stretch]} | stage, whole]
    path = tmp_path / "training_record.json"
    path.write_text(json.dumps({"format_version": 1, "stages": [whole, whole]}))
    assert len(training_record_at(tmp_path, 3)) == 2
    path.write_text(json.dumps({"format_version": 1, "stages": stages}))
    with pytest.raises(UserError) as caught:
        training_record_at(tmp_path, 3)
    assert str(caught.value).startswith(f"{path}: not a recipe (") and "\n" not in str(caught.value)
    assert message in str(caught.value)


def test_metrics_of_a_step(tmp_path: Path) -> None:
    lines = [{"step": step, "split": "train", "loss": step / 10} for step in range(1, 7)]
    lines += [{"step": step, "split": "valid", "loss": -step} for step in (0, 2, 4, 6)]
    foreign = '[1]\n{"step": "x", "split": "train"}\n' + "[" * 100_000 + "\n"
    text = foreign + "\n".join(map(json.dumps, lines)) + '\n{"step": 3, "split": "tr'
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\n" + text.encode())
    found = {where: line["loss"] for where, line in metrics_at(tmp_path, 5).items()}
    assert found == {"training, step 5": 0.5, "held out, step 0": 0, "held out, step 4": -4}
    assert list(metrics_at(tmp_path, 1)) == ["training, step 1", "held out, step 0"]
    assert metrics_at(tmp_path, 0) == {} == metrics_at(tmp_path / "nowhere", 5)
