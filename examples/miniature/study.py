"""An honest comparison of methods on the miniature: python -m examples.miniature.study --work DIR --results FILE

Every job is a line of the results, a journal (megatron_longpo/journal.py) of these methods and settings; a job that has
its line is not done again, so a killed study goes on.

The rule, written before the final runs:

- Bases 0 and 1 are for tuning, 2 to 6 for the comparison. Each is pretrained from another seed and makes its own pairs.
- Every method is tried with NUM_TRIALS settings (methods.py) on both tuning bases, `STEPS` steps of 8 pairs each.
- The setting with the highest *score* is taken: the mean over the tuning bases of the mean of the accuracies at 1, 2, 4
  and 8 lengths and of the skills. So a setting that learns long texts by losing short ones or skills does not win.
- That setting is tried again with LOWER_RATES of its learning rate, and the best of all is taken. This was added when
  the first tuning had shown that most methods do best at the lowest rate of their trials, and before any run on bases 2
  to 6.
- It is then run once on each base of the comparison, examined on texts that no tuning run saw.

What is varied after that (noise, pairs, steps, the weight of answer tokens, a second round) keeps those settings, and
is run on the same bases, each with its own runs of nothing varied to compare with. Another kind of CPU pretrains other
weights from the same seed, so what belongs together is told by the weights: a base's final runs, and its varied runs,
are each of one set of weights, and what was whole before is never run again.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from itertools import batched
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from examples.miniature.evaluate import EXAM_SEED, MULTIPLES, Exams
from examples.miniature.methods import METHODS, Method, Reach, Trial
from examples.miniature.model import POLICY_THETA
from examples.miniature.workshop import Dataset, Trained, Workshop
from megatron_longpo.journal import Journal, journal_lines

TUNING_BASES, BASES, VARIED_BASES = (0, 1), (2, 3, 4, 5, 6), (2, 3, 4, 5, 6)
NUM_TEXTS, STEPS = 1700, 175
"""Texts that a base answers questions on, enough for 1,600 pairs; steps of every run."""
NUM_PAIRS = 1400
LOWER_RATES = (0.25, 0.5)
FEWER_OR_MORE, NOISES, FEWER_OR_MORE_STEPS = (100, 400, 1600), (0.1, 0.2), (44, 350)
WEIGHTS = (0.0, 0.5, 2.0, 6.5, 20.0, 60.0)
"""Of an answer token in the preference, in units of its weight in the NLL: beta * pref_coef * tokens / 2, at a margin
of 0. The released coefficients have 6.5 at 131,072 tokens."""
TUNING_PHASES, FINAL_PHASES = ("tune", "refine"), ("base", "final")
TUNING_EXAM, FINAL_EXAM = EXAM_SEED + 1, EXAM_SEED + 2
COMPARED = ("sft", "sft-response", "dpo", "longpo", "longpo-response")
"""Methods whose growth with pairs, steps and noise is measured."""
ITERATED = ("sft-response", "longpo")
"""Methods that are iterated: from 1 length to 4, and from 4 to 16."""
SECOND, AT_ONCE = Reach(known=4, long=16, rope_theta=4e5), Reach(known=1, long=16, rope_theta=4e5)
"""Four times the base for four times the length: with ten times, a model of the first round lost 7 points at 1 length
before any training (tuning base 0)."""
NUM_LONGER_TEXTS = 400
LONGER_EXAM = (*MULTIPLES, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training run and its exam, or the exam of a base."""

    phase: str
    """base, tune, refine, final; centre: nothing is varied; noise, pairs, steps, weight: one thing is; rounds: a second
    one, by the model that the first one trained; at-once: the second round's texts by the base."""
    base: int
    method: str
    trial: int = 0
    rate: float = 1.0
    """Times the trial's learning rate."""
    num_pairs: int = NUM_PAIRS
    noise: float = 0.0
    """Part of the turns whose chosen answer is made wrong."""
    steps: int = STEPS
    weight: float | None = None
    """One of WEIGHTS, in place of the trial's pref_coef."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return "-".join(str(value) for value in asdict(self).values())


class Setting(NamedTuple):
    """One of a method's trials, with a part of its learning rate."""

    trial: int
    rate: float = 1.0

    def options(self, method: Method) -> Trial:
        """Of the training program."""
        trial = method.trials[self.trial]
        return {**trial, "lr": trial["lr"] * self.rate}


class Study:
    """The jobs, what is done of them, and where everything lies."""

    def __init__(self, workshop: Workshop, results: Journal, num_processes: int) -> None:
        """Read what is done."""
        self.workshop, self.results, self.num_processes = workshop, results, num_processes
        self.done = finished_jobs(results.path)

    def run(self) -> None:
        """Do everything that is not done."""
        self._do_all(tuning_jobs())
        self._do_all(refining_jobs(self.done))
        chosen = chosen_settings(self.done)
        self._compare({base: final_jobs(base, chosen) for base in BASES})
        self._compare({base: varied_jobs(base, chosen) for base in VARIED_BASES})

    def _compare(self, jobs: Mapping[int, Sequence[Job]]) -> None:
        """Do the jobs of every base whose jobs are not all done with one set of weights; as many bases at a time as
        there are processes, so that some are whole early."""
        unfinished = [base for base in jobs if not self._is_whole(jobs[base])]
        for bases in batched(unfinished, self.num_processes):
            self._make_all(bases)  # first: whether a line is of the base as it is can only be told when it is there
            for base in bases:
                self._do_all(jobs[base], self.workshop.weights(base))

    def _is_whole(self, jobs: Sequence[Job]) -> bool:
        return all(job in self.done for job in jobs) and len({self.done[job].get("weights") for job in jobs}) == 1

    def _make_all(self, bases: Sequence[int]) -> None:
        for base in self._at_once(self._make_base, bases):
            print(f"base {base} and its pairs are there", flush=True)

    def _make_base(self, base: int) -> int:
        self.workshop.make_base(base)
        self.workshop.make_pairs(base, NUM_TEXTS)
        return base

    def _make_dataset(self, needed: tuple[int, Dataset]) -> tuple[int, Dataset]:
        self.workshop.make_dataset(*needed)
        return needed

    def _do_all(self, jobs: Sequence[Job], weights: str | None = None) -> None:
        """Do what is not done, or was with other weights than those given."""
        missing = [job for job in jobs if job not in self.done or weights not in (None, self.done[job].get("weights"))]
        print(f"{len(jobs)} jobs from phase {jobs[0].phase} on, {len(missing)} to do", flush=True)
        self._make_all(sorted({job.base for job in missing}))
        needed = {(job.base, Dataset(job.num_pairs, job.noise)) for job in missing}
        for base, dataset in self._at_once(self._make_dataset, sorted(needed)):
            print(f"base {base} has a dataset of {dataset.num_pairs} pairs, noise {dataset.noise}", flush=True)
        for record in self._at_once(self._do, missing):
            self.results.append(record)
            job = Job(**record["job"])
            self.done[job] = record
            print(f"{job.name}: {summary(record['exam'])}", flush=True)

    def _at_once[Item, Result](self, do: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """What ``do`` returns for each item, as it comes."""
        with ThreadPoolExecutor(self.num_processes) as pool:
            try:
                for future in as_completed([pool.submit(do, item) for item in items]):
                    yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # one failed: the waiting ones would not be recorded

    def _do(self, job: Job) -> dict[str, Any]:
        """The job's line."""
        started = time.monotonic()
        if job.phase == "base":
            theta = POLICY_THETA if job.method == "raised" else None
            found = {"exam": self.workshop.examine(self.workshop.base(job.base), FINAL_EXAM, rope_theta=theta)}
        elif job.phase in ("rounds", "at-once"):
            found = self._reach_16(job)
        else:
            trained = self._train(job)
            seed = TUNING_EXAM if job.phase in TUNING_PHASES else FINAL_EXAM
            found = {"exam": self.workshop.examine(trained.folder, seed), "reported": trained.reported}
        self.workshop.clear(job.name)
        weights = self.workshop.weights(job.base)
        return {"kind": "job", "job": asdict(job), "weights": weights, **found, "seconds": time.monotonic() - started}

    def _train(self, job: Job) -> Trained:
        data = Dataset(job.num_pairs, job.noise)
        return self.workshop.train(job.name, job.base, data, METHODS[job.method], self._trial(job), job.steps)

    def _reach_16(self, job: Job) -> dict[str, Any]:
        """Exams after the last round, and after the first if there were two."""
        model, reach, found = self.workshop.base(job.base), AT_ONCE, {}
        if job.phase == "rounds":
            model, reach = self._train(job).folder, SECOND
            found["exam_of_first"] = self.workshop.examine(model, FINAL_EXAM, LONGER_EXAM)
        method, name = METHODS[job.method], f"{job.name}-longer"
        trained = self.workshop.train_on_longer(
            name, model, job.base, NUM_LONGER_TEXTS, method, self._trial(job), reach
        )
        found |= {"exam": self.workshop.examine(trained.folder, FINAL_EXAM, LONGER_EXAM), "reported": trained.reported}
        self.workshop.clear(name)
        return found

    def _trial(self, job: Job) -> Trial:
        trial = Setting(job.trial, job.rate).options(METHODS[job.method])
        if job.weight is None:
            return trial
        num_tokens = self.workshop.num_tokens(job.base, Dataset(job.num_pairs, job.noise))
        return {**trial, "longpo-pref-coef": 2 * job.weight / (trial["longpo-beta"] * num_tokens)}


Done = dict[Job, dict[str, Any]]
"""Job -> its line."""


def finished_jobs(results: Path) -> Done:
    """The jobs that have their line in the journal."""
    return {Job(**line["job"]): line for _, _, line in journal_lines(results) if line["kind"] == "job"}


def tuning_jobs() -> list[Job]:
    """Every setting of every method on the tuning bases."""
    return [
        Job(phase="tune", base=base, method=name, trial=trial)
        for trial in range(max(len(method.trials) for method in METHODS.values()))
        for name in METHODS
        for base in TUNING_BASES
    ]


def refining_jobs(done: Done) -> list[Job]:
    """The best trial of every method with lower learning rates."""
    best_trials = {name: best(tuning_scores(done, name, rates=())).trial for name in METHODS}
    return [
        Job(phase="refine", base=base, method=name, trial=best_trials[name], rate=rate)
        for rate in LOWER_RATES
        for name in METHODS
        for base in TUNING_BASES
    ]


def final_jobs(base: int, chosen: Mapping[str, Setting]) -> list[Job]:
    """The main comparison on a base: as it is, with a raised RoPE base, and after every method."""
    return [
        *(Job(phase="base", base=base, method=name) for name in ("base", "raised")),
        *_jobs(base, chosen, tuple(METHODS), "final"),
    ]


def varied_jobs(base: int, chosen: Mapping[str, Setting]) -> list[Job]:
    """What is run on a base with one thing varied, and with nothing varied."""
    return [
        *_jobs(base, chosen, COMPARED, "centre"),
        *(job for weight in WEIGHTS for job in _jobs(base, chosen, ("longpo",), "weight", weight=weight)),
        *(job for noise in NOISES for job in _jobs(base, chosen, COMPARED, "noise", noise=noise)),
        *(job for steps in FEWER_OR_MORE_STEPS for job in _jobs(base, chosen, COMPARED, "steps", steps=steps)),
        *(job for number in FEWER_OR_MORE for job in _jobs(base, chosen, COMPARED, "pairs", num_pairs=number)),
        *_jobs(base, chosen, ITERATED, "rounds"),
        *_jobs(base, chosen, ITERATED, "at-once"),
    ]


def _jobs(base: int, chosen: Mapping[str, Setting], methods: Sequence[str], phase: str, **varied: Any) -> list[Job]:
    return [Job(phase=phase, base=base, method=name, **chosen[name]._asdict(), **varied) for name in methods]


def chosen_settings(done: Done) -> dict[str, Setting]:
    """The setting of every method that has the highest score; the earlier one of equals."""
    return {name: best(tuning_scores(done, name)) for name in METHODS}


def best(scores: Mapping[Setting, float]) -> Setting:
    """The setting with the highest score; the earlier one of equals."""
    return max(scores, key=scores.__getitem__)


def tuning_scores(done: Done, method: str, rates: Sequence[float] = LOWER_RATES) -> dict[Setting, float]:
    """The scores of a method's trials, and of the best of them with the lower ``rates``."""

    def mean_score(phase: str, setting: Setting) -> float:
        jobs = (Job(phase=phase, base=base, method=method, **setting._asdict()) for base in TUNING_BASES)
        return mean(score(done[job]) for job in jobs)

    trials = [Setting(trial) for trial in range(len(METHODS[method].trials))]
    scores = {setting: mean_score("tune", setting) for setting in trials}
    refined = [Setting(best(scores).trial, rate) for rate in rates]
    return scores | {setting: mean_score("refine", setting) for setting in refined}


def score(line: dict[str, Any]) -> float:
    """What a tuning run is judged by."""
    return mean(line["exam"][name]["all"] for name in ("1", "2", "4", "8", "skills"))


def summary(exam: Exams) -> str:
    """Accuracies in a line."""
    return ", ".join(f"{name}: {found['all']:.3f}" for name, found in exam.items())


def main() -> None:
    """Do what is not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="bases, pairs and datasets")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE", help="a journal, a line a job")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="jobs at a time, a core each")
    options = parser.parse_args()
    header = {"steps": STEPS, "methods": {name: asdict(method) for name, method in METHODS.items()}}
    with Journal(options.results, header) as results:
        Study(Workshop(options.work.resolve()), results, options.processes).run()


if __name__ == "__main__":
    main()
