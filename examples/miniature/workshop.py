"""Where the study's bases, pairs and datasets are made, and where its models are trained and examined.

All of it by the project's own verbs, each in a process of its own (forks.py). What is there is not made again.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from examples.miniature import forks, make_texts, pretrain
from examples.miniature.evaluate import MULTIPLES, Exams, examine, load
from examples.miniature.methods import (
    PAIRS_PER_STEP,
    REACH,
    Method,
    Reach,
    Trial,
    build_options,
    generate_options,
    train_options,
)
from examples.miniature.task import NAMES, THINGS, TOWNS
from megatron_longpo.data.indexed import PairReader
from megatron_longpo.files import atomic_directory
from megatron_longpo.metrics_file import read_metrics

REPORTED = ("loss", "nll", "preference_loss", "margin", "accuracy", "constraint")
"""Of a run's metrics: the means of its last ten steps are kept, where its objective has them."""


@dataclass(frozen=True, slots=True, order=True)
class Dataset:
    """One dataset of a base, with the reference's log-probs on both contexts."""

    num_pairs: int
    noise: float = 0.0
    """Part of the turns whose chosen answer is made wrong."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A model in the Hugging Face layout, and what its training reported at the end."""

    folder: Path
    reported: dict[str, float]


class Workshop:
    """A folder with the bases, what each of them made, and its runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def base(self, number: int) -> Path:
        """The base that was pretrained with that seed, in the Hugging Face layout."""
        return self.folder / "bases" / str(number)

    def weights(self, number: int) -> str:
        """The beginning of the SHA-256 of that base's weights."""
        return hashlib.sha256((self.base(number) / "model.safetensors").read_bytes()).hexdigest()[:12]

    def data(self, number: int, dataset: Dataset) -> Path:
        """Prefix of a dataset of that base."""
        return self._pairs(number) / f"{dataset.num_pairs}-{dataset.noise}" / "data"

    def make_base(self, number: int) -> None:
        """Pretrain and import it."""
        log = self._log(f"base-{number}")
        if not self.base(number).exists():
            words = ["--seed", str(number), "--output", str(self.base(number))]
            forks.program(pretrain.main, words, log=log)
        _import(self.base(number), self._imported(number), log)

    def make_pairs(self, number: int, num_texts: int) -> None:
        """Let the base answer questions on texts of its own."""
        _generate(self.base(number), self._pairs(number), num_texts, number, REACH, self._log(f"pairs-{number}"))

    def make_dataset(self, number: int, dataset: Dataset) -> None:
        """Build a dataset from the first of that base's pairs."""
        pairs = _read_lines(self._pairs(number) / "pairs.jsonl")[: dataset.num_pairs]
        draw = random.Random(f"noise {number} {dataset.noise}")
        noisy = [with_noise(draw, pair, dataset.noise) for pair in pairs]
        data, log = self.data(number, dataset), self._log(f"pairs-{number}")
        _build(noisy, self.base(number), self._imported(number), data, ("short", "long"), REACH, log)

    def num_tokens(self, number: int, dataset: Dataset) -> float:
        """Mean tokens of the long context with its chosen answers: what the NLL of a pair is a mean over."""
        lengths_C3, _, is_long_C = PairReader(self.data(number, dataset)).all_lengths()
        return float(lengths_C3[is_long_C][:, :2].sum(axis=1).mean())

    def train(self, name: str, number: int, dataset: Dataset, method: Method, trial: Trial, steps: int) -> Trained:
        """Train the base on one of its datasets, in a folder of that name."""
        run, data = self._new_run(name), self.data(number, dataset)
        return _train(run, self._imported(number), data, method, trial, steps, REACH)

    def train_on_longer(
        self, name: str, model: Path, number: int, num_texts: int, method: Method, trial: Trial, reach: Reach
    ) -> Trained:
        """Let ``model`` teach itself longer texts, one epoch of its own answers, in a folder of that name."""
        run = self._new_run(name)
        log, imported, data = run / "log", run / "imported", run / "dataset" / "data"
        _generate(model, run, num_texts, number, reach, log)
        _import(model, imported, log)
        pairs = _read_lines(run / "pairs.jsonl")
        _build(pairs, model, imported, data, method.reads, reach, log)
        return _train(run, imported, data, method, trial, len(pairs) // PAIRS_PER_STEP, reach)

    def examine(
        self, model: Path, seed: int, multiples: Sequence[int] = MULTIPLES, rope_theta: float | None = None
    ) -> Exams:
        """A model's exam on texts of those lengths and of the skills; with another RoPE base if one is given."""
        return forks.call(_examine, model, seed, multiples, rope_theta, log=self._log("exams"))

    def clear(self, name: str) -> None:
        """Remove a run."""
        shutil.rmtree(self.folder / "runs" / name, ignore_errors=True)

    def _new_run(self, name: str) -> Path:
        self.clear(name)
        return self.folder / "runs" / name

    def _pairs(self, number: int) -> Path:
        return self.folder / "pairs" / str(number)

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _imported(self, number: int) -> Path:
        return self.folder / "imported" / str(number)


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


def _generate(model: Path, folder: Path, num_texts: int, seed: int, reach: Reach, log: Path) -> None:
    """Texts in ``folder/texts``, and what the model answers to questions on them in ``folder/pairs.jsonl``."""
    if (folder / "pairs.jsonl").exists():
        return
    words = ("--output", folder / "texts", "--num-texts", num_texts, "--seed", seed, "--num-tokens", reach.text_tokens)
    forks.program(make_texts.main, [str(word) for word in words], log=log)
    options = generate_options(model, folder / "texts", reach)
    forks.verb("generate", *options, "--output", folder / "pairs.jsonl", log=log)


def _import(model: Path, imported: Path, log: Path) -> None:
    if not imported.exists():
        forks.verb("import-hf", "--hf", model, "--output", imported, log=log)


def _build(
    pairs: Sequence[dict[str, Any]],
    model: Path,
    imported: Path,
    data: Path,
    reads: Sequence[str],
    reach: Reach,
    log: Path,
) -> None:
    """The dataset of those pairs, with the reference's log-probs on the contexts in ``reads``."""
    if data.parent.exists():
        return
    with atomic_directory(data.parent) as folder:
        make_texts.write_lines(folder / "pairs.jsonl", pairs)
        forks.verb("build", *build_options(folder / "pairs.jsonl", model, folder / data.name, reach), log=log)
        for context in reads:
            score = ("--data", folder / data.name, "--checkpoint", imported, "--context", context)
            forks.verb("score-reference", *score, log=log)


def _train(run: Path, imported: Path, data: Path, method: Method, trial: Trial, steps: int, reach: Reach) -> Trained:
    options = ["--load", imported, "--longpo-data", data, "--save", run / "checkpoints"]
    options += [*train_options(method, trial, reach), "--train-iters", steps]
    forks.program(_train_main, [str(word) for word in options], log=run / "log")
    forks.verb("export-hf", "--checkpoint", run / "checkpoints", "--output", run / "model", log=run / "log")
    lines = read_metrics(run / "checkpoints" / "metrics.jsonl", "train")
    reported = {name: mean(line[name] for line in lines[-10:]) for name in REPORTED if name in lines[-1]}
    return Trained(run / "model", reported)


def _train_main() -> None:
    from megatron_longpo.train import main  # it prepares the platform as it loads

    if status := main():
        raise RuntimeError(f"training ended with status {status}")


def _examine(folder: Path, seed: int, multiples: Sequence[int], rope_theta: float | None) -> Exams:
    return examine(load(folder, rope_theta), seed, multiples)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
