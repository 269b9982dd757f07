"""Whether the training of a recipe fits on its GPUs, as far as the planner knows them ([machine] gpu)."""

from megatron_longpo.commands import plan
from megatron_longpo.errors import UserError
from megatron_longpo.launch.machine import Machine
from megatron_longpo.launch.programs import PLAN, options_of, parse, words_of
from megatron_longpo.launch.recipe import Recipe, Section
from megatron_longpo.launch.steps import model_folder, run_folder
from megatron_longpo.plan.text import summary

BRANCH = 2048
"""Tokens of an answer, where the dataset is not built yet."""


def planned_training(recipe: Recipe, machine: Machine, has_dataset: bool) -> str:
    """The planner's verdict in a few lines; nothing where no kind of GPU is named.

    Args:
        has_dataset: it is there and was checked; else all pairs are taken to be as long as they may.

    Raises:
        UserError: the planner does not know the kind, or refuses the layout.
    """
    if machine.gpu is None:
        return ""
    words = [model_folder(recipe), *_lengths(recipe, has_dataset), *_layout(recipe.said("train"))]
    words += ["--gpus", str(machine.num_ranks), "--kind", machine.gpu]
    try:
        found = plan.planned(parse(PLAN, words))
    except UserError as error:
        raise UserError(f"[train] cannot be planned: {error}; without a plan: --set machine.gpu=false") from error
    command = "megatron-longpo plan " + " ".join(words)
    advice = f"\nsee what would: {command}" if found.verdict != "OK" else ""
    return f"training, planned for {machine.num_ranks} {machine.gpu}: {summary(found)}{advice}\n"


def _lengths(recipe: Recipe, has_dataset: bool) -> list[str]:
    if has_dataset:
        return ["--longpo-data", str(run_folder(recipe).data)]
    said = recipe.said("build") or recipe.said("import-data")
    length = said.get("max-length") or recipe.said("train").get("max-position-embeddings")
    if not isinstance(length, int):
        raise UserError("no length: give max-length in [build]")
    return ["--trunk", str(max(1, length - BRANCH)), "--branches", str(BRANCH), str(BRANCH)]


def _layout(train: Section) -> list[str]:
    """The options of training that the planner has too, and what it takes as given."""
    words = words_of(train, options_of(PLAN.parser()))
    words += [] if train.get("bf16") or train.get("fp16") else ["--fp32"]
    return words + ([] if train.get("use-distributed-optimizer") else ["--no-distributed-optimizer"])
