"""The steps of a recipe: which commands run, on how many processes, and what tells that they are done.

A stage is one step, or a few where a cluster needs jobs of different sizes. What a stage makes is whole or absent, so
it is done when that is there. Everything lies in the run's folder:

    pairs.jsonl  data/pairs.*  imported/  run/ (checkpoints)  exported/  evaluation/  attempts/
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_longpo.arguments.first_screen import ARGUMENTS_FILE
from megatron_longpo.commands import generate
from megatron_longpo.data.render import Context
from megatron_longpo.errors import UserError
from megatron_longpo.hf.folder import TRACKER_FILE
from megatron_longpo.launch.machine import Machine
from megatron_longpo.launch.programs import PROGRAMS, options_of, words_of
from megatron_longpo.launch.recipe import STAGES, Recipe
from megatron_longpo.objective.objectives import OBJECTIVES
from megatron_longpo.reference import journal
from megatron_longpo.reference.cache import default_path

Kind = Literal["one", "ranks", "shards", "gpus"]
"""One process; torchrun's ranks on all GPUs; a process a GPU, on one shard after the other; a process a GPU."""


@dataclass(frozen=True, slots=True)
class Done:
    """What tells that a stage is done, here and in shell."""

    path: Path
    is_training: bool = False
    """``path`` holds checkpoints, and the last step's must be there."""

    def holds(self) -> bool:
        if not self.is_training:
            return self.path.exists()
        tracker, arguments = self.path / TRACKER_FILE, self.path / ARGUMENTS_FILE
        if not (tracker.is_file() and arguments.is_file()):
            return False
        asked = re.search(r"^train_iters: (\d+)$", arguments.read_text(encoding="utf-8"), re.MULTILINE)
        return asked is not None and tracker.read_text(encoding="utf-8").strip() == asked[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What runs."""

    name: str
    section: str
    about: str
    program: int = 0
    """Which of the section's programs."""
    options: tuple[tuple[str, ...], ...]
    """Of its commands, which run one after the other."""
    kind: Kind = "one"
    jobs: int = 1
    """Of the kinds ``shards`` and ``gpus``."""
    done: Done
    """Of the stage."""
    is_last: bool = True
    """Of the stage: then it must be done."""
    needs: tuple[Path, ...] = ()
    """What stages before it make, among them its ``done.path``."""
    grows: Path | None = None
    """Tells how far it is, if it goes on where it was stopped: training's last step, or what holds journals."""

    @property
    def commands(self) -> list[list[str]]:
        words = PROGRAMS[self.section][self.program].words
        return [[*words, *options] for options in self.options]


class RunFolder:
    """The paths of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pairs, self.data = folder / "pairs.jsonl", folder / "data" / "pairs"
        self.manifest = folder / "data" / "pairs.manifest.json"
        self.imported, self.checkpoints, self.exported = folder / "imported", folder / "run", folder / "exported"
        self.evaluation, self.attempts = folder / "evaluation", folder / "attempts"


def run_folder(recipe: Recipe) -> RunFolder:
    """Where the run of a recipe lies."""
    return RunFolder(Path(str(recipe.sections["run"]["folder"])))


def steps(recipe: Recipe, machine: Machine) -> list[Step]:
    """What the recipe asks for, in order.

    Raises:
        UserError: its sections contradict each other.
    """
    if "build" in recipe.sections and "import-data" in recipe.sections:
        raise UserError("[build] and [import-data] make the same dataset; take one back: --set build=false")
    run = run_folder(recipe)
    makers: dict[str, Callable[[Recipe, Machine, RunFolder], list[Step]]] = {
        "generate": _generate,
        "build": _dataset,
        "import-data": _dataset,
        "import-hf": _import,
        "score-reference": _score,
        "train": _train,
        "export-hf": _export,
        "evaluate": _evaluate,
    }
    found = [step for stage in STAGES if stage in recipe.sections for step in makers[stage](recipe, machine, run)]
    if not found:
        raise UserError(f"the recipe has no stage; give it a section [{'], ['.join(STAGES)}]")
    return found


def model_folder(recipe: Recipe) -> str:
    """[model] hf.

    Raises:
        UserError: it is missing.
    """
    if not (folder := recipe.said("model").get("hf")):
        raise UserError("[model] hf is missing: the Hugging Face folder of the model; say it, or --set model.hf=DIR")
    return str(folder)


def _generate(recipe: Recipe, machine: Machine, run: RunFolder) -> list[Step]:
    said = recipe.said("generate")
    options = ("--model", model_folder(recipe), "--output", str(run.pairs), *words_of(said))
    journals = generate.journal_folder(run.pairs)
    # A server, or a Ray cluster, is shared by one process that asks it.
    alone = machine.generate_jobs == 1 or said.get("engine") == "openai" or said.get("runner") == "ray"
    about = "long documents -> preference pairs"
    done = Done(run.pairs)
    if alone:
        return [
            Step(name="generate", section="generate", about=about, options=(options,), done=done, grows=journals,
                 kind="one" if said.get("engine") == "openai" or said.get("runner") == "ray" else "gpus")
        ]  # fmt: skip
    merge = (*options, "--merge", str(machine.generate_jobs))
    return [
        Step(name="generate", section="generate", about=about, options=(options,), kind="shards",
             jobs=machine.generate_jobs, done=done, is_last=False, grows=journals),
        Step(name="generate-merge", section="generate", about="the pairs of all shards", options=(merge,), done=done),
    ]  # fmt: skip


def _dataset(recipe: Recipe, machine: Machine, run: RunFolder) -> list[Step]:
    section = "build" if "build" in recipe.sections else "import-data"
    said = recipe.said(section)
    needs: tuple[Path, ...] = ()
    if section == "build":
        if "input" not in said:
            said["input"], needs = [str(run.pairs)], (run.pairs,)
        elif "generate" in recipe.sections:
            raise UserError(
                f"{recipe.where('build', 'input')} and [generate] both give pairs; take one back: --set generate=false"
            )
    given = ("--tokenizer", model_folder(recipe), "--output", str(run.data), "--overwrite")
    return [
        Step(name=section, section=section, about="pairs -> indexed dataset", options=((*given, *words_of(said)),),
             done=Done(run.manifest), needs=needs)
    ]  # fmt: skip


def _import(recipe: Recipe, machine: Machine, run: RunFolder) -> list[Step]:
    options = ("--hf", model_folder(recipe), "--output", str(run.imported), *words_of(recipe.said("import-hf")))
    about = "Hugging Face -> Megatron checkpoint"
    return [Step(name="import-hf", section="import-hf", about=about, options=(options,), done=Done(run.imported))]


def _reference(recipe: Recipe, run: RunFolder) -> Path:
    return Path(str(recipe.said("train").get("longpo-reference-checkpoint") or run.imported))


def _scored_contexts(recipe: Recipe) -> list[Context]:
    """What the objective reads of the reference; none that the recipe has another source for."""
    train = recipe.said("train")
    objective = OBJECTIVES.get(str(train.get("longpo-objective", "longpo")))  # training refuses an unknown one
    if objective is None or train.get("longpo-online-reference") or train.get("longpo-reference"):
        return []
    return [kind.context for kind in objective.reference]


def _score(recipe: Recipe, machine: Machine, run: RunFolder) -> list[Step]:
    found = []
    for context in _scored_contexts(recipe):
        checkpoint = _reference(recipe, run)
        given = ("--data", str(run.data), "--checkpoint", str(checkpoint), "--context", context)
        name = "score-reference" if context == "short" else "score-reference-long"
        cache = default_path(run.data, context)
        found.append(
            Step(name=name, section="score-reference", about=f"the reference's log-probs on the {context} contexts",
                 options=((*given, *words_of(recipe.said("score-reference"))),), kind="ranks",
                 done=Done(cache), needs=(run.manifest, checkpoint), grows=journal.journal_folder(cache))
        )  # fmt: skip
    return found


def _train(recipe: Recipe, machine: Machine, run: RunFolder) -> list[Step]:
    given = ("--load", str(run.imported), "--save", str(run.checkpoints), "--longpo-data", str(run.data))
    options = (*given, "--exit-signal-handler", *words_of(recipe.said("train")))
    caches = (default_path(run.data, context) for context in _scored_contexts(recipe))
    return [
        Step(name="train", section="train", about="training", options=(options,), kind="ranks",
             grows=run.checkpoints / TRACKER_FILE, done=Done(run.checkpoints, is_training=True),
             needs=(run.manifest, run.imported, *caches))
    ]  # fmt: skip


def _export(recipe: Recipe, machine: Machine, run: RunFolder) -> list[Step]:
    given = ("--checkpoint", str(run.checkpoints), "--output", str(run.exported))
    return [
        Step(name="export-hf", section="export-hf", about="Megatron checkpoint -> Hugging Face",
             options=((*given, *words_of(recipe.said("export-hf"))),), done=Done(run.exported),
             needs=(run.checkpoints,))
    ]  # fmt: skip


def _evaluate(recipe: Recipe, machine: Machine, run: RunFolder) -> list[Step]:
    """Prompts, cells, tables. ``models`` are by default the model that was trained and what became of it."""
    make_ruler, cells, report = (options_of(program.parser()) for program in PROGRAMS["evaluate"])
    said = recipe.said("evaluate")
    needs: tuple[Path, ...] = ()
    if "models" not in said:
        said["models"], needs = [f"base={model_folder(recipe)}", f"trained={run.exported}"], (run.exported,)
    models = said["models"]
    if not isinstance(models, list):
        raise UserError(f"{recipe.where('evaluate', 'models')} is {models!r}; needs a list of NAME=DIR")
    prompts = tuple(("--tokenizer", str(model).partition("=")[2], *words_of(said, make_ruler)) for model in models)
    done, output = Done(run.evaluation / "report.json"), str(run.evaluation)
    asks_server = said.get("engine") == "openai"
    tables = words_of({key: value for key, value in said.items() if key != "models"}, report)
    found = [
        Step(name="evaluate-run", section="evaluate", program=1, about="every model in every task", done=done,
             options=(("--output", output, *words_of(said, cells)),), kind="one" if asks_server else "gpus",
             jobs=1 if asks_server else machine.evaluate_jobs, is_last=False, needs=needs,
             grows=run.evaluation),
        Step(name="evaluate-report", section="evaluate", program=2, about="the tables", options=((output, *tables),),
             done=done, needs=needs),
    ]  # fmt: skip
    if (suite := str(said.get("suite", "all"))) == "all" or "ruler" in suite:
        prompt = Step(name="evaluate-make-ruler", section="evaluate", about="RULER's prompts", options=prompts,
                      done=done, is_last=False, needs=needs)  # fmt: skip
        found.insert(0, prompt)
    return found
