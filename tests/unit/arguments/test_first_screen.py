"""first_screen.py: what a run says of itself before its first step, on a real command line."""

import contextlib
import io
import sys
from pathlib import Path

import pytest

from tests.ranks import run_ranks
from tests.workspace import make_workspace, train_argv

pytestmark = pytest.mark.ranks


def screen(argv: list[str], save: Path) -> tuple[str, str, str]:
    """(the screen, arguments.txt, what was printed besides) of that command line."""
    sys.argv[1:] = argv
    from megatron_longpo import train  # first: it prepares the process for Megatron
    from megatron_longpo.arguments.first_screen import first_screen, write_arguments

    train.megatron_hooks.drop_list_of_arguments()
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        args, settings = train.parse()
    write_arguments(args)
    memory = train.planned_memory(args, settings)
    return first_screen(args, settings, memory), (save / "arguments.txt").read_text(), printed.getvalue()


def test_the_screen(tmp_path: Path) -> None:
    work = make_workspace(tmp_path / "work", num_pairs=6)
    options = [
        "--longpo-objective",
        "simpo",
        "--longpo-gamma",
        "0.25",
        "--split",
        "67,33",
        "--save",
        tmp_path / "run",
        "--save-interval",
        "1",
        "--longpo-metrics",
        tmp_path / "run" / "metrics.jsonl",  # the one beside the checkpoints
    ]
    text, arguments, printed = run_ranks(screen, 1, train_argv(work, *options, "--train-iters", "3"), tmp_path / "run")[
        0
    ]
    lines = {line.split()[0]: line for line in text.splitlines()}
    assert lines["objective"].split()[1:4] == ["simpo,", "beta", "2,"] and "gamma 0.25" in lines["objective"]
    assert "nll_coef 0" in lines["objective"] and lines["objective"].endswith("NLL over response tokens")
    assert "6 pairs, 2 of them held out" in lines["data"]
    assert lines["reference"].endswith("none")
    assert "tensor 1, pipeline 1, context 1, data 1" in lines["layout"]
    assert str(tmp_path / "run") in lines["saves"] and lines["metrics"].count("metrics.jsonl") == 1
    assert "3.00 epochs" in lines["steps"]  # 3 steps of 4 pairs, and 4 pairs are trained on
    assert "nan" not in text and len(text.splitlines()) <= 20
    assert "longpo_gamma: 0.25\n" in arguments and "train_iters: 3\n" in arguments
    assert "longpo_gamma" not in printed  # Megatron's own list of 800 options
