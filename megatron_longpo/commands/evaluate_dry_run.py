"""What ``evaluate run --dry-run`` prints: what is to be made, and how long it takes at the speed of a few prompts."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice

from rich.console import Console
from rich.table import Table

from megatron_longpo.evaluate.long.prompts import cut_middle
from megatron_longpo.evaluate.mirror import Mirror
from megatron_longpo.evaluate.run.engines import open_long
from megatron_longpo.evaluate.run.planning import prompts_of
from megatron_longpo.evaluate.run.wanted import Wanted
from megatron_longpo.generate.engine import Completion, Engine
from megatron_longpo.generate.engines.opening import EngineChoice
from megatron_longpo.generate.report.summary import duration


@dataclass(slots=True)
class _Row:
    """Cells of a model that take alike."""

    cells: list[Wanted]
    seconds: float | None = None

    @property
    def num_prompts(self) -> int:
        return sum(wanted.num_prompts for wanted in self.cells)

    @property
    def num_tokens(self) -> int:
        return sum(wanted.num_tokens for wanted in self.cells)


def dry_run(missing: Sequence[Wanted], choice: EngineChoice, mirror: Mirror) -> None:
    """Print a table; the engine is opened for every model in turn, and answers some prompts of every length.

    Short tasks are listed and not timed: how many requests they have is only known once lm-eval has read them.

    Raises:
        UserError: the engine cannot be opened or cannot answer.
    """
    rows: dict[tuple[str, str, int], _Row] = defaultdict(lambda: _Row([]))
    for wanted in missing:
        rows[wanted.model.name, wanted.suite, wanted.length or 0].cells.append(wanted)
    for name in dict.fromkeys(model for model, _, _ in rows):
        long = [row for (model, suite, _), row in rows.items() if model == name and suite != "short"]
        if long:
            asyncio.run(_time(long, choice, mirror))
    console = Console(highlight=False, soft_wrap=True)
    table = Table("model", "suite", "length")
    for title in ("cells", "prompts", "tokens", "about"):
        table.add_column(title, justify="right")
    for (model, suite, length), row in rows.items():
        known = [f"{row.num_prompts:,}", f"{row.num_tokens:,}"] if row.num_tokens else ["", ""]
        about = "?" if row.seconds is None else duration(row.seconds)
        table.add_row(model, suite, f"{length:,}" if length else "", f"{len(row.cells)}", *known, about)
    console.print(table)
    total = sum(row.seconds or 0.0 for row in rows.values())
    console.print(f"long prompts take about {duration(total)} with this engine; short tasks are not counted")


async def _time(rows: Sequence[_Row], choice: EngineChoice, mirror: Mirror) -> None:
    """Set every row's seconds from as many prompts of its first cell as keep the engine busy."""
    wanted = rows[0].cells[0]
    continues = any(row.cells[0].suite == "ruler" for row in rows)
    async with aclosing(await open_long(choice, wanted.model, continues)) as engine:
        for row in rows:
            row.seconds = await _seconds(row, engine, mirror)


async def _seconds(row: _Row, engine: Engine, mirror: Mirror) -> float:
    first = row.cells[0]
    sample = [
        cut_middle(first.model.tokenizer, prompt, first.max_length)
        for prompt in islice(prompts_of(first, mirror), engine.num_concurrent)
    ]
    started = time.monotonic()
    answers: list[Completion] = await asyncio.gather(*(engine.complete(prompt.request()) for prompt in sample))
    seconds = time.monotonic() - started
    return seconds * row.num_tokens / max(sum(one.num_prompt_tokens + one.num_new_tokens for one in answers), 1)
