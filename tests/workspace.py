"""A small model, its tokenizer and a preference file, taken through the verbs: where integration tests start."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from megatron_longpo import metrics_file
from megatron_longpo.commands.main import main as run_verb
from megatron_longpo.metrics import OF_THE_MACHINE
from tests.ranks import Finished, launch
from tests.tokenizers import VOCABULARY_SIZE, chatml_tokenizer

WORDS = "the a of and to in long short context answer question model text page river mountain city".split()  # noqa: SIM905


@dataclass(frozen=True)
class Workspace:
    """Paths of one experiment."""

    folder: Path

    @property
    def hf(self) -> Path:
        return self.folder / "hf"

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs.jsonl"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def imported(self) -> Path:
        return self.folder / "imported"


def make_model(folder: Path, architecture: str = "llama", **changes: object) -> None:
    """Save a random 3-layer model with a ChatML tokenizer as a Hugging Face folder."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "initializer_range": 0.1,
        "sliding_window": None,
        **changes,
    }
    AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **settings)).save_pretrained(folder)
    chatml_tokenizer(folder)


def make_pairs(path: Path, num_pairs: int, short_equals_long: bool = False) -> None:
    """Write pairs of 1-3 turns with random words; ``short_equals_long``: one turn, its short context the long one."""
    rng = random.Random(0)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    lines = []
    for index in range(num_pairs):
        context = words(40, 90)
        turns = []
        for turn in range(1 if short_equals_long else 1 + index % 3):
            short = context if short_equals_long else words(10, 30)
            answers = {"chosen": words(2, 9) + ".", "rejected": words(2, 9) + "!"}
            turns.append({"short_context": short, "instruction": f"{words(2, 6)} {turn}?", **answers})
        lines.append(json.dumps({"id": f"pair-{index}", "context": context, "turns": turns, "meta": {}}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def verb(*argv: str | Path, num_ranks: int = 1) -> Finished:
    """Run ``megatron-longpo ARGV`` in a process of its own."""
    return launch(run_verb, [str(part) for part in argv], num_ranks)


def make_workspace(
    folder: Path,
    num_pairs: int = 12,
    architecture: str = "llama",
    short_equals_long: bool = False,
    score: bool = True,
    **changes: object,
) -> Workspace:
    """Model (``changes``: of its configuration), pairs, build, import-hf and, unless told not to, score-reference."""
    work = Workspace(folder)
    make_model(work.hf, architecture, **changes)
    make_pairs(work.pairs, num_pairs, short_equals_long)
    steps: list[list[str | Path]] = [
        ["build", "--input", work.pairs, "--tokenizer", work.hf, "--output", work.data, "--max-length", "512"],
        ["import-hf", "--hf", work.hf, "--output", work.imported],
    ]
    if score:
        steps.append(["score-reference", "--data", work.data, "--checkpoint", work.imported])
    for step in steps:
        finished = verb(*step)
        assert finished.status == 0, finished.output
    return work


def train(
    work: Workspace,
    *options: str | Path,
    num_ranks: int = 1,
    timeout: float = 300.0,
    kill_when: Callable[[], bool] = lambda: False,
) -> Finished:
    """Run ``-m megatron_longpo.train`` on ``num_ranks`` ranks with the options every small run needs."""
    return launch(train_main, train_argv(work, *options), num_ranks, timeout, kill_when)


def train_argv(work: Workspace, *options: str | Path) -> list[str]:
    """The command line of a small run."""
    common = ["--load", work.imported, "--longpo-data", work.data, "--global-batch-size", "4", "--lr", "1e-3"]
    return [str(part) for part in (*common, *options)]


def read_metrics(path: Path, split: str = "train") -> list[dict[str, Any]]:
    """The lines of a metrics file, without what no two runs share, such as the seconds."""
    lines = metrics_file.read_metrics(path, split)
    return [{name: value for name, value in line.items() if name not in OF_THE_MACHINE} for line in lines]


def steps_so_far(save: Path) -> list[dict[str, Any]]:
    """The steps that a run which may be running has written beside its checkpoints, as `read_metrics` gives them."""
    metrics = save / "metrics.jsonl"
    return read_metrics(metrics) if metrics.exists() and "\n" in metrics.read_text() else []


def train_main() -> int:
    """Import late: train.py prepares the platform as it loads."""
    from megatron_longpo.train import main

    return main()
