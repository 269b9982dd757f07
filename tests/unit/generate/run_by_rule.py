"""A generate run with `ModelByRule`, as a program that can be killed: FOLDER [SECONDS of delay a request]."""

import asyncio
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_longpo.generate.corpus.contexts import LongContext
from megatron_longpo.generate.journal import Journal, Position, Shard
from megatron_longpo.generate.merge import merge
from megatron_longpo.generate.run import Work, run_shard
from megatron_longpo.generate.settings import Settings
from tests.unit.generate.model_by_rule import Counts, ModelByRule, make_context

NUM_CONTEXTS = 12
SETTINGS = Settings(num_turns=3, min_turns=2, max_repetition=0.1, no_filter=("language",))
HEADER: dict[str, Any] = {"settings": asdict(SETTINGS), "engine": dict(ModelByRule.identity)}


def contexts(shard: Shard) -> Iterator[tuple[Position, LongContext]]:
    for number in range(NUM_CONTEXTS):
        if shard.holds(number):
            yield Position(number, 0), make_context(number)


async def run(folder: Path, shard: Shard, model: ModelByRule, observer: Counts) -> None:
    with Journal(folder / "journal", shard, HEADER) as journal:
        work = Work(settings=SETTINGS, control_token=None, observer=observer)
        await run_shard(contexts(shard), model, journal, work)
        journal.end({"documents": NUM_CONTEXTS})


def join(folder: Path, num_shards: int = 1) -> dict[str, Any]:
    return merge(folder / "journal", num_shards, HEADER, folder / "pairs.jsonl", min_turns=SETTINGS.min_turns)


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), Shard(1, 1), ModelByRule(delay_s=float(sys.argv[2])), Counts()))
    join(Path(sys.argv[1]))
