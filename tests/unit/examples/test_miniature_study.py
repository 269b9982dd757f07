"""examples/miniature/study.py: the jobs, the rule that chooses, wrong answers, and the statistics of its results."""

import json
import random
from itertools import count
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest

from examples.miniature import forks, results, study
from examples.miniature.evaluate import Exams
from examples.miniature.methods import NUM_TRIALS, REACH, Reach
from examples.miniature.study import (
    BASES,
    METHODS,
    TUNING_BASES,
    Done,
    Job,
    Setting,
    best,
    chosen_settings,
    final_jobs,
    refining_jobs,
    tuning_jobs,
    tuning_scores,
    varied_jobs,
)
from examples.miniature.task import NAMES, THINGS, TOWNS
from examples.miniature.workshop import Dataset, Workshop, with_noise


def exam(accuracy: float, skills: float = 1.0) -> Exams:
    return {name: {"all": accuracy} for name in ("1", "2", "4", "8", "16")} | {"skills": {"all": skills}}


def compared(setting: Setting) -> list[Job]:
    """Every job of the comparison."""
    chosen = dict.fromkeys(METHODS, setting)
    jobs = [job for base in BASES for job in final_jobs(base, chosen)]
    return jobs + [job for base in study.VARIED_BASES for job in varied_jobs(base, chosen)]


def finished(accuracy: dict[str, float]) -> Done:
    """A study of which all is done: a method's accuracy grows with the base, and its fourth trial is the best, at half
    its learning rate."""
    done: Done = {}
    for job in tuning_jobs():
        done[job] = {"exam": exam(0.9 if job.trial == 3 else 0.5)}
    for job in refining_jobs(done):
        done[job] = {"exam": exam(0.95 if job.rate == 0.5 else 0.6)}
    for job in compared(Setting(3, 0.5)):
        value = accuracy.get(job.method, 0.5) + 0.01 * job.base
        weights = "one" if job.phase in study.FINAL_PHASES else "another"
        done[job] = {"exam": exam(value), "exam_of_first": exam(value), "weights": weights}
    return done


def test_every_method_has_equally_many_trials_and_tuning_shares_nothing_with_the_comparison() -> None:
    assert {len(method.trials) for method in METHODS.values()} == {NUM_TRIALS}
    assert not set(TUNING_BASES) & set(BASES)
    assert len(set(BASES)) >= 5
    assert study.TUNING_EXAM != study.FINAL_EXAM
    jobs = [*tuning_jobs(), *compared(Setting(0, 0.5))]
    assert len(set(jobs)) == len(jobs)
    assert {job.base for job in jobs if job.phase == "tune"} == set(TUNING_BASES)
    assert {job.base for job in jobs if job.phase != "tune"} == set(BASES)


def test_the_setting_that_loses_nothing_wins() -> None:
    def line(long: float, skills: float) -> dict[str, Any]:
        return {"exam": exam(long, skills)}

    scores = {0: line(0.7, 1.0), 1: line(0.8, 0.2), 2: line(0.7, 1.0), 3: line(0.75, 0.5)}
    done = {
        Job(phase="tune", base=base, method="sft", trial=trial): scores.get(trial, line(0, 0))
        for base in TUNING_BASES
        for trial in range(NUM_TRIALS)
    }
    assert best(tuning_scores(done, "sft", rates=())) == Setting(0)
    done[Job(phase="tune", base=0, method="sft", trial=3)] = line(0.9, 0.9)
    assert best(tuning_scores(done, "sft", rates=())) == Setting(3)


def test_the_best_setting_is_tried_with_lower_rates_and_the_best_of_all_is_taken() -> None:
    done = finished({})
    assert {job.trial for job in refining_jobs(done)} == {3}
    assert set(chosen_settings(done).values()) == {Setting(3, 0.5)}
    for job in refining_jobs(done):
        done[job] = {"exam": exam(0.8)}
    assert set(chosen_settings(done).values()) == {Setting(3, 1.0)}


def test_a_finished_job_is_found_again_in_its_line(tmp_path: Path) -> None:
    jobs = [
        Job(phase="weight", base=2, method="longpo", weight=6.5),
        Job(phase="steps", base=2, method="sft", steps=44),
    ]
    path = tmp_path / "results.jsonl"
    with study.Journal(path, {"steps": 1}) as journal:
        for job in jobs:
            journal.append({"kind": "job", "job": study.asdict(job), "exam": exam(0.5)})
    assert list(study.finished_jobs(path)) == jobs


def test_a_reach_is_what_the_base_was_taught_and_four_times_that() -> None:
    assert (REACH.chunk_tokens, REACH.text_tokens, REACH.max_length) == (48, 240, 320)
    second = Reach(known=4, long=16)
    assert (second.chunk_tokens, second.text_tokens) == (REACH.text_tokens, 1008)


def test_noise_changes_words_for_others_of_their_kind_from_the_text() -> None:
    context = "owns Alice lantern. met Bruno Carla Lyon. sold Carla tiger. met Alice David Porto."
    turns = [
        {"chosen": "lantern", "rejected": "tiger"},
        {"chosen": "Carla Lyon", "rejected": "Alice Lyon"},
        {"chosen": "unknown words", "rejected": "tiger"},
    ]

    def drawn(noise: float, seed: int) -> list[str]:
        pair = json.loads(json.dumps({"context": context, "turns": turns}))
        return [turn["chosen"] for turn in with_noise(random.Random(seed), pair, noise)["turns"]]

    asked = [turn["chosen"] for turn in turns]
    assert drawn(0.0, 1) == asked
    for seed in range(20):
        thing, company, nothing = drawn(1.0, seed)
        assert thing == "lantern"  # the only other thing is the rejected answer: a pair of equal answers is no pair
        name, town = company.split()
        assert name != "Carla"
        assert name in NAMES
        assert (town in TOWNS) and town != "Lyon"
        assert nothing == "unknown words"
    changed = sum(drawn(0.2, seed)[1] != asked[1] for seed in range(400))
    assert 50 < changed < 110
    assert "lantern" in THINGS


def test_an_interval_is_students() -> None:
    values = [0.1, 0.2, 0.4, 0.3, 0.5]
    middle, half = results.interval(values)
    assert middle == pytest.approx(0.3)
    assert half == pytest.approx(2.776 * stdev(values) / 5**0.5)
    assert results.points([0.1, 0.2, 0.15, 0.12, 0.16]) == "**+14.6 ± 4.8**"
    assert results.points([-0.1, 0.2, 0.15, -0.12, 0.16]).startswith("+5.8 ±")


def test_differences_are_taken_base_by_base() -> None:
    found = results.Results(finished({"longpo": 0.8, "sft": 0.6}))
    assert results.paired(found, "longpo", "sft", "4") == "**+20.0 ± 0.0**"
    assert results.percent(found.accuracies("final", "longpo", "4")) == "84.0% ± 2.0"


def test_every_block_of_the_page_is_made_or_says_that_it_was_not_run() -> None:
    done = finished({})
    whole = results.with_results(results.PAGE.read_text(encoding="utf-8"), results.Results(done))
    assert results.NOT_RUN not in whole
    begun = {job: line for job, line in done.items() if job.phase in ("base", "tune", "refine", "final")}
    page = results.with_results(whole, results.Results(begun))
    assert page.count(results.NOT_RUN) == 5
    assert results.with_results(page, results.Results(done)) == whole
    for phase, number in (("base", 2), ("centre", 5)):  # no mean over runs from two bases of one number
        other = done | {
            job: line | {"weights": "w"} for job, line in done.items() if (job.phase, job.base) == (phase, 2)
        }
        page = results.with_results(whole, results.Results(other))
        assert page.count(results.NOT_RUN) == number


def test_the_page_is_of_the_committed_results() -> None:
    page = results.PAGE.read_text(encoding="utf-8")
    found = results.Results(study.finished_jobs(results.RESULTS))
    assert results.with_results(page, found) == page, "run: python -m examples.miniature.results"


def test_what_is_made_is_not_made_again_and_a_killed_dataset_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the verbs, which are not run: they have their own tests."""
    calls, numbers = list[str](), count()

    def verb(*words: Any, log: Path) -> None:
        calls.append(words[0])
        output = Path(words[words.index("--output") + 1]) if "--output" in words else None
        if next(numbers) == 2:
            raise forks.JobError("killed")
        if words[0] == "generate":
            assert output
            output.write_text(json.dumps({"context": "", "turns": []}) + "\n")

    monkeypatch.setattr(forks, "verb", verb)
    monkeypatch.setattr(forks, "program", lambda *_, **__: (tmp_path / "pairs" / "2").mkdir(parents=True))  # pyright: ignore[reportUnknownLambdaType]
    workshop, dataset = Workshop(tmp_path), Dataset(1, 0.5)
    workshop.make_pairs(2, 1)
    with pytest.raises(forks.JobError):
        workshop.make_dataset(2, dataset)
    assert calls == ["generate", "build", "score-reference"]
    calls.clear()
    workshop.make_pairs(2, 1)
    workshop.make_dataset(2, dataset)
    assert calls == ["build", "score-reference", "score-reference"]
    calls.clear()
    workshop.make_dataset(2, dataset)
    assert calls == []
