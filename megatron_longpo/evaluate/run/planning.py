"""What a run is to make, known before any model is loaded: the cells, and what cannot be made and why."""

import importlib.metadata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path

from megatron_longpo.errors import UserError
from megatron_longpo.evaluate.cells import Setting
from megatron_longpo.evaluate.long.infinitebench import DEFAULT_LIMIT, NOVEL_TASKS, novel_prompts
from megatron_longpo.evaluate.long.prompts import Prompt
from megatron_longpo.evaluate.long.ruler import RULER_TASKS
from megatron_longpo.evaluate.long.ruler_files import known_settings, ruler_prompts
from megatron_longpo.evaluate.mirror import Mirror
from megatron_longpo.evaluate.run.engines import context_of, dtype_of
from megatron_longpo.evaluate.run.models import Model
from megatron_longpo.evaluate.run.wanted import Wanted
from megatron_longpo.evaluate.short.run import short_settings
from megatron_longpo.evaluate.suites import SUITES
from megatron_longpo.generate.engines.opening import EngineChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the user asks for."""

    models: Sequence[Model]
    suites: Sequence[str]
    tasks: Sequence[str]
    """Of all suites; of them those are left out that are not here."""
    lengths: Sequence[int]
    """Of RULER; tokens."""
    limit: int | None
    mirror: Mirror
    choice: EngineChoice


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be made of it."""

    cells: list[Wanted]
    """By model; of each the short tasks, then RULER from short prompts to long ones, then the novels."""
    faults: list[str]
    """What cannot be made, a line each."""


def plan(asked: Asked) -> Plan:
    """List all cells.

    Raises:
        UserError: nothing of what is asked for can be made.
    """
    cells: list[Wanted] = []
    faults: dict[str, None] = {}
    makers = {"short": _short_cell, "ruler": _ruler_cell, "infinitebench": _novel_cell}
    wanted = product(asked.models, (suite for suite in makers if suite in asked.suites))
    for model, suite in wanted:
        tasks = [task for task in SUITES[suite].tasks if task in asked.tasks]
        for length, task in product(sorted(asked.lengths) if suite == "ruler" else [0], tasks):
            try:
                cells.append(makers[suite](asked, model, task, length))
            except UserError as error:
                faults[str(error)] = None
    if not cells:
        raise UserError("; ".join([*faults][:3]) or "no task is left; see --suite and --tasks")
    return Plan(cells, list(faults))


def prompts_of(wanted: Wanted, mirror: Mirror) -> Iterator[Prompt]:
    """The prompts of a long-context cell, in order.

    Raises:
        UserError: they are not there, or damaged.
    """
    model = wanted.model
    if wanted.length is None:
        prompts = novel_prompts(mirror, wanted.task)
    else:
        prompts = iter(ruler_prompts(mirror.folder, model.fingerprint, wanted.task, wanted.length))
    return islice(prompts, wanted.limit)


def _short_cell(asked: Asked, model: Model, task: str, _: int) -> Wanted:
    asked.mirror.path_of(task)
    settings = short_settings(task, asked.mirror)
    return _wanted(asked, model, "short", task, None, settings, num_prompts=0, num_tokens=0)


def _ruler_cell(asked: Asked, model: Model, task: str, length: int) -> Wanted:
    context = context_of(asked.choice, model)
    if length > context:
        raise UserError(
            f"{model.name}: RULER at {length:,} tokens is more than its {context:,} positions (config.json or "
            "--context-limit)"
        )
    for name in RULER_TASKS[task].sets:
        asked.mirror.path_of(name)
    made = known_settings(asked.mirror.folder, model.fingerprint, task, length, model.folder)
    num = min(made.samples, asked.limit or made.samples)
    settings: dict[str, Setting] = {
        "samples": made.samples,
        "seed": made.seed,
        "ruler": f"lm-eval {made.lm_eval}",
        "max_new_tokens": RULER_TASKS[task].max_new_tokens,
    }
    return _wanted(asked, model, "ruler", task, length, settings, num_prompts=num, num_tokens=num * length)


def _novel_cell(asked: Asked, model: Model, task: str, _: int) -> Wanted:
    asked.mirror.path_of("infinitebench")
    cut_to = min(context_of(asked.choice, model), asked.choice.context_limit or DEFAULT_LIMIT)
    num = min(NOVEL_TASKS[task].num, asked.limit or NOVEL_TASKS[task].num)
    settings: dict[str, Setting] = {
        "cut_to": cut_to,
        "data_sha256": asked.mirror.sha256_of("infinitebench"),
        "max_new_tokens": NOVEL_TASKS[task].max_new_tokens,
    }
    return _wanted(asked, model, "infinitebench", task, None, settings, num_prompts=num, num_tokens=num * cut_to)


def _wanted(
    asked: Asked,
    model: Model,
    suite: str,
    task: str,
    length: int | None,
    settings: dict[str, Setting],
    *,
    num_prompts: int,
    num_tokens: int,
) -> Wanted:
    common: dict[str, Setting] = {
        "dtype": dtype_of(asked.choice, model),
        "tokenizer": model.fingerprint[:16],
        "transformers": importlib.metadata.version("transformers"),
        "not_applied": model.defaults or None,
    }
    if asked.choice.served_model is not None:
        common["server_model"] = Path(asked.choice.served_model).name
    return Wanted(
        model=model,
        engine=asked.choice.engine,
        suite=suite,
        task=task,
        length=length,
        limit=asked.limit,
        settings=common | settings,
        num_prompts=num_prompts,
        num_tokens=num_tokens,
    )
