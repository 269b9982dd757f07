"""The page of `megatron-longpo report`, and what it says to wrong input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.commands.main import main
from megatron_longpo.evaluate.report.report import write_report
from megatron_longpo.report.runs import read_runs
from tests.html_page import Page
from tests.unit.evaluate.making_cells import cell, written

SETTINGS = {
    "method": {"description": "LongPO", "tags": []},
    "versions": {"megatron-longpo": "0.1.0"},
    "schedule": {"learning_rate": 5e-7},
}


def line(step: int, split: str = "train", **values: Any) -> dict[str, Any]:
    return {"step": step, "split": split, "loss": 1.0 / step, **values}


def make_run(folder: Path, lines: list[dict[str, Any]], stretches: list[dict[str, Any]] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    if stretches is not None:
        record = {"format_version": 1, "stages": [{"stretches": stretches}]}
        (folder / "training_record.json").write_text(json.dumps(record))
    return folder


def lines_of(start: int, end: int, resumed_from: int = 0) -> list[dict[str, Any]]:
    extra = {"num_pairs": 8, "seconds": 30.0, "mfu": 0.4, "grad_norm": None, "resumed_from": resumed_from}
    return [line(step, by_length={"4096": {"nll": 2.0}}, **extra) for step in range(start, end)]


def report(*argv: str | Path) -> int:
    return main(["report", *map(str, argv)])


def page_of(path: Path) -> Page:
    """Parsed; it fetches nothing and runs nothing."""
    text = path.read_text(encoding="utf-8")
    assert "://" not in text and "<script" not in text
    return Page(text)


def test_two_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One was resumed with another learning rate."""
    faster = SETTINGS | {"schedule": {"learning_rate": 1e-6}}
    stretches = [{"after_step": 0, "settings": SETTINGS}, {"after_step": 5, "settings": faster}]
    valid = [line(step, "valid", accuracy=step / 10) for step in (5, 10)]
    one = make_run(tmp_path / "a" / "<one>", [*lines_of(1, 6), *lines_of(6, 11, 5), *valid], stretches)
    two = make_run(tmp_path / "b" / "two", lines_of(1, 400), stretches[:1])
    output = tmp_path / "new" / "page.html"
    assert report(one, two, "--output", output) == 0, capsys.readouterr().err
    page = page_of(output)
    assert page.row("last step") == ["10", "399"]
    assert page.row("training") == ["5 min 00 s", "3 h 19 min"]
    assert page.row("loss, held out") == ["0.2 \u2192 0.1", "\u2013"]
    assert page.row("accuracy, held out") == ["0.5 \u2192 1", "\u2013"]
    assert page.row("MFU, median") == ["40.0%", "40.0%"]
    assert page.row("schedule.learning_rate") == ["5e-07 \u2192 1e-06 (after step 5)", "5e-07"]
    assert page.row("method.description") == ["LongPO", "LongPO"]
    assert "<one>" in page.text and "at most 240 points" in page.text
    classes = [value for name, value in page.attributes if name == "class"]
    assert classes.count("resume c0") > classes.count("resume c1") == 0
    assert {"held c0", "line c0", "line c1", "band c1"} <= set(classes)


def test_the_evaluation_beside_a_run_or_elsewhere(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", lines_of(1, 3))
    for folder in (run, tmp_path / "elsewhere"):
        write_report(written(folder, cell([1, 1, 1, 0]), cell([1, 0, 0, 0], model="<longpo>")))
    pages: list[Page] = []
    for more in ([], ["--evaluation", tmp_path / "elsewhere"]):
        assert report(run, "--output", tmp_path / "page.html", *more) == 0
        pages.append(page_of(tmp_path / "page.html"))
    assert pages[0].text == pages[1].text
    scores = {row[0]: row[1:] for row in pages[0].rows if row[0] in ("base", "<longpo>")}
    assert set(scores) == {"base", "<longpo>"} and any(one.startswith("75.00") for one in scores["base"])


def test_one_file_without_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As --longpo-metrics writes it, while the run is writing on."""
    file = tmp_path / "first.jsonl"
    file.write_text(json.dumps(line(1)) + "\n" + json.dumps(line(2))[:9])
    assert report(file, "--output", tmp_path / "page.html") == 0, capsys.readouterr().err
    page = page_of(tmp_path / "page.html")
    assert "first" in page.text and "Recipe" not in page.text and "at most" not in page.text


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", lines_of(1, 30), [{"after_step": 0, "settings": SETTINGS}])
    for name in ("1.html", "2.html"):
        assert report(run, "--output", tmp_path / name) == 0
    assert (tmp_path / "1.html").read_bytes() == (tmp_path / "2.html").read_bytes()


def test_labels_are_as_long_as_they_must_be(tmp_path: Path) -> None:
    paths = [make_run(tmp_path / one / "run", lines_of(1, 2)) for one in ("x", "y")]
    assert [run.label for run in read_runs(paths)] == ["x/run", "y/run"]
    assert [run.label for run in read_runs(paths[:1])] == ["run"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no whole line"),
        ('{"step": 1, "split": "train", "loss": 1.0}', "holds no whole line"),
        ('{"step": 1, "split": "train"}\n{"step": 2,\n', ":2: not a line of metrics (JSONDecodeError"),
        ('{"step": 1, "split": "train", "loss": NaN}\n', ":1: not a line of metrics (ValueError"),
        ('{"step": 1, "split": "train", "by_turn": {"1": {"nll": "2"}}}\n', ':1: by_turn/1/nll is "2", needs a number'),
        ('{"step": 1, "split": "train", "loss": true}\n', ":1: loss is true, needs a number"),
        ('{"id": "pair-1", "context": "words"}\n', ":1: not a line of metrics, which is like"),
        ("[1]\n", ":1: not a line of metrics, which is like"),
        ("[" * 100_000 + "\n", ":1: not a line of metrics (RecursionError"),
    ],
)
def test_wrong_files(tmp_path: Path, content: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "m.jsonl"
    file.write_text(content)
    assert report(file, "--output", tmp_path / "page.html") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"megatron-longpo report: error: {file}") and message in error and error.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def spoil(run: Path) -> list[str | Path]:
    (run / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    return [run]


WRONG: dict[str, tuple[Callable[[Path], list[str | Path]], str]] = {
    "absent": (lambda run: [run / "x"], "there is no such file or folder"),
    "empty folder": (lambda run: [run.parent], "has no metrics.jsonl"),
    "not text": (spoil, "utf-8"),
    "twice": (lambda run: [run, run / "metrics.jsonl"], "given twice"),
    "too many": (lambda run: [run] * 9, "at most 8"),
    "no evaluation": (lambda run: [run, "--evaluation", run], "has no report.json"),
    "over itself": (lambda run: [run, "--output", run / "metrics.jsonl"], "is a run's metrics file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_runs(tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", lines_of(1, 3))
    make, message = WRONG[case]
    assert report("--output", tmp_path / "page.html", *make(run)) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_broken_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", lines_of(1, 3), [{"after_step": "x", "settings": SETTINGS}])
    assert report(run, "--output", tmp_path / "page.html") == 2
    assert "training_record.json: not a recipe" in capsys.readouterr().err
