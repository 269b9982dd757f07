"""Running on one machine: ``commands.sh`` of an attempt, stage by stage."""

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from megatron_longpo.launch.machine import Machine
from megatron_longpo.launch.recipe import Recipe
from megatron_longpo.launch.shell import INDENT, command, common_values, condition
from megatron_longpo.launch.steps import Step
from megatron_longpo.templates import render

SCRIPT = "commands.sh"


def files(plan: Sequence[Step], recipe: Recipe, machine: Machine, attempt: Path) -> dict[str, str]:
    """The script, by its name."""
    values = common_values(recipe, machine, attempt, plan) | {
        "steps": [_values(step, machine) for step in plan],
        "has_shares": any(step.kind in ("shards", "gpus") for step in plan),
        "gpus": ",".join(map(str, range(machine.gpus_per_node))),
    }
    return {SCRIPT: render("megatron_longpo.launch", "commands.sh.jinja", values)}


def _values(step: Step, machine: Machine) -> dict[str, Any]:
    values = {
        "about": step.about,
        "name": step.name,
        "done": condition(step.done),
        "is_last": step.is_last,
        "processes": min(step.jobs, machine.gpus_per_node),
        "share": "",
        "commands": "",
    }
    if step.kind == "shards":
        loop = f"{INDENT * 2}for ((shard = $1 + 1; shard <= {step.jobs}; shard += {values['processes']})); do"
        tail = ("--shard", f'"$shard/{step.jobs}"')
        body = command(step.commands[0], INDENT * 3, raw=("run",), tail=tail)
        values["share"] = f"{loop}\n{body}\n{INDENT * 2}done"
    elif step.kind == "gpus":
        values["share"] = "\n".join(command(words, INDENT * 2, raw=("run",)) for words in step.commands)
    else:
        ranks = ("torchrun", "--standalone", "--nproc-per-node", str(machine.gpus_per_node))
        before = ("run", *ranks) if step.kind == "ranks" else ("run",)
        values["commands"] = "\n".join(command(words, INDENT, raw=before) for words in step.commands)
    return values


def run(attempt: Path) -> int:
    """Run the script of an attempt; a stop is handed on, and its end is waited for. Returns its exit status."""
    # A session of its own: Ctrl-C reaches this program alone, and the script by way of it, once.
    process = subprocess.Popen(["bash", str(attempt / SCRIPT)], start_new_session=True)

    def hand_on(_signal: int, _frame: FrameType | None) -> None:
        process.terminate()

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status
