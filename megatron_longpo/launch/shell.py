"""Words for generated shell: quoted, and broken into lines that can be read."""

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from megatron_longpo.launch.machine import Machine
from megatron_longpo.launch.recipe import Recipe
from megatron_longpo.launch.steps import Done, Step, run_folder

SECONDS_TO_SAVE = 240
WIDTH = 110
INDENT = " " * 4


def command(words: Iterable[str], indent: str = "", *, raw: Sequence[str] = (), tail: Sequence[str] = ()) -> str:
    """A command over as many lines as it needs, options with their values together.

    Args:
        words: quoted where the shell would read them otherwise.
        raw, tail: what stands before and behind them, as it is.
    """
    groups: list[str] = []
    for word in (*raw, *map(shlex.quote, words), *tail):
        if groups and not word.startswith("-"):
            groups[-1] += f" {word}"
        else:
            groups.append(word)
    lines = [indent + groups[0]]
    for group in groups[1:]:
        if len(lines[-1]) + len(group) < WIDTH:
            lines[-1] += f" {group}"
        else:
            lines.append(f"{indent}{INDENT}{group}")
    return " \\\n".join(lines)


def condition(done: Done) -> str:
    """The shell's test for what `Done.holds` tells."""
    path = shlex.quote(os.fspath(done.path))
    return f"trained {path}" if done.is_training else f"[[ -e {path} ]]"


def common_values(recipe: Recipe, machine: Machine, attempt: Path, plan: Sequence[Step]) -> dict[str, Any]:
    """What common.sh.jinja reads."""
    return {
        "cwd": shlex.quote(os.fspath(Path.cwd())),
        "path": shlex.quote(os.fspath(Path(sys.executable).parent)),
        "environment": [(name, shlex.quote(value)) for name, value in machine.environment.items()],
        "name": run_folder(recipe).folder.name.translate({ord(c): "_" for c in '"$`\\\n'}),
        "attempt": shlex.quote(os.fspath(attempt)),
        "attempts": shlex.quote(os.fspath(attempt.parent)),
        "has_ranks": any(step.kind == "ranks" for step in plan),
        "seconds_to_save": SECONDS_TO_SAVE,
        "has_training": any(step.done.is_training for step in plan),
        "is_array": False,
    }
