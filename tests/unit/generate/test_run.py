import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megatron_longpo.data.pair import read_pairs
from megatron_longpo.errors import UserError
from megatron_longpo.generate.engine import Completion, Request
from megatron_longpo.generate.journal import Shard
from megatron_longpo.generate.merge import manifest_path
from megatron_longpo.generate.prompts import normalised
from megatron_longpo.journal import journal_lines
from tests.unit.generate.model_by_rule import Counts, ModelByRule, is_asking
from tests.unit.generate.run_by_rule import HEADER, NUM_CONTEXTS, SETTINGS, join, run

ONE = Shard(1, 1)


def run_whole(folder: Path, model: ModelByRule | None = None) -> bytes:
    asyncio.run(run(folder, ONE, model or ModelByRule(), Counts()))
    join(folder)
    return (folder / "pairs.jsonl").read_bytes()


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads(manifest_path(folder / "pairs.jsonl").read_text())


def answer_keys(folder: Path) -> list[str]:
    lines = [line for path in (folder / "journal").iterdir() for _, _, line in journal_lines(path)]
    return [line["key"] for line in lines if line["kind"] == "answer"]


def test_a_run_from_documents_to_pairs(tmp_path: Path) -> None:
    model = ModelByRule()
    output = run_whole(tmp_path, model)
    pairs = [pair for _, pair in read_pairs([tmp_path / "pairs.jsonl"])]
    assert [pair.id for pair in pairs] == [f"book-{number}" for number in range(NUM_CONTEXTS)]
    assert manifest(tmp_path)["settings"] == json.loads(json.dumps(HEADER["settings"]))
    counts = manifest(tmp_path)["counts"]
    assert counts["contexts"] == counts["pairs"] == NUM_CONTEXTS
    assert counts["turns"] == sum(len(pair.turns) for pair in pairs) == output.count(b'"chosen"')
    assert counts["requests"] == len(model.requests) == len(answer_keys(tmp_path))
    assert counts["asked"] == counts["turns"] + sum(counts["dropped"].values())


def test_the_output_does_not_depend_on_the_order_of_answers(tmp_path: Path) -> None:
    at_once = run_whole(tmp_path / "a", ModelByRule(num_concurrent=16, delay_s=0.01))
    one_by_one = run_whole(tmp_path / "b", ModelByRule(num_concurrent=1))
    assert at_once == one_by_one


def test_as_many_requests_as_the_engine_wants_and_not_all_documents(tmp_path: Path) -> None:
    model = ModelByRule(num_concurrent=6, delay_s=0.005)
    run_whole(tmp_path, model)
    assert 6 <= model.most_in_flight <= 18  # three documents of three turns of two answers


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    first = run_whole(tmp_path)
    model, observer = ModelByRule(), Counts()
    asyncio.run(run(tmp_path, ONE, model, observer))
    assert (model.requests, observer.documents) == ([], 0)
    join(tmp_path)
    assert (tmp_path / "pairs.jsonl").read_bytes() == first


def test_shards_give_what_one_run_gives(tmp_path: Path) -> None:
    whole = run_whole(tmp_path / "whole")
    for number in (3, 1, 2):
        if number == 2:
            with pytest.raises(
                UserError, match=r"shard-2-of-3\.journal: no such journal; run generate with that --shard"
            ):
                join(tmp_path, 3)
        asyncio.run(run(tmp_path, Shard(number, 3), ModelByRule(), Counts()))
    join(tmp_path, 3)
    assert (tmp_path / "pairs.jsonl").read_bytes() == whole


class BreaksAfter(ModelByRule):
    """Its connection is lost for good after some answers."""

    def __init__(self, num_answers: int) -> None:
        super().__init__()
        self.left = num_answers

    async def complete(self, request: Request) -> Completion:
        if self.left == 0:
            raise UserError("the server is gone")
        self.left -= 1
        return await super().complete(request)


def test_an_engine_that_fails_ends_the_run_and_the_next_goes_on(tmp_path: Path) -> None:
    whole = run_whole(tmp_path / "whole")
    with pytest.raises(UserError, match="the server is gone"):
        run_whole(tmp_path, BreaksAfter(20))
    assert len(answer_keys(tmp_path)) == 20
    assert not (tmp_path / "pairs.jsonl").exists()
    with pytest.raises(UserError, match=r"this shard is not done; run generate --shard 1/1 again"):
        join(tmp_path)
    model = ModelByRule()
    assert run_whole(tmp_path, model) == whole
    assert len(model.requests) == len(answer_keys(tmp_path)) - 20


def same_questions(request: Request) -> str | None:
    listed = "1. Why is it so cold there?\n2. Who lives in it now?\n3. What is made of it?\n4. When was it built?"
    return listed if is_asking(request) else None


def test_equal_questions_with_other_answers_are_no_duplicates(tmp_path: Path) -> None:
    run_whole(tmp_path, ModelByRule(same_questions))
    assert "duplicate" not in manifest(tmp_path)["counts"]["dropped"]


def test_equal_questions_with_equal_answers_are_kept_once(tmp_path: Path) -> None:
    def special(request: Request) -> str | None:
        text = request.messages[0]["content"]
        if request.context == "short" and not is_asking(request):
            return (
                f"It is told in old books, and {'cold' if 'cold' in text else 'warm'} winters are named as the cause."
            )
        return same_questions(request)

    run_whole(tmp_path, ModelByRule(special))
    pairs = [pair for _, pair in read_pairs([tmp_path / "pairs.jsonl"])]
    turns = Counter((normalised(turn.instruction), turn.chosen) for pair in pairs for turn in pair.turns)
    assert set(turns.values()) == {1}
    counts = manifest(tmp_path)["counts"]
    assert counts["dropped"]["duplicate"] > 0
    assert 0 < counts["pairs"] < NUM_CONTEXTS
    for pair in pairs:
        assert len(pair.meta["evidence_chunks"]) == len(pair.turns) >= SETTINGS.min_turns


def test_no_pair_at_all_is_an_error_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"12 long contexts gave 0 usable turns of 60 .*malformed questions: 60"):
        run_whole(tmp_path, ModelByRule(lambda request: "No." if is_asking(request) else None))
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]


def kill_runs(folder: Path, num_kills: int, delay_s: float) -> None:
    """Kill runs at random moments: at their start, or up to half a second after they took up the journal."""
    draw = random.Random(1)
    command = [sys.executable, "-m", "tests.unit.generate.run_by_rule", str(folder), str(delay_s)]
    journal = folder / "journal" / ONE.file_name
    for _ in range(num_kills):
        size = journal.stat().st_size if journal.exists() else 0
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": "."})
        if draw.random() < 0.9:
            while process.poll() is None and not (journal.exists() and journal.stat().st_size > size):
                time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was done before it could be killed: raise the delay"


def check_kills(folder: Path, num_kills: int, delay_s: float) -> None:
    whole = run_whole(folder / "whole")
    kill_runs(folder / "killed", num_kills, delay_s)
    num_before = len(answer_keys(folder / "killed"))
    assert run_whole(folder / "killed") == whole
    keys = Counter(answer_keys(folder / "killed"))
    assert set(keys.values()) == {1}
    assert set(keys) == set(answer_keys(folder / "whole"))
    assert 0 < num_before < len(keys)  # the kills were at work, and did not come after it


def test_killed_runs_go_on(tmp_path: Path) -> None:
    check_kills(tmp_path, num_kills=5, delay_s=0.5)


@pytest.mark.slow
def test_a_hundred_kills(tmp_path: Path) -> None:
    check_kills(tmp_path, num_kills=100, delay_s=8)
