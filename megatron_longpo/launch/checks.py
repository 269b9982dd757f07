"""What can be known of a step before it runs: its options by its own parser, and its inputs where they are there."""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_longpo.errors import UserError
from megatron_longpo.launch.machine import Machine
from megatron_longpo.launch.programs import PROGRAMS, parse
from megatron_longpo.launch.recipe import Recipe
from megatron_longpo.launch.steps import Step, model_folder
from megatron_longpo.model.parallel_sizes import ParallelSizes
from megatron_longpo.objective.objectives import OBJECTIVES, OPTIONS


def check(plan: Sequence[Step], recipe: Recipe, machine: Machine) -> dict[str, Path]:
    """Check every step as far as what it reads is there; what is done is not checked again.

    Returns:
        Steps that the rest is left for until they begin -> the first of their inputs that is not there yet.

    Raises:
        UserError: naming the section.
    """
    left: dict[str, Path] = {}
    will_be = set[Path]()
    for step in plan:
        if step.done.holds():
            continue
        missing = [path for path in step.needs if path in will_be]
        will_be.add(step.done.path)
        if missing:
            left[step.name] = missing[0]
        try:
            for options in step.options:
                args = parse(PROGRAMS[step.section][step.program], options)
                _CHECKS[step.section](args, step, options, recipe, machine, not missing)
        except (UserError, OSError) as error:
            raise UserError(f"[{step.section}] {' '.join(str(error).split())}") from error
    return left


def _generate(args: argparse.Namespace, step: Step, *_: object) -> None:
    from megatron_longpo.commands.generate import prepare

    prepare(args)


def _build(args: argparse.Namespace, step: Step, options: object, recipe: object, machine: object, whole: bool) -> None:
    from megatron_longpo.commands.build import check as check_build
    from megatron_longpo.commands.dataset_output import check_dataset_options, usable_tokenizer

    check_build(args) if whole else check_dataset_options(args)
    usable_tokenizer(args)


def _import_data(args: argparse.Namespace, step: Step, *_: object) -> None:
    from megatron_longpo.commands.dataset_output import check_dataset_options, usable_tokenizer
    from megatron_longpo.data.arrow import find_files

    check_dataset_options(args)
    find_files(args.input)
    usable_tokenizer(args)


def _import_hf(args: argparse.Namespace, step: Step, *_: object) -> None:
    from megatron_longpo.commands.import_hf import check_verify_options
    from megatron_longpo.hf.import_hf import open_model

    check_verify_options(args)
    open_model(args.hf, args.output, args.dtype, args.chat_template)


def _score(
    args: argparse.Namespace, step: Step, options: object, recipe: Recipe, machine: Machine, whole: bool
) -> None:
    from megatron_longpo.reference.score import check_inputs, check_world

    sizes = ParallelSizes.of(args)
    check_world(machine.num_ranks, sizes)
    if whole:
        check_inputs(args.data, args.checkpoint, sizes, args.transformer_impl)
    else:
        _check_layout(args, recipe)


def _train(
    args: argparse.Namespace, step: Step, options: Sequence[str], recipe: Recipe, machine: Machine, whole: bool
) -> None:
    if whole:
        _check_whole_training(options, machine)
        return
    from megatron_longpo.arguments import option_ranges
    from megatron_longpo.arguments.validate_options import check_optimizer
    from megatron_longpo.reference.score import check_world

    option_ranges.check_numbers(args, {})
    option_ranges.check_schedule(args)
    option_ranges.check_packages(args)
    option_ranges.check_outputs(args)
    OBJECTIVES[args.longpo_objective].coefficients({name: vars(args)[f"longpo_{name}"] for name in OPTIONS})
    check_optimizer(args)
    check_world(machine.num_ranks, ParallelSizes.of(args))
    _check_layout(args, recipe)


def _check_layout(args: argparse.Namespace, recipe: Recipe) -> None:
    """The axes divide the model in [model] hf; its import is not there yet."""
    from megatron_longpo.hf.config import check_divides, megatron_options
    from megatron_longpo.model.exchange import check_exchange
    from megatron_longpo.strict_json import read_json_object

    hf = Path(model_folder(recipe))
    if not (hf / "config.json").is_file():
        raise UserError(f"[model] hf is {hf}: no config.json there; give a Hugging Face folder")
    model, sizes = megatron_options(read_json_object(hf / "config.json")), ParallelSizes.of(args)
    check_divides(model, sizes.tensor, sizes.pipeline, hf)
    check_exchange(sizes, model)


def _check_whole_training(options: Sequence[str], machine: Machine) -> None:
    """As rank 0 would, in a process of its own."""
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(machine.num_ranks)}
    found = subprocess.run(
        [sys.executable, "-m", "megatron_longpo.launch.check_training", *options],
        env=os.environ | machine.environment | ranks,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        lines = found.stderr.strip().splitlines() or [f"ended with status {found.returncode}"]
        raise UserError(lines[-1].removeprefix("megatron_longpo.train: error: "))


def _export(args: argparse.Namespace, step: Step, *_: object) -> None:
    from megatron_longpo.commands.export_hf import check as check_export

    check_export(args)


def _evaluate(args: argparse.Namespace, step: Step, *_: object) -> None:
    """Not the models: one of them is still to be made."""
    from megatron_longpo.commands.engine_options import engine_choice
    from megatron_longpo.evaluate.mirror import open_mirror

    if step.name != "evaluate-report":
        open_mirror(args.mirror)
    if step.name == "evaluate-run":
        engine_choice(args)


_CHECKS: dict[str, Callable[..., None]] = {
    "generate": _generate,
    "build": _build,
    "import-data": _import_data,
    "import-hf": _import_hf,
    "score-reference": _score,
    "train": _train,
    "export-hf": _export,
    "evaluate": _evaluate,
}
