import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.generate.journal import Journal, Shard
from megatron_longpo.generate.merge import merge
from megatron_longpo.generate.report.summary import drops, duration, num_whole_contexts, waterfall
from megatron_longpo.generate.run import Work, run_shard
from tests.unit.generate.model_by_rule import Counts, ModelByRule, make_context
from tests.unit.generate.run_by_rule import HEADER, SETTINGS, contexts
from tests.unit.generate.test_run import same_questions

COUNTS = {
    "asked": 20,
    "dropped": {"cut off": 5, "control tokens": 4, "duplicate": 2},
    "usable_turns": 14,
    "turns": 9,
}
"""20 chunks: 5 cut off, 1 with control tokens, 14 usable; of these 2 duplicates and 3 alone in their pair. And three
contexts with control tokens, about which nothing was asked."""


def test_the_steps_of_a_waterfall() -> None:
    steps = [(step.name, step.count, step.left) for step in waterfall(COUNTS) if step.count]
    assert steps == [
        ("chunks asked about", 20, 20),
        ("control tokens", 1, 19),
        ("cut off", 5, 14),
        ("usable turns", 14, 14),
        ("duplicate of an earlier turn", 2, 12),
        ("too few turns for a pair", 3, 9),
        ("turns in pairs", 9, 9),
    ]
    assert num_whole_contexts(COUNTS) == 3
    assert drops(COUNTS) == [
        ("cut off", 5),
        ("too few turns for a pair", 3),
        ("duplicate of an earlier turn", 2),
        ("control tokens", 1),
    ]


def counts_of_a_run(folder: Path, model: ModelByRule, control_token: re.Pattern[str] | None) -> dict[str, Any]:
    with Journal(folder, Shard(1, 1), HEADER) as journal:
        work = Work(settings=SETTINGS, control_token=control_token, observer=Counts())
        asyncio.run(run_shard(contexts(Shard(1, 1)), model, journal, work))
        journal.end({})
    return merge(folder, 1, HEADER, folder / "pairs.jsonl", min_turns=SETTINGS.min_turns)["counts"]


def test_the_waterfall_of_a_run_ends_at_its_turns(tmp_path: Path) -> None:
    two_books = "|".join(re.escape(make_context(number).text[:60]) for number in (3, 7))
    counts = counts_of_a_run(tmp_path, ModelByRule(same_questions), re.compile(two_books))
    assert num_whole_contexts(counts) == 2
    assert waterfall(counts)[-1].left == counts["turns"] > 0
    assert all(step.count >= 0 for step in waterfall(counts))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (11_250, "3 h 08 min"),
        (86_399, "1 d 00 h"),
        (187_200, "2 d 04 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
