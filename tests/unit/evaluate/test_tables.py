"""The tables' arithmetic, against numpy and the paper's own numbers."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.cells import Cell
from megatron_longpo.evaluate.report.differences import paired
from megatron_longpo.evaluate.report.estimates import Estimate, mean_over
from megatron_longpo.evaluate.report.published import PUBLISHED, choose_published, published_notes
from megatron_longpo.evaluate.report.rows import Row, make_rows
from megatron_longpo.evaluate.report.summary import SuiteSummary, summarise
from megatron_longpo.evaluate.report.tables import Line, Value
from megatron_longpo.evaluate.suites import INFINITEBENCH, RULER, SHORT, SUITES
from tests.unit.evaluate.making_cells import cell, drawn

LENGTHS = (4096, 8192)
PAPER_AVG = {4096: 93.36, 8192: 91.88, 16384: 92.35, 32768: 88.94, 65536: 82.61, 131072: 78.97}
"""Mistral-7B-LongPO-128K by length, arXiv 2502.13922."""


def rows_of(*cells: Cell, models: Sequence[str] | None = None) -> list[Row]:
    return make_rows({Path(f"{number}.json"): one for number, one in enumerate(cells)}, models)


def ruler(*cells: Cell) -> SuiteSummary:
    return summarise(rows_of(*cells), [])[0]


def of_model(model: str, order: int, rate: float, num: int = 40, lengths: Sequence[int] = LENGTHS) -> list[Cell]:
    """All 13 tasks; samples that every model shares are drawn alike, so that scores go together."""
    return [
        cell(drawn(rate - 0.01 * place, num, task, length), task, length, model=model, order=order)
        for length in lengths
        for place, task in enumerate(RULER.tasks)
    ]


def value(line: Line, place: int) -> Value:
    found = line.values[place]
    assert found is not None
    return found


def notes(one: SuiteSummary) -> list[str]:
    return [str(note) for note in (*one.notes, *one.difference_notes)]


def test_rulers_columns_are_means_over_tasks_and_lengths() -> None:
    cells = of_model("base", 0, 0.7)
    scores = np.array([[sample.score for sample in one.samples] for one in cells]).reshape(2, 13, 40) * 100
    means = scores.mean(axis=2)
    errors = scores.std(axis=2, ddof=1) / math.sqrt(40)
    columns = [slice(0, 8), slice(8, 9), slice(9, 11), slice(11, 13), slice(0, 13)]
    one = ruler(*cells)
    (line,) = one.scores.lines
    for place, column in enumerate(columns):
        estimate = value(line, place).estimate
        some = errors[:, column]
        assert estimate.value == pytest.approx(means[:, column].mean())
        assert estimate.standard_error == pytest.approx(math.sqrt((some**2).sum()) / some.size)
        for row, by_length in enumerate(one.scores_by_length.lines):
            estimate = value(by_length, place).estimate
            assert estimate.value == pytest.approx(means[row, column].mean())
            assert estimate.standard_error == pytest.approx(np.sqrt((errors[row, column] ** 2).sum()) / some.shape[1])
    assert [(by_task.label, by_task.length) for by_task in one.scores_by_task.lines[:3]] == [
        ("ruler_niah_single_1", 4096),
        ("ruler_niah_single_1", 8192),
        ("ruler_niah_single_2", 4096),
    ]


def test_the_papers_average_comes_out_of_its_lengths() -> None:
    estimates = {(task, length): Estimate(score, 1.0) for length, score in PAPER_AVG.items() for task in RULER.tasks}
    average = mean_over(estimates, RULER.tasks, list(PAPER_AVG))
    assert average is not None and average.value == pytest.approx(88.02, abs=0.005)


WRONG = {("infinitebench", "Mistral-7B-DPO-128K"): 1.00, ("ruler", "Mistral-7B-Instruct-v0.2"): 0.07}
"""Published averages that are not the mean of their columns, and by how much at most."""


@pytest.mark.parametrize(
    ("suite", "name"), [(suite, name) for suite, rows in PUBLISHED.items() for name in rows], ids=str
)
def test_published_averages_come_out_of_their_columns(suite: str, name: str) -> None:
    *columns, average = PUBLISHED[suite][name]
    weights = {"ruler": [8, 1, 2, 2], "infinitebench": [1, 1, 1], "short": [1, 1, 1, 1]}[suite]
    off = abs(np.average(columns, weights=weights) - average)
    assert off < 0.0101 if (suite, name) not in WRONG else 0.02 < off < WRONG[suite, name]
    assert any(name in note for note in published_notes(suite, [name])) == ((suite, name) in WRONG)


def test_short_and_infinitebench_averages() -> None:
    for suite in (INFINITEBENCH, SHORT):
        cells = [cell(drawn(0.5, 30, task), task) for task in suite.tasks]
        (one,) = summarise(rows_of(*cells), [])
        values = [value(one.scores.lines[0], place).estimate for place in range(len(suite.columns))]
        assert [one.value for one in values[:-1]] == pytest.approx([one.score for one in cells])
        assert values[-1].value == pytest.approx(np.mean([one.score for one in cells]))
        assert one.scores_by_length.lines[0].length is None and notes(one) == []


def test_paired_differences() -> None:
    base, sft = drawn(0.5, 200, "vt"), drawn(0.6, 200, "vt")
    result = paired(cell(base), cell(sft, model="sft"))
    differences = 100 * (np.array(sft) - np.array(base))
    assert result.difference is not None and result.difference.interval is not None
    assert result.difference.value == pytest.approx(differences.mean())
    half = 1.959964 * differences.std(ddof=1) / math.sqrt(200)
    assert result.difference.interval == pytest.approx((differences.mean() - half, differences.mean() + half))
    assert (result.num_pairs, result.num_other_prompts) == (200, 0) and result.difference.is_clear
    unpaired = math.hypot(*(100 * np.std(one, ddof=1) / math.sqrt(200) for one in (base, sft)))
    assert half < 1.96 * unpaired / 1.5, "what pairing is for"


def test_differences_of_groups_lengths_and_overall() -> None:
    base, sft = of_model("base", 0, 0.5), of_model("sft", 1, 0.6)
    one = ruler(*base, *sft)
    differences = np.array(
        [
            [100 * (new.score - old.score) for old, new in zip(before.samples, after.samples, strict=True)]
            for before, after in zip(base, sft, strict=True)
        ]
    ).reshape(2, 13, 40)
    means, errors = differences.mean(axis=2), differences.std(axis=2, ddof=1) / math.sqrt(40)
    (line,) = one.differences.lines
    assert line.label == "sft \u2212 base"
    for place, column in enumerate([slice(0, 8), slice(8, 9), slice(9, 11), slice(11, 13), slice(0, 13)]):
        found = value(line, place)
        assert found.estimate.value == pytest.approx(means[:, column].mean())
        assert found.estimate.standard_error == pytest.approx(
            np.sqrt((errors[:, column] ** 2).sum()) / errors[:, column].size
        )
        assert found.num_pairs == means[:, column].size * 40
        by_length = value(one.differences_by_length.lines[1], place)
        assert by_length.estimate.value == pytest.approx(means[1, column].mean())
    by_task = value(one.differences_by_task.lines[0], 0)
    assert (by_task.estimate.value, by_task.num_pairs) == (pytest.approx(means[0, 0]), 40)


@pytest.mark.parametrize(
    ("others", "is_clear"),
    [([0, 1] * 20, False), ([1, 1] * 20, True), ([1, 1] + [0, 1] * 19, False), ([0, 0] * 20, True)],
)
def test_a_difference_is_clear_where_its_interval_leaves_out_0(others: list[float], is_clear: bool) -> None:
    result = paired(cell([0, 1] * 20), cell(others, model="sft"))
    assert result.difference is not None and result.difference.is_clear is is_clear


def test_only_the_same_questions_with_the_same_prompts_are_compared() -> None:
    base = cell([0, 0, 1, 1], ids=["a", "b", "c", "d"])
    other = cell([1, 1, 1], ids=["c", "b", "e"], model="sft")
    result = paired(base, other)
    assert (result.num_pairs, result.num_other_prompts) == (2, 0)
    assert result.difference is not None and result.difference.value == pytest.approx(50)
    result = paired(base, cell([1, 1], ids=["c", "b"], model="sft", tokenizer="another"))
    assert (result.difference, result.num_pairs, result.num_other_prompts) == (None, 0, 2)


def test_other_tokenizers_have_no_differences_and_it_is_said() -> None:
    other = [cell([1, 0], "ruler_vt", length, "sft", 1, tokenizer="another") for length in LENGTHS]
    one = ruler(*[cell([1, 0], "ruler_vt", length) for length in LENGTHS], *other)
    assert one.differences.lines[0].values == (None,) * 5 and not one.differences_by_length.lines
    assert any("sft \u2212 base: no paired differences, since their prompts differ" in note for note in notes(one))
    one = ruler(
        cell([1, 0]),
        cell([1, 0], "ruler_fwe"),
        cell([1, 1], model="sft", order=1),
        cell([1, 1], "ruler_fwe", model="sft", order=1, tokenizer="another"),
    )
    assert "sft \u2212 base: 2 of 4 questions had another prompt and are left out." in notes(one)
    assert value(one.differences.lines[0], 4).num_pairs == 2


def test_a_single_sample_has_no_error() -> None:
    one = ruler(cell([1]), cell([0], "ruler_fwe"), cell([0], model="sft", order=1))
    assert value(one.scores.lines[0], 1).estimate == Estimate(100.0, None)
    assert value(one.scores.lines[0], 4).estimate == Estimate(50.0, None)
    difference = value(one.differences.lines[0], 1).estimate
    assert difference == Estimate(-100.0, None) and difference.interval is None and not difference.is_clear


def test_missing_tasks_are_marked_and_named() -> None:
    base = [one for one in of_model("base", 0, 0.6) if one.task != "ruler_qa_hotpot"]
    sft = [one for one in of_model("sft", 1, 0.7) if (one.task, one.length) != ("ruler_cwe", 8192)]
    one = ruler(*base, *sft)
    complete = [[value(line, place).is_complete for place in range(5)] for line in one.scores.lines]
    assert complete == [[True, True, True, False, False], [True, True, False, True, False]]
    qa = [cell.score for cell in base if cell.task == "ruler_qa_squad"]
    assert value(one.scores.lines[0], 3).estimate.value == pytest.approx(np.mean(qa))
    agg = [np.mean([c.score for c in sft if c.task in ("ruler_cwe", "ruler_fwe") and c.length == at]) for at in LENGTHS]
    assert value(one.scores.lines[1], 2).estimate.value == pytest.approx(np.mean(agg))
    assert "base: \u2020 over 12 of 13 tasks, without ruler_qa_hotpot." in notes(one)
    assert "sft: \u2020 at 8K without ruler_cwe." in notes(one)
    (line,) = one.differences.lines
    assert [value(line, place).is_complete for place in range(5)] == [True, True, False, False, False]
    assert value(line, 4).num_pairs == (12 + 11) * 40


def test_a_column_of_which_nothing_is_there() -> None:
    one = ruler(cell([1, 0]))
    assert [number is None for number in one.scores.lines[0].values] == [True, False, True, True, False]


def test_other_lengths_are_left_out_of_the_means() -> None:
    one = ruler(*of_model("base", 0, 0.6), *of_model("sft", 1, 0.6, lengths=(8192, 16384)))
    assert one.common_lengths == [8192]
    assert value(one.scores.lines[1], 4) == value(one.scores_by_length.lines[2], 4)
    assert len(one.scores_by_length.lines) == 4 and len(one.differences_by_length.lines) == 1
    assert notes(one)[:3] == [
        "Means over 8K tokens.",
        "base: not in these means, since not all rows have it: 4K.",
        "sft: not in these means, since not all rows have it: 16K.",
    ]
    one = ruler(*of_model("base", 0, 0.6, lengths=(4096,)), *of_model("sft", 1, 0.6, lengths=(8192,)))
    assert "No length is common to all rows: they do not compare." in notes(one)
    assert "sft: means over 8K." in notes(one) and "sft \u2212 base: no task in common." in notes(one)


def test_short_and_cut_prompts_and_other_settings_are_told() -> None:
    one = ruler(
        cell([1, 0], "ruler_cwe", 8192, real_length=7000.4, num_truncated=1),
        cell([1, 0], "ruler_fwe", 8192, real_length=7400.0),
        cell([1, 0], "ruler_fwe", 8192, model="sft", order=1, settings={"dtype": "float32", "shots": 5}),
    )
    assert "base: shorter than asked for: ruler_cwe at 8K (7,000 tokens on average)." in notes(one)
    assert "base: prompts cut in the middle: ruler_cwe at 8K 1 of 2." in notes(one)
    assert "Settings that are not the same in all rows: dtype." in notes(one)
    assert list(one.settings) == [("dtype", ["bfloat16", "float32"]), ("shots", ["5", "5"])]


def test_two_engines_are_two_rows() -> None:
    cells = [
        cell([1, 0], engine=engine, model=model, order=order, limit=limit)
        for order, model in enumerate(("base", "longpo"))
        for engine, limit in (("hf", None), ("vllm", None), ("vllm", 2))
    ]
    one = ruler(*cells)
    assert [line.label for line in one.scores.lines[:3]] == [
        "base (hf)",
        "base (vllm, all samples)",
        "base (vllm, first 2)",
    ]
    assert [line.label.split(" \u2212 ") for line in one.differences.lines] == [
        ["base (vllm, all samples)", "base (hf)"],
        ["base (vllm, first 2)", "base (hf)"],
        *([label.replace("base", "longpo"), label] for label in (line.label for line in one.scores.lines[:3])),
    ]
    assert [row.label for row in rows_of(*(one for one in cells if one.engine == "hf"))] == ["base", "longpo"]


def test_limits_that_are_of_other_tasks_are_one_row() -> None:
    """As where MMLU, whose limit is of each of 57 subjects, was run with a lower one."""
    limits = {"mmlu": 2, "arc_challenge": 100, "winogrande": 100}
    rows = rows_of(
        cell([1, 0]), *(cell([1, 0], task, limit=limit) for task, limit in limits.items()), cell([1], "hellaswag")
    )
    (row,) = rows
    assert (row.label, row.limits) == ("base", [2, 100, None])
    long, short = (notes(one) for one in summarise(rows, []))
    assert not any("only" in note for note in long)
    assert "base: only the first 2 of each subject of mmlu, the first 100 of arc_challenge and winogrande." in short


def test_models_are_chosen_and_ordered_by_name() -> None:
    cells = [cell([1], model=name, order=order) for order, name in enumerate(("base", "sft", "longpo"))]
    assert [row.label for row in rows_of(*cells)] == ["base", "sft", "longpo"]
    assert [row.label for row in rows_of(*cells, models=["longpo", "base"])] == ["longpo", "base"]
    with pytest.raises(UserError, match="--models: no cells of 'dpo'; there are: base, sft, longpo"):
        rows_of(*cells, models=["base", "dpo"])
    with pytest.raises(UserError, match="--models: names no model; there are: base, sft, longpo"):
        rows_of(*cells, models=[])
    with pytest.raises(UserError, match="names a model twice"):
        rows_of(*cells, models=["base", "base"])


def test_the_first_model_without_a_suite() -> None:
    cells = [cell([1, 0]), cell([1, 0], "mmlu", model="sft", order=1), cell([0, 0], "mmlu", model="dpo", order=2)]
    short = summarise(rows_of(*cells), [])[1]
    assert short.suite is SHORT and not short.differences.lines
    assert notes(short)[-1] == "No differences: base has no cell of Short context."


def test_contradictions_name_both_files() -> None:
    with pytest.raises(UserError) as error:
        rows_of(cell([1]), cell([1], settings={"dtype": "float32", "shots": 5}))
    assert str(error.value) == (
        "0.json and 1.json: both are ruler_vt at 4096 of 'base'; what differs: dtype 'bfloat16' and 'float32'; "
        "remove one"
    )
    with pytest.raises(UserError, match=r"0\.json and 1\.json: both are of 'base', with other weights \(a, b\)"):
        rows_of(cell([1], weights="a"), cell([1], "ruler_cwe", weights="b"))
    cells = [cell([1]), cell([1], model="sft", weights="a"), cell([1], model="sft", weights="b")]
    assert len(rows_of(*cells, models=["base"])) == 1, "what is not asked for does not matter"


def test_published_rows_are_chosen_by_name() -> None:
    assert choose_published(["none"]) == [] and len(choose_published(["all"])) == 16
    assert choose_published(["GPT-4-128K"]) == ["GPT-4-128K"]
    with pytest.raises(UserError, match="--published 'GPT-5': give all, none, or names from: Qwen"):
        choose_published(["GPT-5"])
    for suite, rows in PUBLISHED.items():
        assert all(len(numbers) == len(SUITES[suite].columns) for numbers in rows.values())
