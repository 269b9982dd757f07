"""Every cell as lm-eval would have written it, so that its users' tools go on working.

``OUTPUT/lm_eval/<model>/results_<task>_<key>.json`` and ``samples_<task>_<key>.jsonl``; the samples without documents
and prompts, which lm-eval holds twice, several GB at 128K.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_longpo.evaluate.cells import Cell
from megatron_longpo.files import atomic_file

NO_FILTER = "none"
"""lm-eval's name for answers taken as they are."""


def write_lm_eval_files(
    output: Path,
    key: str,
    cell: Cell,
    results: dict[str, Any] | None = None,
    samples: dict[str, list[dict[str, Any]]] | None = None,
) -> None:
    """Write the two files of a cell (of MMLU: 58).

    Args:
        key: of the cell.
        results: lm-eval's own, where it ran the task; None: made of the cell.
        samples: lm-eval's own by task.
    """
    folder = output / "lm_eval" / cell.model
    name = _task(cell)
    whole = results or _results(cell, name)
    whole |= {"model_name": cell.model, "model_source": cell.engine, "limit": cell.limit}
    _write(folder / f"results_{name}_{key[:8]}.json", [json.dumps(whole, indent=1, ensure_ascii=False)])
    for task, rows in (samples or {name: _samples(cell)}).items():
        lines = (json.dumps(row, ensure_ascii=False, default=str) for row in rows)
        _write(folder / f"samples_{task}_{key[:8]}.jsonl", lines)


def _task(cell: Cell) -> str:
    """lm-eval calls the needles niah_..., the others ruler_..."""
    return cell.task.removeprefix("ruler_") if "niah" in cell.task else cell.task


def _metric(cell: Cell) -> str:
    """RULER's are named by their length."""
    return "score" if cell.length is None else str(cell.length)


def _results(cell: Cell, name: str) -> dict[str, Any]:
    metric, error = _metric(cell), cell.standard_error
    return {
        "results": {
            name: {
                "alias": name,
                f"{metric},{NO_FILTER}": cell.score / 100,
                f"{metric}_stderr,{NO_FILTER}": "N/A" if error is None else error / 100,
            }
        },
        "group_subtasks": {name: []},
        "configs": {name: {"task": name, "output_type": "generate_until", "metadata": dict(cell.settings)}},
        "versions": {name: 1},
        "n-shot": {name: 0},
        "higher_is_better": {name: {metric: True}},
        "n-samples": {name: {"original": cell.num, "effective": cell.num}},
    }


def _samples(cell: Cell) -> Iterable[dict[str, Any]]:
    metric = _metric(cell)
    for number, one in enumerate(cell.samples):
        yield {
            "doc_id": number,
            "doc": {"id": one.id},
            "target": "",
            "arguments": {},
            "resps": [[one.answer]],
            "filtered_resps": [one.answer],
            "filter": NO_FILTER,
            "metrics": [metric],
            "doc_hash": one.prompt_sha256,
            "prompt_hash": one.prompt_sha256,
            "target_hash": "",
            metric: one.score,
        }


def _write(path: Path, lines: Iterable[str]) -> None:
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", errors="replace") as file:
        file.writelines(f"{line}\n" for line in lines)
