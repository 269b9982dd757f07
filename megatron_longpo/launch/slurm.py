"""Running on a cluster: a job script a step, and ``submit.sh``, which submits them one after the other."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from megatron_longpo.errors import UserError
from megatron_longpo.launch.machine import Machine
from megatron_longpo.launch.recipe import Recipe
from megatron_longpo.launch.shell import command, common_values, condition
from megatron_longpo.launch.steps import Step, run_folder
from megatron_longpo.templates import render

SCRIPT = "submit.sh"
SECONDS_BEFORE_THE_END = 300
"""When a job is told that its time is nearly up; shell.SECONDS_TO_SAVE of them are for its ranks."""
SIGNAL = f"B:USR1@{SECONDS_BEFORE_THE_END}"
"""To the job's shell, which sends TERM on. Not TERM itself: that is what scancel sends, and must not requeue."""


def files(plan: Sequence[Step], recipe: Recipe, machine: Machine, attempt: Path) -> dict[str, str]:
    """The scripts of the steps that are not done, by their names, and the one that submits them."""
    todo = [step for step in plan if not step.done.holds()]
    common = common_values(recipe, machine, attempt, todo)
    jobs = {f"{step.name}.sbatch": _job(step, recipe, machine, attempt, common) for step in todo}
    names = [step.name for step in todo]
    return jobs | {SCRIPT: render("megatron_longpo.launch", "submit.sh.jinja", common | {"names": names})}


def _job(step: Step, recipe: Recipe, machine: Machine, attempt: Path, common: dict[str, object]) -> str:
    run, tail = ("run", "srun"), ()
    if step.kind == "ranks":
        rendezvous = ('"$SLURM_JOB_ID"', "--rdzv-endpoint", '"$head:$port"')
        ranks = ("--nnodes", '"$SLURM_NNODES"', "--nproc-per-node", str(machine.gpus_per_node))
        run = (*run, "torchrun", *ranks, "--rdzv-backend", "c10d", "--rdzv-id", *rendezvous)
    if step.kind == "shards":
        tail = ("--shard", f'"$SLURM_ARRAY_TASK_ID/{step.jobs}"')
    values = common | {
        "about": step.about,
        "stage": step.name,
        "options": _sbatch_options(step, recipe, machine, attempt),
        "done": condition(step.done),
        "commands": "\n".join(command(words, raw=run, tail=tail) for words in step.commands),
        "progress": _progress(step),
        "signal": SIGNAL,
        "is_array": step.kind in ("shards", "gpus"),
        "is_ranks": step.kind == "ranks",
        "is_training": step.done.is_training,
        "is_last": step.is_last,
        "has_training": step.done.is_training,
        "has_ranks": step.kind == "ranks",
    }
    return render("megatron_longpo.launch", "job.sbatch.jinja", values)


def _progress(step: Step) -> str:
    """The shell's command that prints how far a step is; empty for one that begins anew."""
    if not step.grows:
        return ""
    path = shlex.quote(os.fspath(step.grows))
    # In KiB: a journal gets a line of less whenever it is opened.
    return f"cat {path}" if step.done.is_training else f"du --summarize --apparent-size --block-size=1K {path}"


def _sbatch_options(step: Step, recipe: Recipe, machine: Machine, attempt: Path) -> list[tuple[str, str]]:
    is_array = step.kind in ("shards", "gpus")
    nodes = machine.nodes if step.kind == "ranks" else 1
    options = {
        "job-name": f"{run_folder(recipe).folder.name}-{step.name}",
        "nodes": str(nodes),
        "ntasks-per-node": "1",
        "output": f"{attempt}/{'%x-%A-%a' if is_array else '%x-%j'}.log",
        "open-mode": "append",
        **machine.sbatch,
    }
    if step.kind == "ranks":
        options["gpus-per-node"] = str(machine.gpus_per_node)
    if is_array:
        options |= {"gpus-per-node": "1", "array": f"1-{step.jobs}"}
    if step.grows:
        options |= {"requeue": "", "signal": SIGNAL}
    return [(name, _quoted(value)) for name, value in options.items()]


def _quoted(value: str) -> str:
    """A value in an #SBATCH line, which takes double quotes around blanks."""
    if '"' in value:
        raise UserError(f"{value}: sbatch takes no double quote in an option; remove it")
    return f'"{value}"' if " " in value else value


def run(attempt: Path) -> int:
    """Submit the jobs of an attempt; prints their numbers and returns the status."""
    return subprocess.run(["bash", str(attempt / SCRIPT)], check=False).returncode
