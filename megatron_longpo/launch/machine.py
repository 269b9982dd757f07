"""What the stages run on: the section [machine], and the environment of their processes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from megatron_longpo.errors import UserError
from megatron_longpo.launch.recipe import Recipe, near

LAUNCHERS = ("torchrun", "slurm")
NUMBERS = ("nodes", "gpus-per-node", "generate-jobs", "evaluate-jobs")
SBATCH = (
    "account",
    "comment",
    "constraint",
    "cpus-per-task",
    "exclude",
    "licenses",
    "mail-type",
    "mail-user",
    "mem",
    "partition",
    "qos",
    "reservation",
    "time",
)
"""Keys that are options of sbatch, handed on to every job as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where and by what."""

    launcher: str
    gpu: str | None
    """A kind that the planner knows (plan/machines.py)."""
    nodes: int
    gpus_per_node: int
    """Processes a node, of the stages that run in ranks; without CUDA as well."""
    generate_jobs: int
    """Shards of the documents, by default one a GPU. A journal of generate belongs to their number."""
    evaluate_jobs: int
    """Processes that share the cells of the evaluation (SLURM: jobs), by default one a GPU."""
    sbatch: Mapping[str, str]
    environment: Mapping[str, str]
    """Variables that are set where they are not set already."""

    @property
    def num_ranks(self) -> int:
        """Of the stages that run in ranks."""
        return self.nodes * self.gpus_per_node

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """Read the sections [machine] and [environment].

        Raises:
            UserError: a key is unknown, or a value is not what it can be.
        """
        said = recipe.said("machine")
        for key in recipe.sections.get("machine", {}):
            if key not in (known := ("launcher", "gpu", *NUMBERS, *SBATCH)):
                raise UserError(f"{recipe.where('machine', key)}: no such key{near(key, known)}")
        launcher = said.get("launcher", "torchrun")
        if launcher not in LAUNCHERS:
            raise UserError(f"{recipe.where('machine', 'launcher')} is {launcher!r}; needs {' or '.join(LAUNCHERS)}")
        sbatch = {key: str(said[key]) for key in SBATCH if key in said}
        for key, value in sbatch.items():
            if launcher != "slurm":
                raise UserError(f'{recipe.where("machine", key)} is for launcher = "slurm"; remove one')
            if "\n" in value:
                raise UserError(f"{recipe.where('machine', key)}: needs one line")
        counts = {key: _count(recipe, key, said[key]) for key in NUMBERS if key in said}
        nodes, gpus = counts.get("nodes", 1), counts.get("gpus-per-node", 8)
        if launcher == "torchrun" and nodes > 1:
            raise UserError(
                f'{recipe.where("machine", "nodes")} is {nodes}: launcher = "torchrun" is for one machine; choose '
                'launcher = "slurm"'
            )
        return cls(
            launcher=str(launcher),
            gpu=str(said["gpu"]) if "gpu" in said else None,
            nodes=nodes,
            gpus_per_node=gpus,
            generate_jobs=counts.get("generate-jobs", nodes * gpus),
            evaluate_jobs=counts.get("evaluate-jobs", nodes * gpus),
            sbatch=sbatch,
            environment=_environment(recipe),
        )


def _count(recipe: Recipe, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{recipe.where('machine', key)} is {value!r}; needs a number of at least 1")
    return value


def _environment(recipe: Recipe) -> dict[str, str]:
    said = recipe.said("environment")
    for name, value in said.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) or isinstance(value, list):
            raise UserError(f"{recipe.where('environment', name)} = {value!r}: needs a variable's name and a word")
    return {name: str(value) for name, value in said.items()}
