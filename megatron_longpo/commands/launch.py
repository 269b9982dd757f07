"""``megatron-longpo launch``: a whole run from a recipe, on one machine or as jobs of a cluster (docs/launch.md)."""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_longpo import platform
from megatron_longpo.errors import UserError
from megatron_longpo.launch.recipe import RECIPES, load

if TYPE_CHECKING:
    from megatron_longpo.launch.steps import Step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "recipes",
        nargs="*",
        metavar="RECIPE.toml",
        help="files, or names of the package's own recipes; what a later one says lies over the earlier",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="lies over all recipes, like train.lr=1e-6; SECTION=false takes a stage out; may be repeated",
    )
    parser.add_argument("--dry-run", action="store_true", help="check and write everything, run and submit nothing")
    parser.add_argument("--list", action="store_true", help="print the package's own recipes")


def run(args: argparse.Namespace) -> int:
    """Check, write the attempt, and run or submit it; returns the status of what ran."""
    if args.list:
        print("\n".join(_about(path) for path in sorted(RECIPES.glob("*.toml"))))
        return 0
    if not args.recipes:
        raise UserError("give a recipe; --list prints those that come with the package")
    platform.activate(announce=False)  # before Megatron is imported
    from megatron_longpo.launch import slurm, torchrun
    from megatron_longpo.launch.attempt import next_attempt, refuse_changed, write_attempt
    from megatron_longpo.launch.checks import check
    from megatron_longpo.launch.machine import Machine
    from megatron_longpo.launch.planned import planned_training
    from megatron_longpo.launch.programs import check_keys
    from megatron_longpo.launch.steps import run_folder, steps

    recipe = load(args.recipes, args.set)
    machine = Machine.of(recipe)
    check_keys(recipe)
    plan = steps(recipe, machine)
    refuse_changed(plan, recipe)
    left = check(plan, recipe, machine)
    if any(step.name == "train" and not step.done.holds() for step in plan):
        print(planned_training(recipe, machine, has_dataset="train" not in left), end="")
    is_slurm = machine.launcher == "slurm"
    if is_slurm and not args.dry_run and not shutil.which("sbatch"):
        raise UserError("there is no sbatch here; launch on a machine of the cluster, or write the jobs with --dry-run")
    for step in plan:
        print(f"{step.name}: {_state(step, left)}")
    if all(step.done.holds() for step in plan):
        print("nothing left to do")
        return 0
    launcher = slurm if is_slurm else torchrun
    attempt = next_attempt(run_folder(recipe).attempts)
    write_attempt(attempt, recipe, launcher.files(plan, recipe, machine, attempt))
    print(f"{'would run' if args.dry_run else 'runs'}: bash {attempt / launcher.SCRIPT}", flush=True)
    return 0 if args.dry_run else launcher.run(attempt)


def _state(step: "Step", left: Mapping[str, Path]) -> str:
    """Done, or to do and what is not known of it yet."""
    if step.done.holds():
        return f"done, {step.done.path} is there"
    return f"to do; the rest is checked as it begins, when {left[step.name]} is there" if step.name in left else "to do"


def _about(path: Path) -> str:
    """A recipe's name and the comment that it begins with."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return f"{path.name:<24} {first.removeprefix('# ')}"
