"""examples/generate-array.sbatch: what it submits and runs."""

import argparse
from pathlib import Path

from megatron_longpo.commands.generate_options import add_arguments, settings_of
from tests.integration.slurm import commands

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "generate-array.sbatch"


def test_an_array_of_shards_and_then_a_merge(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()  # not to be put in the place of *.txt
    variables = {"MODEL": "my model", "DOCUMENTS": "*.txt b", "OUTPUT": "o.jsonl", "SHARDS": "3", "AT_A_TIME": "2"}
    found = commands(SCRIPT, tmp_path, GENERATE="--seed 7", **variables)
    generate = ["megatron-longpo", "generate", "--documents", "*.txt", "b", "--model", "my model"]
    generate += ["--output", "o.jsonl", "--preset", "mistral-128k", "--engine", "hf", "--seed", "7"]
    assert found == [
        ["sbatch", "--parsable", "--array=1-3%2", "--gpus=1", str(SCRIPT), "shard"],
        *([*generate, "--shard", f"{number}/3"] for number in (1, 2, 3)),
        ["sbatch", "--dependency=afterok:41", str(SCRIPT), "merge"],
        [*generate, "--merge", "3"],
    ]


def test_one_shard_again(tmp_path: Path) -> None:
    found = commands(SCRIPT, tmp_path, "shard", MODEL="m", DOCUMENTS="d", SHARDS="8", SLURM_ARRAY_TASK_ID="5")
    assert len(found) == 1 and found[0][-2:] == ["--shard", "5/8"]


def test_its_options_are_those_of_generate(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for words in commands(SCRIPT, tmp_path, MODEL="m", DOCUMENTS="d e", SHARDS="1"):
        if words[0] == "megatron-longpo":
            args = parser.parse_args(words[2:])
            settings_of(args).check()
            assert args.documents == ["d", "e"]
