"""examples/generate-array.sbatch, with a SLURM of shell scripts that runs what is submitted and notes the commands."""

import argparse
import os
import shlex
import subprocess
from pathlib import Path

from megatron_longpo.commands.generate_options import add_arguments, settings_of

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "generate-array.sbatch"
SBATCH = r"""#!/usr/bin/env bash
printf "%q " sbatch "$@" >> "$COMMANDS"; echo >> "$COMMANDS"
indices=
while [[ $1 == --* ]]; do
    case $1 in --array=*) range=${1#--array=}; range=${range%\%*}; indices=$(seq "${range%-*}" "${range#*-}") ;; esac
    shift
done
export SLURM_JOB_ID=41
for index in ${indices:-none}; do SLURM_ARRAY_TASK_ID=$index bash "$@" >&2; done
echo "41;cluster"
"""
SRUN = '#!/usr/bin/env bash\nprintf "%q " "$@" >> "$COMMANDS"\necho >> "$COMMANDS"\n'


def commands(folder: Path, *arguments: str, **environment: str) -> list[list[str]]:
    """What the script submits and runs, in that order, word by word."""
    for name, text in (("sbatch", SBATCH), ("srun", SRUN)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    settings = {"PATH": f"{folder}:{os.environ['PATH']}", "COMMANDS": f"{folder}/commands", **environment}
    subprocess.run(["bash", str(SCRIPT), *arguments], env=os.environ | settings, cwd=folder, check=True)
    return [shlex.split(line) for line in (folder / "commands").read_text().splitlines()]


def test_an_array_of_shards_and_then_a_merge(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()  # not to be put in the place of *.txt
    variables = {"MODEL": "my model", "DOCUMENTS": "*.txt b", "OUTPUT": "o.jsonl", "SHARDS": "3", "AT_A_TIME": "2"}
    found = commands(tmp_path, GENERATE="--seed 7", **variables)
    generate = ["megatron-longpo", "generate", "--documents", "*.txt", "b", "--model", "my model"]
    generate += ["--output", "o.jsonl", "--preset", "mistral-128k", "--engine", "transformers", "--seed", "7"]
    assert found == [
        ["sbatch", "--parsable", "--array=1-3%2", "--gpus=1", str(SCRIPT), "shard"],
        *([*generate, "--shard", f"{number}/3"] for number in (1, 2, 3)),
        ["sbatch", "--dependency=afterok:41", str(SCRIPT), "merge"],
        [*generate, "--merge", "3"],
    ]


def test_one_shard_again(tmp_path: Path) -> None:
    found = commands(tmp_path, "shard", MODEL="m", DOCUMENTS="d", SHARDS="8", SLURM_ARRAY_TASK_ID="5")
    assert len(found) == 1 and found[0][-2:] == ["--shard", "5/8"]


def test_its_options_are_those_of_generate(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for words in commands(tmp_path, MODEL="m", DOCUMENTS="d e", SHARDS="1"):
        if words[0] == "megatron-longpo":
            args = parser.parse_args(words[2:])
            settings_of(args).check()
            assert args.documents == ["d", "e"]
