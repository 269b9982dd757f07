"""Attempts: ``RUN/attempts/001``, ``002``, ... with the whole recipe and what runs; ``latest`` links to the last."""

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from megatron_longpo.errors import UserError
from megatron_longpo.launch.machine import Machine
from megatron_longpo.launch.recipe import Recipe, dump, load
from megatron_longpo.launch.steps import Step, run_folder, steps
from megatron_longpo.locks import Lock

LATEST = "latest"
RECIPE = "recipe.toml"


def next_attempt(attempts: Path) -> Path:
    """The folder that a new attempt will have."""
    numbers = [int(path.name) for path in attempts.glob("[0-9]*") if path.name.isdecimal()]
    return attempts / f"{max(numbers, default=0) + 1:03d}"


def write_attempt(attempt: Path, recipe: Recipe, files: Mapping[str, str]) -> None:
    """Make the folder with ``recipe.toml`` and ``files`` by name, and point ``latest`` to it.

    Raises:
        UserError: the run's folder is in use, or another launch took the number.
    """
    attempts = attempt.parent
    attempts.mkdir(parents=True, exist_ok=True)
    with closing(Lock(attempts, directory=True, guards=attempts.parent)):  # the scripts take the same one
        try:
            attempt.mkdir()
        except FileExistsError as error:
            raise UserError(f"{attempt}: another launch is writing it; try again") from error
        for name, text in {RECIPE: dump(recipe), **files}.items():
            path = attempt / name
            path.write_text(text, encoding="utf-8")
            if name != RECIPE:
                path.chmod(0o755)
        link = attempts / f".{LATEST}.partial"
        link.unlink(missing_ok=True)
        link.symlink_to(attempt.name)
        link.replace(attempts / LATEST)


def refuse_changed(plan: Sequence[Step], recipe: Recipe) -> None:
    """Hold what is done to have been made as the recipe says: by the options in the attempt before.

    Raises:
        UserError: a stage that is done would have other options now.
    """
    before = run_folder(recipe).attempts / LATEST / RECIPE
    if not before.is_file():
        return
    old = load([os.fspath(before)])
    made = {step.name: step for step in steps(old, Machine.of(old))}
    for step in plan:
        if step.done.holds() and step.name in made and made[step.name].options != step.options:
            now, was = ({word for words in one.options for word in words} for one in (step, made[step.name]))
            raise UserError(
                f"{step.name} is done, with other options than these ({' '.join(sorted(was - now)) or 'fewer'}, now "
                f"{' '.join(sorted(now - was)) or 'fewer'}): choose another [run] folder, or remove {step.done.path} "
                "to make it again"
            )
