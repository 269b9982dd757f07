"""examples/mistral-128k.sh: bash expands its commands, which then run on a small Mistral and two ranks."""

import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from transformers import AutoConfig

from megatron_longpo.commands.main import main as run_verb
from megatron_longpo.reference.score import main as score
from tests.ranks import launch
from tests.workspace import make_model, make_pairs, read_metrics, train_main

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "mistral-128k.sh"
TORCHRUN = ["torchrun", "--standalone", "--nproc-per-node", "2", "-m"]
RECORD = '#!/usr/bin/env bash\nprintf "%q " "${0##*/}" "$@" >> "$COMMANDS"\necho >> "$COMMANDS"\n'


def commands(work: Path, **environment: str | Path) -> list[list[str]]:
    """What the script would run, word by word: programs of the same names that only write down how they are called."""
    programs = work / "programs"
    programs.mkdir()
    for name in ("megatron-longpo", "torchrun"):
        (programs / name).write_text(RECORD)
        (programs / name).chmod(0o755)
    settings = {name: str(value) for name, value in environment.items()}
    path = f"{programs}:{os.environ['PATH']}"
    subprocess.run(
        ["bash", str(SCRIPT)], env=os.environ | settings | {"PATH": path, "COMMANDS": f"{work}/commands"}, check=True
    )
    return [shlex.split(line) for line in (work / "commands").read_text().splitlines()]


def program(command: list[str]) -> tuple[Callable[[], int], list[str], int]:
    """(its main, its options, its ranks)."""
    if command[0] == "megatron-longpo":
        return run_verb, command[1:], 1
    assert command[:5] == TORCHRUN
    return {"megatron_longpo.reference.score": score, "megatron_longpo.train": train_main}[command[5]], command[6:], 2


def test_the_released_recipe_runs(tmp_path: Path) -> None:
    make_model(tmp_path / "hf", "mistral")
    make_pairs(tmp_path / "pairs.jsonl", 16)
    work = tmp_path / "work"
    script = commands(
        tmp_path, MODEL=tmp_path / "hf", PAIRS=tmp_path / "pairs.jsonl", WORK=work, LENGTH="512", GPUS="2"
    )
    assert len(script) == 5
    for command in script:
        finished = launch(*program(command))
        assert finished.status == 0, finished.output
    steps = read_metrics(work / "metrics.jsonl")
    assert [step["num_pairs"] for step in steps] == [8, 8]  # one epoch of 16 pairs
    config = AutoConfig.from_pretrained(work / "exported")
    assert config.rope_parameters["rope_theta"] == 1e7 and config.max_position_embeddings == 512
