"""Cells without a model: every sample's score is drawn, or given."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from megatron_longpo.evaluate.cells import Cell, Sample, write_cell
from megatron_longpo.evaluate.suites import SUITES


def prompt_hash(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def drawn(rate: float, num: int, *seed: object) -> list[float]:
    """0 or 1 each, 1 at this rate."""
    rng = random.Random(repr(seed))
    return [float(rng.random() < rate) for _ in range(num)]


def cell(
    scores: Sequence[float],
    task: str = "ruler_vt",
    length: int | None = 4096,
    model: str = "base",
    order: int = 0,
    tokenizer: str = "t",
    answer: str = "no",
    ids: Sequence[str] | None = None,
    **more: Any,
) -> Cell:
    suite = next(name for name, one in SUITES.items() if task in one.tasks)
    length = length if suite == "ruler" else None
    ids = ids or [str(number) for number in range(len(scores))]
    values: dict[str, Any] = {
        "model": model,
        "order": order,
        "weights": prompt_hash(model) * 4,
        "engine": "hf",
        "suite": suite,
        "task": task,
        "length": length,
        "limit": None,
        "settings": {"dtype": "bfloat16", "shots": 5},
        "score": 100 * mean(scores),
        "standard_error": 100 * stdev(scores) / len(scores) ** 0.5 if len(scores) > 1 else None,
        "num": len(scores),
        "num_truncated": 0,
        "real_length": None if suite == "short" else float(length or 100_000) - 10,
        "seconds": 12.5,
        "prompt_tokens": 1000,
        "new_tokens": 50,
        "samples": tuple(
            Sample(id=one, prompt_sha256=prompt_hash(task, length, one, tokenizer), answer=answer, score=score)
            for one, score in zip(ids, scores, strict=True)
        ),
    }
    return Cell(**{**values, **more})


def write_cells(output: Path, cells: Sequence[Cell]) -> list[Path]:
    """Each under a name of its own, in an order that says nothing."""
    paths: list[Path] = []
    for one in cells:
        name = prompt_hash(
            one.model, one.engine, one.limit, one.task, one.length, one.weights, sorted(one.settings.items())
        )
        paths.append(output / "cells" / f"{name}{name[:8]}.json")
        write_cell(paths[-1], one)
    return paths


def written(output: Path, *cells: Cell) -> Path:
    write_cells(output, cells)
    return output
