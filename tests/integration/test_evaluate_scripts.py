"""examples/evaluate.sh and .sbatch: what they run, and that these are options of evaluate."""

import argparse
import os
import shlex
import subprocess
from pathlib import Path

from megatron_longpo.commands import evaluate
from tests.integration import slurm

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECORD = '#!/usr/bin/env bash\nprintf "%q " "${0##*/}" "$@" >> "$COMMANDS"\necho >> "$COMMANDS"\n'
MODELS = "base=models/a longpo=runs/b"
LENGTHS = "4096,8192,16384,32768,65536,131072"
MAKE = ["--mirror", "data/mirror", "--lengths", LENGTHS, "--samples", "500"]
RUN = ["--suite", "all", "--lengths", LENGTHS, "--mirror", "data/mirror", "--output", "runs/evaluate"]


def commands(script: str, work: Path, **environment: str) -> list[list[str]]:
    """What the script would run, word by word: a program of that name only writes down how it is called."""
    (work / "megatron-longpo").write_text(RECORD)
    (work / "megatron-longpo").chmod(0o755)
    settings = {"PATH": f"{work}:{os.environ['PATH']}", "COMMANDS": f"{work}/commands", **environment}
    subprocess.run(["bash", str(EXAMPLES / script)], env=os.environ | settings, check=True)
    return [shlex.split(line) for line in (work / "commands").read_text().splitlines()]


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    assert words[:2] == ["megatron-longpo", "evaluate"]
    return parser.parse_args(words[2:])


def test_the_script_makes_prompts_runs_and_reports(tmp_path: Path) -> None:
    found = commands("evaluate.sh", tmp_path, MODELS=MODELS, RUN="--batch-size 2 --limit 9")
    assert found == [
        ["megatron-longpo", "evaluate", "make-ruler", "--tokenizer", "models/a", *MAKE],
        ["megatron-longpo", "evaluate", "make-ruler", "--tokenizer", "runs/b", *MAKE],
        ["megatron-longpo", "evaluate", "run", "--models", *MODELS.split(), *RUN, "--batch-size", "2", "--limit", "9"],
        ["megatron-longpo", "evaluate", "report", "runs/evaluate"],
    ]
    assert parsed(found[2]).lengths == (4096, 8192, 16384, 32768, 65536, 131072)
    assert parsed(found[0]).samples == 500
    assert parsed(found[3]).output == Path("runs/evaluate")


def test_the_script_makes_no_prompts_where_none_are_asked_for(tmp_path: Path) -> None:
    found = commands("evaluate.sh", tmp_path, MODELS="base=m", SUITE="short,infinitebench")
    assert [words[2] for words in found] == ["run", "report"]


def test_the_array_is_many_jobs_of_one_command_between_prompts_and_report(tmp_path: Path) -> None:
    script = EXAMPLES / "evaluate.sbatch"
    found = slurm.commands(script, tmp_path, MODELS=MODELS, JOBS="3")
    run = ["megatron-longpo", "evaluate", "run", "--models", *MODELS.split(), *RUN]
    assert found == [
        ["sbatch", "--parsable", str(script), "prompts"],
        ["megatron-longpo", "evaluate", "make-ruler", "--tokenizer", "models/a", *MAKE],
        ["megatron-longpo", "evaluate", "make-ruler", "--tokenizer", "runs/b", *MAKE],
        ["sbatch", "--parsable", "--array=1-3", "--gpus=1", "--dependency=afterok:41", str(script), "run"],
        run,
        run,
        run,
        ["sbatch", "--dependency=afterok:41", str(script), "report"],
        ["megatron-longpo", "evaluate", "report", "runs/evaluate"],
    ]


def test_the_array_waits_for_no_prompts_where_none_are_asked_for(tmp_path: Path) -> None:
    script = EXAMPLES / "evaluate.sbatch"
    found = slurm.commands(script, tmp_path, MODELS="base=m", JOBS="1", SUITE="short,infinitebench")
    assert found[0] == ["sbatch", "--parsable", "--array=1-1", "--gpus=1", str(script), "run"]
    assert [words[2] for words in found if words[1] == "evaluate"] == ["run", "report"]
