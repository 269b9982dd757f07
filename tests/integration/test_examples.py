"""The scripts of examples/: bash expands their commands; mistral-128k.sh's run on a small Mistral and two ranks."""

import argparse
import itertools
import os
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoConfig

from megatron_longpo.commands.generate_options import add_arguments, policy_rope_of, settings_of
from megatron_longpo.commands.main import main as run_verb
from megatron_longpo.reference.score import main as score
from tests.ranks import launch
from tests.workspace import make_model, make_pairs, read_metrics, train_main

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TORCHRUN = ["torchrun", "--standalone", "--nproc-per-node", "2", "-m"]
RECORD = '#!/usr/bin/env bash\nprintf "%q " "${0##*/}" "$@" >> "$COMMANDS"\necho >> "$COMMANDS"\n'


def commands(script: str, work: Path, **environment: str | Path) -> list[list[str]]:
    """What the script would run, word by word: programs of the same names that only write down how they are called."""
    programs = work / "programs"
    programs.mkdir()
    for name in ("megatron-longpo", "torchrun"):
        (programs / name).write_text(RECORD)
        (programs / name).chmod(0o755)
    settings = {name: str(value) for name, value in environment.items()}
    path = f"{programs}:{os.environ['PATH']}"
    subprocess.run(
        ["bash", str(EXAMPLES / script)],
        env=os.environ | settings | {"PATH": path, "COMMANDS": f"{work}/commands"},
        check=True,
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
        "mistral-128k.sh",
        tmp_path,
        MODEL=tmp_path / "hf",
        PAIRS=tmp_path / "pairs.jsonl",
        WORK=work,
        LENGTH="512",
        GPUS="2",
    )
    assert len(script) == 5
    for command in script:
        finished = launch(*program(command))
        assert finished.status == 0, finished.output
    steps = read_metrics(work / "metrics.jsonl")
    assert [step["num_pairs"] for step in steps] == [8, 8]  # one epoch of 16 pairs
    config = AutoConfig.from_pretrained(work / "exported")
    assert config.rope_parameters["rope_theta"] == 1e7 and config.max_position_embeddings == 512


def options(command: list[str]) -> dict[str, str]:
    return {name: value for name, value in itertools.pairwise(command) if name.startswith("--")}


@pytest.mark.parametrize("reference", ["first", "previous"])
def test_rounds_go_on_from_each_others_models(tmp_path: Path, reference: str) -> None:
    work = tmp_path / "work"
    environment = {"MODEL": "chat", "DOCUMENTS": "a* b", "ROUNDS": "262144:10000000 524288:20000000", "WORK": work}
    script = commands("iterate.sh", tmp_path, **environment, REFERENCE_MODEL=reference, GENERATE="--seed 7")
    assert [command[1] for command in script if command[0] == "megatron-longpo"] == [
        *("generate", "build", "import-hf", "export-hf"),
        *("generate", "build", "import-hf", "export-hf"),
    ]
    one, two = work / "262144", work / "524288"
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for command, model, folder, base in ((script[0], "chat", one, 1e7), (script[6], f"{one}/exported", two, 2e7)):
        args = parser.parse_args(command[2:])
        assert (str(args.model), args.output, args.documents) == (model, folder / "pairs.jsonl", ["a*", "b"])
        assert (settings_of(args).length, args.seed) == (int(folder.name), 7)
        assert policy_rope_of(args) == {"rope_type": "default", "rope_theta": base}
    kept = one if reference == "first" else two
    for command in (script[9], script[10]):  # scoring and training of the second round
        assert f"{kept}/imported" in (
            options(command).get("--checkpoint"),
            options(command).get("--longpo-reference-checkpoint"),
        )
    assert options(script[10])["--rotary-base"] == "20000000"


def test_a_round_that_is_done_is_not_repeated(tmp_path: Path) -> None:
    rounds = tmp_path / "rounds"
    (rounds / "1024" / "exported").mkdir(parents=True)
    (rounds / "2048").mkdir()
    (rounds / "2048" / "pairs.jsonl").touch()
    environment = {"MODEL": "chat", "DOCUMENTS": "a", "ROUNDS": "1024:10000 2048:10000", "WORK": rounds}
    script = commands("iterate.sh", tmp_path, **environment)
    assert [command[1] for command in script if command[0] == "megatron-longpo"] == ["build", "import-hf", "export-hf"]
    assert options(script[0])["--tokenizer"] == str(rounds / "1024" / "exported")
