"""``megatron-longpo evaluate run``: every model in every task, a cell each; what is there is not made again."""

import argparse
import asyncio
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_longpo.commands.engine_options import add_engine_options, engine_choice
from megatron_longpo.commands.evaluate_make_ruler import DEFAULT_LENGTHS, lengths
from megatron_longpo.commands.number_options import require_at_least_1
from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.suites import SUITES

if TYPE_CHECKING:
    from megatron_longpo.evaluate.mirror import Mirror
    from megatron_longpo.evaluate.run.wanted import Wanted
    from megatron_longpo.generate.engines.opening import EngineChoice

TASKS = tuple(task for suite in SUITES.values() for task in suite.tasks)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the step."""
    what = parser.add_argument_group("what is evaluated")
    what.add_argument("--models", nargs="+", required=True, metavar="NAME=DIR", help="the first is the baseline")
    what.add_argument("--only", type=_words, metavar="NAME,...", help="of the models: by default all")
    what.add_argument(
        "--suite", type=_suites, default=tuple(SUITES), metavar="NAME,...", help="ruler, infinitebench, short or all"
    )
    what.add_argument("--tasks", type=_tasks, default=TASKS, metavar="TASK,...", help="of the suites: by default all")
    what.add_argument("--lengths", type=lengths, default=DEFAULT_LENGTHS, metavar="N,N,...", help="of RULER, in tokens")
    what.add_argument(
        "--limit", type=int, metavar="N", help="only the first N samples of a task (of every subject of MMLU)"
    )
    what.add_argument("--mirror", type=Path, required=True, metavar="DIR", help="made by evaluate prepare")
    what.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="cells; any number of runs may share it"
    )
    what.add_argument("--dry-run", action="store_true", help="say what is to be made, and how long that takes")
    how = parser.add_argument_group("what answers")
    add_engine_options(how)


def run(options: argparse.Namespace) -> None:
    """Make what is missing."""
    require_at_least_1(options, "limit")
    choice = engine_choice(options)
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    from megatron_longpo.evaluate.mirror import open_mirror
    from megatron_longpo.evaluate.run.models import open_models
    from megatron_longpo.evaluate.run.planning import Asked, plan
    from megatron_longpo.evaluate.run.run import missing_cells

    mirror = open_mirror(options.mirror)
    models = open_models([_named_folder(text) for text in options.models], choice.chat_template)
    names = options.only or [model.name for model in models]
    if unknown := [name for name in names if name not in [model.name for model in models]]:
        raise UserError(f"--only {unknown[0]}: not one of --models")
    chosen = [model for model in models if model.name in names]
    if choice.engine == "openai" and len(chosen) > 1:
        raise UserError("--engine openai asks one server: say with --only which of --models it serves")
    found = plan(
        Asked(
            models=chosen,
            suites=options.suite,
            tasks=options.tasks,
            lengths=options.lengths,
            limit=options.limit,
            mirror=mirror,
            choice=choice,
        )
    )
    for fault in found.faults:
        print(f"left out: {fault}", file=sys.stderr)
    missing = missing_cells(found.cells, options.output)
    print(f"{len(found.cells)} cells, {len(missing)} to make", file=sys.stderr, flush=True)
    if options.dry_run:
        from megatron_longpo.commands.evaluate_dry_run import dry_run

        dry_run(missing, choice, mirror)
    elif left := _make(missing, len(found.cells) - len(missing), choice, mirror, options.output):
        print(f"{len(left)} cells are being made by other processes", file=sys.stderr)
    else:
        print(f"all cells are there; megatron-longpo evaluate report {options.output}", file=sys.stderr)


def _make(
    missing: "list[Wanted]", num_there: int, choice: "EngineChoice", mirror: "Mirror", output: Path
) -> "list[Wanted]":
    """Make all cells, model by model; returns those that other processes make."""
    from megatron_longpo.commands.evaluate_display import RunDisplay
    from megatron_longpo.evaluate.run.engines import open_long, open_short
    from megatron_longpo.evaluate.run.run import make_long_cells, make_short_cells

    left: list[Wanted] = []
    with RunDisplay(missing, num_there) as display:
        for model in dict.fromkeys(wanted.model.order for wanted in missing):
            cells = [wanted for wanted in missing if wanted.model.order == model]
            short = [wanted for wanted in cells if wanted.suite == "short"]
            if short:
                opened = partial(open_short, choice, short[0].model)
                left += make_short_cells(short, opened, mirror, output, display)
            long = [wanted for wanted in cells if wanted.suite != "short"]
            if long:
                continues = any(wanted.suite == "ruler" for wanted in long)
                opening = partial(open_long, choice, long[0].model, continues)
                left += asyncio.run(make_long_cells(long, opening, mirror, output, display))
    return left


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not equals or not folder:
        raise UserError(f"--models {text}: give NAME=DIR, like base=models/mistral")
    return name, Path(folder)


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in text.replace(" ", "").split(",") if word))


def _suites(text: str) -> tuple[str, ...]:
    words = _words(text)
    if unknown := [word for word in words if word not in (*SUITES, "all")]:
        raise argparse.ArgumentTypeError(f"no suite {unknown[0]}; there are {', '.join(SUITES)} and all")
    return tuple(SUITES) if "all" in words else words


def _tasks(text: str) -> tuple[str, ...]:
    words = _words(text)
    if unknown := [word for word in words if word not in TASKS]:
        raise argparse.ArgumentTypeError(f"no task {unknown[0]}; there are {', '.join(TASKS)}")
    return words
