"""An honest comparison of methods on the miniature: python -m examples.miniature.study --work DIR --results FILE

Every job is a line of the results, a journal (megatron_longpo/journal.py) of these methods and settings; a job that has
its line is not done again, so a killed study goes on.

The rule, written before the final runs:

- Bases 0 and 1 are for tuning, 2 to 6 for the comparison. Each is pretrained from another seed and makes its own pairs.
- Every method is tried with NUM_TRIALS settings (methods.py) on both tuning bases, `STEPS` steps of 8 pairs each.
- The setting with the highest *score* is taken: the mean over the tuning bases of the mean of the accuracies at 1, 2, 4
  and 8 lengths and of the skills. So a setting that learns long texts by losing short ones or skills does not win.
- It is then run once on each base of the comparison, examined on texts that no tuning run saw.
"""

import argparse
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from examples.miniature import forks, make_texts, pretrain
from examples.miniature.evaluate import EXAM_SEED, Exams, examine, load
from examples.miniature.methods import METHODS, Method, build_options, generate_options, train_options
from examples.miniature.model import POLICY_THETA
from examples.miniature.task import NAMES, THINGS, TOWNS
from megatron_longpo.journal import Journal, journal_lines

TUNING_BASES, BASES = (0, 1), (2, 3, 4, 5, 6)
NUM_TEXTS, STEPS = 1700, 175
"""Texts that a base answers questions on, enough for 1,600 pairs; steps of every run."""
NUM_PAIRS = 1400
FEWER_OR_MORE, NOISES = (100, 400, 1600), (0.1, 0.2)
DATASETS = ((NUM_PAIRS, 0.0), *((number, 0.0) for number in FEWER_OR_MORE), *((NUM_PAIRS, noise) for noise in NOISES))
"""Number of pairs and noise of every dataset that a base makes."""
TUNING_EXAM, FINAL_EXAM = EXAM_SEED + 1, EXAM_SEED + 2
COMPARED = ("sft", "sft-response", "dpo", "longpo", "longpo-response")
"""Methods whose growth with pairs and with noise is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training run and its exam, or the exam of a base."""

    phase: str
    """tune, final, pairs, noise or base."""
    base: int
    method: str
    trial: int = 0
    num_pairs: int = NUM_PAIRS
    noise: float = 0.0
    """Part of the turns whose chosen answer is made wrong."""


class Study:
    """The jobs, what is done of them, and where everything lies."""

    def __init__(self, work: Path, results: Journal, num_processes: int) -> None:
        """Read what is done."""
        self.work, self.results, self.num_processes = work, results, num_processes
        lines = (line for _, _, line in journal_lines(results.path))
        self.done = {Job(**line["job"]): line for line in lines if line["kind"] == "job"}

    def run(self) -> None:
        """Do everything that is not done."""
        self._make(TUNING_BASES)
        self._jobs(
            [
                Job(phase="tune", base=base, method=name, trial=trial)
                for trial in range(max(len(method.trials) for method in METHODS.values()))
                for name in METHODS
                for base in TUNING_BASES
            ]
        )
        chosen = {name: self.best_trial(name) for name in METHODS}
        self._make(BASES)
        self._jobs(
            [Job(phase="final", base=base, method=name, trial=chosen[name]) for base in BASES for name in METHODS]
        )
        self._jobs(
            [
                Job(phase=phase, base=base, method=name, trial=chosen[name], num_pairs=num_pairs, noise=noise)
                for phase, num_pairs, noise in (
                    *(("pairs", num_pairs, 0.0) for num_pairs in FEWER_OR_MORE),
                    *(("noise", NUM_PAIRS, noise) for noise in NOISES),
                )
                for base in BASES
                for name in COMPARED
            ]
        )

    def best_trial(self, method: str) -> int:
        """The setting with the highest score on the tuning bases; the earlier one of equals."""
        scores = [
            mean(score(self.done[Job(phase="tune", base=base, method=method, trial=trial)]) for base in TUNING_BASES)
            for trial in range(len(METHODS[method].trials))
        ]
        return scores.index(max(scores))

    def _make(self, bases: Sequence[int]) -> None:
        for made in (self._make_base, self._make_pairs):
            for line in self._at_once(made, bases):
                print(line, flush=True)
        self._jobs([Job(phase="base", base=base, method=name) for base in bases for name in ("base", "raised")])

    def _jobs(self, jobs: Sequence[Job]) -> None:
        missing = [job for job in jobs if job not in self.done]
        print(f"{len(jobs)} jobs of phase {jobs[0].phase}, {len(missing)} to do", flush=True)
        for record in self._at_once(self._do, missing):
            self.results.append(record)
            job = Job(**record["job"])
            self.done[job] = record
            print(f"{job.phase} {job.method} {job.trial} base {job.base}: {summary(record['exam'])}", flush=True)

    def _at_once[T](self, do: Callable[[Any], T], items: Sequence[Any]) -> Iterator[T]:
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
            exam = forks.call(_examine, self._base(job.base), FINAL_EXAM, theta, log=self.work / "exam.log")
            reported = {}
        else:
            exam, reported = self._train(job, METHODS[job.method])
        seconds = time.monotonic() - started
        return {"kind": "job", "job": asdict(job), "exam": exam, "reported": reported, "seconds": seconds}

    def _train(self, job: Job, method: Method) -> tuple[Exams, dict[str, float]]:
        data = self._data(job.base, job.num_pairs, job.noise)
        folder = self.work / "runs" / "-".join(str(value) for value in asdict(job).values())
        shutil.rmtree(folder, ignore_errors=True)
        options = ["--load", self._imported(job.base), "--longpo-data", data, "--save", folder / "run"]
        options += [*train_options(method, method.trials[job.trial]), "--train-iters", STEPS]
        forks.program(_train, [str(word) for word in options], log=folder / "train.log")
        exported = folder / "exported"
        forks.verb("export-hf", "--checkpoint", folder / "run", "--output", exported, log=folder / "export.log")
        seed = TUNING_EXAM if job.phase == "tune" else FINAL_EXAM
        exam = forks.call(_examine, exported, seed, None, log=folder / "exam.log")
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        shutil.rmtree(folder)
        names = ("loss", "nll", "preference_loss", "margin", "accuracy", "constraint")
        return exam, {name: mean(line[name] for line in lines[-10:]) for name in names if name in lines[-1]}

    def _base(self, base: int) -> Path:
        return self.work / "bases" / str(base)

    def _imported(self, base: int) -> Path:
        return self.work / "imported" / str(base)

    def _make_base(self, base: int) -> str:
        if not self._base(base).exists():
            words = ["--seed", str(base), "--output", str(self._base(base))]
            forks.program(pretrain.main, words, log=self.work / "logs" / f"base-{base}.log")
        if not self._imported(base).exists():
            log = self.work / "logs" / f"import-{base}.log"
            forks.verb("import-hf", "--hf", self._base(base), "--output", self._imported(base), log=log)
        return f"base {base} is there"

    def _make_pairs(self, base: int) -> str:
        folder, log = self.work / "pairs" / str(base), self.work / "logs" / f"pairs-{base}.log"
        if not (folder / "pairs.jsonl").exists():
            words = ["--output", str(folder / "texts"), "--num-texts", str(NUM_TEXTS), "--seed", str(base)]
            forks.program(make_texts.main, words, log=log)
            generate = generate_options(self._base(base), folder / "texts")
            forks.verb("generate", *generate, "--output", folder / "pairs.jsonl", log=log)
        for num_pairs, noise in DATASETS:
            self._build(base, num_pairs, noise, log)
        return f"pairs of base {base} are there"

    def _data(self, base: int, num_pairs: int, noise: float) -> Path:
        return self.work / "pairs" / str(base) / f"{num_pairs}-{noise}" / "data"

    def _build(self, base: int, num_pairs: int, noise: float, log: Path) -> None:
        data = self._data(base, num_pairs, noise)
        if (data.parent / "data.reference-long.npz").exists():
            return
        shutil.rmtree(data.parent, ignore_errors=True)
        data.parent.mkdir(parents=True)
        draw, lines = random.Random(f"noise {base} {noise}"), (data.parent / "pairs.jsonl")
        pairs = [json.loads(line) for line in (self.work / "pairs" / str(base) / "pairs.jsonl").open()][:num_pairs]
        lines.write_text("".join(json.dumps(with_noise(draw, pair, noise)) + "\n" for pair in pairs))
        forks.verb("build", *build_options(lines, self._base(base), data), log=log)
        score = ["score-reference", "--data", data, "--checkpoint", self._imported(base)]
        forks.verb(*score, log=log)
        forks.verb(*score, "--context", "long", log=log)


def with_noise(draw: random.Random, pair: dict[str, Any], noise: float) -> dict[str, Any]:
    """The pair with that part of its chosen answers made wrong: each word another one of its kind from the text."""
    kinds = [
        {word for word in pair["context"].replace(".", "").split() if word in known} for known in (NAMES, THINGS, TOWNS)
    ]
    for turn in pair["turns"]:
        if draw.random() < noise:
            words = turn["chosen"].split()
            for place, word in enumerate(words):
                others = [sorted(kind - {word}) for kind in kinds if word in kind]
                if others and others[0]:
                    words[place] = draw.choice(others[0])
            if " ".join(words) != turn["rejected"]:
                turn["chosen"] = " ".join(words)
    return pair


def _train() -> None:
    from megatron_longpo.train import main  # it prepares the platform as it loads

    if status := main():
        raise RuntimeError(f"training ended with status {status}")


def _examine(folder: Path, seed: int, theta: float | None) -> Exams:
    return examine(load(folder, theta), seed)


def score(record: dict[str, Any]) -> float:
    """What a tuning run is judged by."""
    return mean(record["exam"][name]["all"] for name in ("1", "2", "4", "8", "skills"))


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
        Study(options.work.resolve(), results, options.processes).run()


if __name__ == "__main__":
    main()
