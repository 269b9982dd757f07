"""The programs of the stages: their own parsers say which keys a section may have and what the values may be."""

import argparse
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NoReturn

from megatron_longpo import platform
from megatron_longpo.errors import UserError
from megatron_longpo.launch.recipe import Recipe, Section, Value, near

MODEL_KEYS = ("hf",)
RUN_KEYS = ("folder",)
FOLDER = "it follows from [run] folder"
MODEL = "it is [model] hf"
NO_OPTION = "it is for the command line"


@dataclass(frozen=True, slots=True)
class Program:
    """What runs for a stage, and who gives its options."""

    words: tuple[str, ...]
    """How its command begins; behind ``torchrun`` where it begins with ``-m``."""
    parser: Callable[[], argparse.ArgumentParser]
    given: Mapping[str, str]
    """Options that a recipe does not give -> why."""


@cache
def _verb(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"megatron-longpo {name.replace('_', ' ', 1)}", allow_abbrev=False)
    importlib.import_module(f"megatron_longpo.commands.{name.replace('-', '_')}").add_arguments(parser)
    return parser


@cache
def _training() -> argparse.ArgumentParser:
    platform.activate(announce=False)  # before Megatron is imported
    from megatron_longpo.arguments.parse import training_parser

    return training_parser()


def _megatron_longpo(name: str, given: Mapping[str, str]) -> Program:
    words = ("evaluate", name.removeprefix("evaluate_")) if name.startswith("evaluate_") else (name,)
    return Program(("megatron-longpo", *words), lambda: _verb(name), {"help": NO_OPTION, **given})


_DATASET = {"tokenizer": MODEL, "output": FOLDER, "overwrite": "an unfinished dataset is always replaced"}
_EVALUATE = {"output": FOLDER, "tokenizer": "it is that of models", "dry-run": NO_OPTION}
PROGRAMS: dict[str, tuple[Program, ...]] = {
    "generate": (
        _megatron_longpo(
            "generate",
            {
                "model": MODEL,
                "output": FOLDER,
                "shard": "[machine] generate-jobs says how many",
                "merge": "[machine] generate-jobs says how many",
                "overwrite": "remove the old pairs yourself",
                "dry-run": NO_OPTION,
            },
        ),
    ),
    "build": (_megatron_longpo("build", _DATASET),),
    "import-data": (_megatron_longpo("import-data", _DATASET),),
    "import-hf": (_megatron_longpo("import-hf", {"hf": MODEL, "output": FOLDER}),),
    "score-reference": (
        Program(
            ("-m", "megatron_longpo.reference.score"),
            lambda: _verb("score-reference"),
            {
                "data": FOLDER,
                "checkpoint": "it is longpo-reference-checkpoint of [train], or what import-hf made",
                "context": "it follows from longpo-objective of [train]",
                "output": FOLDER,
                "overwrite": "remove the old log-probs yourself",
                "help": NO_OPTION,
            },
        ),
    ),
    "train": (
        Program(
            ("-m", "megatron_longpo.train"),
            _training,
            {
                "load": FOLDER,
                "save": FOLDER,
                "longpo-data": FOLDER,
                "exit-signal-handler": "it is always on",
                "exit-signal": "it is SIGTERM",
                "train-samples": "the stage is done after train-iters steps, by default one epoch",
                "skip-train": "the stage is done when a last step was taken",
                "help": NO_OPTION,
            },
        ),
    ),
    "export-hf": (_megatron_longpo("export-hf", {"checkpoint": FOLDER, "output": FOLDER}),),
    "evaluate": (
        _megatron_longpo("evaluate_make-ruler", _EVALUATE),
        _megatron_longpo("evaluate_run", _EVALUATE),
        _megatron_longpo("evaluate_report", {}),
    ),
}
"""Section -> its programs. A key of [evaluate] goes to each of its three that has such an option."""


PLAN = _megatron_longpo("plan", {})
"""Plans the training of a recipe; no stage."""


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """The long options of a parser, without their hyphens."""
    # argparse has no other way to ask.
    return {name[2:] for name in parser._option_string_actions if name.startswith("--")}


def refuse(message: str) -> NoReturn:
    """A parser's ``error``: in one line, for the caller to say whose it is."""
    raise UserError(message)


def parse(program: Program, words: Sequence[str]) -> argparse.Namespace:
    """The values that the program's own parser makes of its options.

    Raises:
        UserError: it refuses them.
    """
    parser = program.parser()
    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_args(list(words))


def check_keys(recipe: Recipe) -> None:
    """Hold every key of a recipe to be an option of its section's programs that launch does not give itself.

    Raises:
        UserError: naming the place and what was perhaps meant.
    """
    for section, known in (("model", MODEL_KEYS), ("run", RUN_KEYS)):
        for key, value in recipe.sections.get(section, {}).items():
            if key not in known:
                raise UserError(f"{recipe.where(section, key)}: no such key{near(key, known)}")
            if not isinstance(value, str) or not value:
                raise UserError(f"{recipe.where(section, key)} is {value!r}; needs a folder")
    for section, programs in PROGRAMS.items():
        if section not in recipe.sections:
            continue
        options = [options_of(program.parser()) for program in programs]
        for key in recipe.sections[section]:
            if reasons := [program.given[key] for program in programs if key in program.given]:
                raise UserError(f"{recipe.where(section, key)} is not for a recipe: {reasons[0]}")
            if not any(key in known for known in options):
                raise UserError(f"{recipe.where(section, key)}: no such option{near(key, set().union(*options))}")


def words_of(section: Section, options: set[str] | None = None) -> list[str]:
    """A section as options of a command line, those of ``options`` alone if they are given."""
    words: list[str] = []
    for key, value in section.items():
        if options is not None and key not in options:
            continue
        if value is True:
            words.append(f"--{key}")
        elif isinstance(value, list):
            words += [f"--{key}", *map(word, value)]
        else:
            text = word(value)
            words += [f"--{key}={text}"] if text.startswith("-") else [f"--{key}", text]
    return words


def word(value: Value) -> str:
    """A value as a word; 5e-07 as 5e-7."""
    return repr(value).replace("e-0", "e-") if isinstance(value, float) else str(value)
