"""lm-eval's own definitions of the short tasks, pointed at the mirror; nothing is asked of a network.

lm-eval 0.4.13: a task of another folder that includes its YAML file may say where the data lies, and a group passes
that on to its tasks (lm_eval/tasks/_factory.py). Its index of all 14,000 tasks, which takes seconds, is not needed.
"""

import importlib
import json
import logging
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any

from megatron_longpo.errors import UserError, one_line

PURPOSE = "short tasks are run by lm-eval, which cannot be imported"

Request = tuple[tuple[str, str], list[int], list[int]]
"""lm-eval's: ((prompt, option), token ids of the prompt, token ids of the option)."""
Answer = tuple[float, bool]
"""lm-eval's: log-probability of the option after the prompt, in nats, and whether greedy decoding would write it."""

FEWSHOT_SEED = 1234
"""lm-eval's default: decides which worked examples a question gets, but for MMLU's, which are the first five."""


@dataclass(frozen=True, slots=True)
class ShortModel:
    """A model of lm-eval, loaded once for all tasks; `short/engines.py` makes it."""

    lm: Any
    """An lm_eval.api.model.TemplateLM."""
    most_tokens: int
    """Of a prompt and its option; lm-eval cuts the beginning off what is longer."""
    num_at_once: int
    """Requests that are handed over together: as many as a kill may cost."""


@dataclass(frozen=True, slots=True)
class Definition:
    """How a task is run."""

    file: str
    """In lm_eval/tasks."""
    num_fewshot: int
    """Worked examples before the question."""
    metric: str
    """``acc``: the likeliest option must be right; ``acc_norm``: the likeliest per character."""


DEFINITIONS = {
    "mmlu": Definition("mmlu/default/_mmlu.yaml", 5, "acc"),
    "arc_challenge": Definition("arc/arc_challenge.yaml", 25, "acc_norm"),
    "hellaswag": Definition("hellaswag/hellaswag.yaml", 10, "acc_norm"),
    "winogrande": Definition("winogrande/default.yaml", 5, "acc"),
}
"""Task -> its definition: few-shot examples and metrics of the Open LLM leaderboard, version 1."""


def load_tasks(task: str, data: Path, scratch: Path) -> Any:
    """Load a task as lm-eval's ``TaskManager.load`` returns it; ``mmlu`` holds 57.

    Args:
        data: the set's folder, as `Mirror.path_of` returns it.
        scratch: an empty folder for definitions and unpacked data, needed as long as the task is.

    Raises:
        UserError: the data cannot be read.
    """
    manager: Any = importlib.import_module("lm_eval.tasks")
    definition = DEFINITIONS[task]
    path = Path(manager.__file__).parent / definition.file
    fields = {
        "include": str(path),
        "group" if task == "mmlu" else "task": task,
        "dataset_path": str(data.resolve()),
        "dataset_kwargs": {"cache_dir": str(scratch / "data")},
        "num_fewshot": definition.num_fewshot,
    }
    folder = scratch / "tasks"
    folder.mkdir()
    (folder / f"{task}.yaml").write_text(json.dumps(fields), encoding="utf-8")  # JSON is YAML
    subjects = [str(path.parent)] if task == "mmlu" else []
    try:
        loaded = manager.TaskManager(include_defaults=False, include_path=[*subjects, str(folder)]).load([task])
    except Exception as error:  # whatever a broken or foreign file makes datasets raise is the data's fault
        raise UserError(
            f"{data}: lm-eval cannot read the set {task} ({one_line(error)}); remove the folder and bring it again "
            "with megatron-longpo evaluate prepare"
        ) from error
    for one in loaded["tasks"].values():
        one.set_fewshot_seed(FEWSHOT_SEED)
        if len(one.sampler.df) < definition.num_fewshot:
            raise UserError(
                f"{data}: {one.task_name} has {len(one.sampler.df)} worked examples to choose from, "
                f"{definition.num_fewshot} are needed; bring the whole set with megatron-longpo evaluate prepare"
            )
    return loaded


@contextmanager
def quiet_lm_eval() -> Generator[None]:
    """Silence lm-eval's and datasets' logs and all bars of tqdm, which lm-eval has no switch for.

    tqdm's own switch, TQDM_DISABLE, is read as it is imported, which is too early for us.
    """
    tqdm: Any = importlib.import_module("tqdm").tqdm
    datasets: Any = importlib.import_module("datasets")
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels, plain, had_bars = [one.level for one in loggers], tqdm.__init__, datasets.is_progress_bar_enabled()
    try:
        for one in loggers:
            one.setLevel(logging.CRITICAL)
        tqdm.__init__ = partialmethod(plain, disable=True)
        datasets.disable_progress_bars()
        yield
    finally:
        if had_bars:
            datasets.enable_progress_bars()
        tqdm.__init__ = plain
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
