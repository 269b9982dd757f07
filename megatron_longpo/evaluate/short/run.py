"""The short-context tasks, run by lm-eval on the mirror's data: what a model scored in one of them.

lm-eval has the last word on prompts, few-shot examples, scores and standard errors; ours is only where the data lies,
that answers outlive a kill, and that there is one line of progress. The prompts have no chat template, as in the Open
LLM leaderboard (version 1), and begin with the token that the tokenizer begins every text with, if any.
"""

import hashlib
import importlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from megatron_longpo.errors import import_optional
from megatron_longpo.evaluate.cells import Sample, Setting
from megatron_longpo.evaluate.mirror import Mirror
from megatron_longpo.evaluate.short.tasks import (
    DEFINITIONS,
    FEWSHOT_SEED,
    PURPOSE,
    ShortModel,
    load_tasks,
    quiet_lm_eval,
)

_NOT_KEPT = ("doc", "arguments")
"""Of lm-eval's samples: what is in the mirror, and the prompts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortResult:
    """What a model scored in a task."""

    score: float
    """0 to 100; MMLU: over all questions, whatever their subject."""
    standard_error: float | None
    """As lm-eval computes it (MMLU: from the spread within the subjects), times 100; None if a single sample."""
    samples: tuple[Sample, ...]
    """In the task's order; the answer is the text of the option that was found likeliest."""
    num_truncated: int
    """Samples of which a request was longer than the model's context: lm-eval cuts its beginning."""
    prompt_tokens: int
    """Of each sample's longest request (worked examples, question and option), summed."""
    lm_eval_results: dict[str, Any]
    """lm-eval's own (``results``, ``configs``, ``versions``, ``n-shot``, ``n-samples``, ...), fit for JSON."""
    lm_eval_samples: dict[str, list[dict[str, Any]]]
    """lm-eval's own by its task (57 for MMLU), without documents and prompts."""


def short_settings(task: str, mirror: Mirror) -> dict[str, Setting]:
    """What decides a result of the task besides model and limit: for the cell.

    Raises:
        UserError: lm-eval is not installed, or the mirror has no such set.
    """
    digest = mirror.sha256_of(task)
    return {
        "chat_template": False,
        "data": mirror.sets[task].source,
        "data_sha256": digest,
        "fewshot_seed": FEWSHOT_SEED,
        "lm_eval": import_optional("lm_eval", PURPOSE, extra="evaluate").__version__,
        "log_softmax": "float32",
        "metric": DEFINITIONS[task].metric,
        "num_fewshot": DEFINITIONS[task].num_fewshot,
    }


def run_short(
    model: ShortModel,
    task: str,
    *,
    mirror: Mirror,
    limit: int | None,
    kept_answers: Path,
    on_progress: Callable[[int, int], None],
) -> ShortResult:
    """Run one task.

    Args:
        model: from `short/engines.py`; one for all tasks.
        task: one of `tasks.DEFINITIONS`.
        limit: only the first so many samples, of every subject for MMLU; None: all.
        kept_answers: a journal, of this model and task alone, of what the model answered: a run that was killed goes on
            with it. The caller removes it once the result is stored.
        on_progress: hears (requests that are answered, all requests); a sample has a request for each of its options.

    Raises:
        UserError: the set is not in the mirror or cannot be read; the model's context is too small; the device's memory
            does not hold one request; the server failed; another process runs the same.
    """
    data = mirror.path_of(task)
    import_optional("lm_eval", PURPOSE, extra="evaluate")
    from megatron_longpo.evaluate.short.lm import KeptAnswers

    evaluator: Any = importlib.import_module("lm_eval.evaluator")
    with quiet_lm_eval(), KeptAnswers(model, kept_answers, on_progress) as lm, _scratch(kept_answers) as scratch:
        loaded = load_tasks(task, data, scratch)
        results = evaluator.evaluate(lm, loaded, limit=limit)
        return _result(task, results, loaded["tasks"], lm.num_tokens, model.most_tokens)


@contextmanager
def _scratch(kept_answers: Path) -> Generator[Path]:
    """A folder on this machine for unpacked data, always the same for a journal: what a kill leaves does not add up."""
    name = hashlib.sha256(os.fsencode(kept_answers.resolve())).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"megatron-longpo-short-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _result(
    task: str, results: dict[str, Any], tasks: Mapping[str, Any], num_tokens: list[int], most_tokens: int
) -> ShortResult:
    metric = DEFINITIONS[task].metric
    all_rows: dict[str, list[dict[str, Any]]] = results.pop("samples")
    rows = [(name, row) for name in tasks for row in all_rows[name]]
    requests: Iterator[int] = iter(num_tokens)
    longest = [max(islice(requests, len(row["arguments"]))) for _, row in rows]
    standard_error = results["results"][task][f"{metric}_stderr,none"]
    return ShortResult(
        score=100 * float(results["results"][task][f"{metric},none"]),
        standard_error=None if standard_error == "N/A" else 100 * float(standard_error),
        samples=tuple(_sample(name, row, tasks[name], metric) for name, row in rows),
        num_truncated=sum(length > most_tokens for length in longest),
        prompt_tokens=sum(longest),
        lm_eval_results=_for_json(results),
        lm_eval_samples={
            name: [{field: row[field] for field in row if field not in _NOT_KEPT} for row in all_rows[name]]
            for name in tasks
        },
    )


def _sample(name: str, row: Mapping[str, Any], task: Any, metric: str) -> Sample:
    """A row of lm-eval's as a sample; MMLU's ids name the subject."""
    subject = f"{name.removeprefix('mmlu_')}/" if name.startswith("mmlu_") else ""
    options: list[str] = task.doc_to_choice(row["doc"])
    logps = [logp for logp, _ in row["filtered_resps"]]
    if metric == "acc_norm":  # per character; lm-eval takes minus infinity for an option without any
        logps = [logp / len(text) if text else -math.inf for logp, text in zip(logps, options, strict=True)]
    return Sample(
        id=f"{subject}{row['doc_id']}",
        prompt_sha256=row["prompt_hash"][:16],
        answer=options[logps.index(max(logps))].strip(),
        score=float(row[metric]),
    )


def _for_json(results: dict[str, Any]) -> dict[str, Any]:
    """Take out what is not the same in every run: the temporary folder, and where functions lie in memory."""
    for config in results["configs"].values():
        config.pop("dataset_kwargs", None)
        config["metadata"].pop("config_source", None)
    return json.loads(json.dumps(results, default=lambda value: value.__qualname__ if callable(value) else str(value)))
