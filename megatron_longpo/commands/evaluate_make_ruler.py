"""``megatron-longpo evaluate make-ruler``: RULER's prompts for a tokenizer, made once."""

import argparse
import os
import sys
from pathlib import Path

from megatron_longpo.commands.dataset_output import given_template
from megatron_longpo.commands.number_options import require_at_least_1
from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.suites import RULER

DEFAULT_LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
"""Those of the paper's table."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the step."""
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="a model's folder")
    parser.add_argument("--chat-template", type=Path, metavar="FILE", help="in place of the folder's own")
    parser.add_argument("--mirror", type=Path, required=True, metavar="DIR", help="made by evaluate prepare")
    parser.add_argument(
        "--lengths",
        type=lengths,
        default=DEFAULT_LENGTHS,
        metavar="N,N,...",
        help=f"tokens of a prompt with its answer (default {','.join(map(str, DEFAULT_LENGTHS))})",
    )
    parser.add_argument("--tasks", type=tasks, default=RULER.tasks, metavar="TASK,...", help="by default all 13")
    parser.add_argument("--samples", type=int, default=500, metavar="N", help="prompts of a task (default 500)")
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="of every draw (default 42)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, metavar="N", help="by default all cores")


def run(options: argparse.Namespace) -> None:
    """Make the files that are missing."""
    from megatron_longpo.evaluate.long.ruler_files import RulerFile, make_files, makeable, plan_making
    from megatron_longpo.evaluate.mirror import open_mirror

    require_at_least_1(options, "samples", "processes")
    possible, faults = makeable(open_mirror(options.mirror), options.tasks)
    for fault in faults:
        print(f"left out: {fault}", file=sys.stderr)
    if not possible:
        raise UserError("the mirror has the sets of no task that was asked for")
    making = plan_making(
        options.mirror,
        options.tokenizer,
        given_template(options),
        samples=options.samples,
        seed=options.seed,
        lengths=options.lengths,
    )
    files = [RulerFile(task, length) for length in sorted(options.lengths, reverse=True) for task in possible]
    missing = [file for file in files if not making.path(file).is_file()]
    print(f"{len(files)} files of prompts, {len(missing)} to make", file=sys.stderr, flush=True)
    for number, (file, made) in enumerate(make_files(making, missing, options.processes), start=1):
        what = f"{file.task} at {file.length:,}: {made.num:,} prompts of {made.mean_length:,.0f} tokens in the mean"
        print(f"[{number}/{len(missing)}] {what}", file=sys.stderr, flush=True)
    print(making.folder)


def lengths(text: str) -> tuple[int, ...]:
    """``4096,8192`` or ``4K,8K`` as numbers, without repetitions."""
    found = dict.fromkeys(
        int(word[:-1]) * 1024 if word[-1:] in ("K", "k") else int(word) for word in text.replace(" ", "").split(",")
    )
    if min(found) < 1:
        raise ValueError(text)
    return tuple(found)


def tasks(text: str) -> tuple[str, ...]:
    """``vt,cwe`` or ``ruler_vt,ruler_cwe`` as the tasks' full names."""
    names = [name if name.startswith("ruler_") else f"ruler_{name}" for name in text.replace(" ", "").split(",")]
    if unknown := [name for name in names if name not in RULER.tasks]:
        raise argparse.ArgumentTypeError(f"no task {unknown[0]}; there are {', '.join(RULER.tasks)}")
    return tuple(dict.fromkeys(names))
