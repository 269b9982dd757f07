"""commands/generate_display.py: with a clock that is turned by hand, on a terminal's console and on a log's."""

import asyncio
import io
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from megatron_longpo.commands import live_display
from megatron_longpo.commands.generate_display import GenerateDisplay, print_summary, tally_of
from megatron_longpo.errors import UserError
from megatron_longpo.generate.engine import Completion
from megatron_longpo.generate.journal import Journal, Shard
from megatron_longpo.generate.merge import Tally
from megatron_longpo.generate.procedure import Outcome
from megatron_longpo.generate.run import Work, run_shard
from tests.unit.generate.model_by_rule import Counts, ModelByRule, is_asking
from tests.unit.generate.run_by_rule import HEADER, NUM_CONTEXTS, SETTINGS, contexts, join, run
from tests.unit.generate.test_run import BreaksAfter

ONE = Shard(1, 1)
ANSWER = Completion(text="So it is.", finish="stop", num_prompt_tokens=1200, num_new_tokens=30)
GOOD = Outcome(pair={"id": "x"}, asked=5, dropped=Counter({"cut off": 2}), turns=3)
POOR = Outcome(pair=None, asked=5, dropped=Counter({"refusal": 3, "empty": 1}), turns=1)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Shown:
    """A display, what it writes to, and its clock."""

    def __init__(self, folder: Path, *, is_terminal: bool = False, total: int | None = None) -> None:
        self.clock, self.file = Clock(), io.StringIO()
        console = Console(file=self.file, force_terminal=is_terminal, width=100, color_system=None)
        with Journal(folder, ONE, HEADER) as journal:
            self.display = GenerateDisplay(journal, SETTINGS.min_turns, total=total, console=console, clock=self.clock)

    @property
    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()


def test_a_log_hears_of_it_only_now_and_then(tmp_path: Path) -> None:
    shown = Shown(tmp_path, total=10)
    with shown.display as display:
        for _ in range(10):
            shown.clock.now += 1
            display.answered(ANSWER)
        display.finished(GOOD)
        assert shown.lines == []
        shown.clock.now += 5
        display.finished(POOR)
        assert shown.lines == [
            "generate: long contexts 2 of 10; kept pairs 1, turns 3 (30% of 10 chunks); "
            "dropped refusal 3, cut off 2, empty 1; requests 10 (800 prompt and 20 new tokens/s); "
            "time 15 s, 1 min 00 s left"
        ]
        display.finished(POOR)
        assert len(shown.lines) == 1
    assert len(shown.lines) == 2


def test_a_terminal_is_drawn_upon(tmp_path: Path) -> None:
    shown = Shown(tmp_path, is_terminal=True, total=4)
    with shown.display as display:
        display.answered(ANSWER)
        display.finished(GOOD)
        shown.clock.now += 30
    first, *_, last = shown.file.getvalue().split("long contexts  ")[1:]
    assert first.startswith("0 of 4")
    assert [" ".join(line.split()) for line in last.splitlines()[:6]] == [
        "1 of 4",
        "kept pairs 1, turns 3 (60% of 5 chunks)",
        "dropped cut off 2",
        "requests 1 (40 prompt and 1 new tokens/s)",
        "time 30 s, 1 min 30 s left",
        "\u2501" * 10,  # a quarter of the bar; the rest is another colour's
    ]


def test_the_largest_drops_on_the_way_and_all_at_the_end(tmp_path: Path) -> None:
    shown = Shown(tmp_path)
    dropped = Counter({"cut off": 9, "refusal": 8, "position": 7, "empty": 2, "too similar": 1})
    with shown.display as display:
        shown.clock.now += 15
        display.finished(Outcome(pair=None, asked=27, dropped=dropped, turns=0))
    assert "dropped cut off 9, refusal 8, position 7, others 3;" in shown.lines[0]
    assert "dropped cut off 9, refusal 8, position 7, empty 2, too similar 1;" in shown.lines[1]


def test_rates_are_of_the_last_minute(tmp_path: Path) -> None:
    shown = Shown(tmp_path)
    for _ in range(100):
        shown.clock.now += 1
        shown.display.answered(ANSWER)
    for _ in range(120):
        shown.clock.now += 1
        shown.display.answered(Completion(text="", finish="stop", num_prompt_tokens=10, num_new_tokens=5))
    shown.display.__exit__(None, None, None)
    assert "(10 prompt and 5 new tokens/s)" in shown.lines[-1]


def test_slow_answers_are_not_no_answers(tmp_path: Path) -> None:
    shown = Shown(tmp_path)
    for _ in range(20):
        shown.clock.now += 300
        shown.display.answered(ANSWER)
        shown.display.answered(ANSWER)
    shown.display.__exit__(None, None, None)
    assert "(8 prompt and 0 new tokens/s)" in shown.lines[-1]


def test_time_left_is_unknown_without_a_total_or_a_document(tmp_path: Path) -> None:
    shown = Shown(tmp_path)
    shown.clock.now += 20
    shown.display.answered(ANSWER)
    assert shown.lines[-1].endswith("time 20 s, ? left")
    shown.clock.now += 20
    shown.display.finished(GOOD)
    assert "long contexts 1; " in shown.lines[-1] and shown.lines[-1].endswith("time 40 s, ? left")
    shown.display.total = 3
    shown.clock.now += 20
    shown.display.finished(GOOD)
    assert "long contexts 2 of 3; " in shown.lines[-1] and shown.lines[-1].endswith("time 1 min 00 s, 30 s left")


def test_a_session_goes_on_from_what_others_did(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the server is gone"):
        asyncio.run(run(tmp_path, ONE, BreaksAfter(60), Counts()))
    shown = Shown(tmp_path / "journal", total=NUM_CONTEXTS)
    with Journal(tmp_path / "journal", ONE, HEADER) as journal:
        num_before = len(journal.done)
        assert 0 < num_before < NUM_CONTEXTS
        shown.clock.now += 16
        shown.display.answered(ANSWER)
        assert f"long contexts {num_before} of {NUM_CONTEXTS}; kept pairs {num_before}, " in shown.lines[-1]
        assert "requests 61 (75 prompt and 2 new tokens/s)" in shown.lines[-1]
        assert shown.lines[-1].endswith(" before), ? left")
        work = Work(settings=SETTINGS, control_token=None, observer=shown.display)
        asyncio.run(run_shard(contexts(ONE), ModelByRule(), journal, work))
    shown.display.__exit__(None, None, None)
    assert f"long contexts {NUM_CONTEXTS} of {NUM_CONTEXTS}; " in shown.lines[-1]
    assert shown.lines[-1].endswith(", 0 s left")


def test_the_tally_of_a_journal_is_that_of_its_merge(tmp_path: Path) -> None:
    model = ModelByRule(lambda request: "No." if is_asking(request) and request.seed % 4 else None)
    asyncio.run(run(tmp_path, ONE, model, Counts()))
    counts = join(tmp_path)["counts"]
    with Journal(tmp_path / "journal", ONE, HEADER) as journal:
        tally = tally_of(journal, SETTINGS.min_turns)
    assert counts["dropped"] == dict(tally.dropped) != {}
    assert counts["usable_turns"] > counts["turns"]  # some contexts gave too few
    names = set(Tally.__dataclass_fields__) - {"sources", "dropped"}
    assert {name: getattr(tally, name) for name in names} == {name: counts[name] for name in names}


def test_the_summary(tmp_path: Path) -> None:
    counts = {
        "pairs": 24,
        "turns": 43,
        "contexts": 33,
        "asked": 107,
        "usable_turns": 52,
        "dropped": {"cut off": 40, "refusal": 14, "control tokens": 3, "duplicate": 2},
        "requests": 1412,
        "prompt_tokens": 2_345_678,
        "new_tokens": 34_567,
        "seconds": 4321.5,
        "sources": {"documents": 312, "characters cut off": 182_333},
    }
    file = io.StringIO()
    print_summary({"counts": counts}, Path("[red]/pairs.jsonl"), Console(file=file, width=40))
    assert file.getvalue().splitlines() == [
        "[red]/pairs.jsonl:",
        "  pairs     24, from 31 long contexts (2 more held control tokens)",
        "  turns     43 of 107 chunks (40.2%)",
        "  dropped   cut off 40, refusal 14, too few turns for a pair 7, duplicate of an earlier turn 2, "
        "control tokens 1",
        "  requests  1,412",
        "  tokens    2,345,678 of prompts, 34,567 new",
        "  time      1 h 12 min, 8.0 new tokens/s",
        "  sources   documents 312, characters cut off 182,333",
    ]


def test_stderr_is_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(tmp_path, ONE, HEADER) as journal, GenerateDisplay(journal, 2) as display:
        display.finished(GOOD)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert live_display.SECONDS_PER_LINE == 15
