"""metrics.py: the table of all numbers, and docs/watch.md which shows it."""

import re
from pathlib import Path

from megatron_longpo.metrics import GROUPS, METRICS, OF_THE_MACHINE, numbers

PAGE = Path(__file__).parents[2] / "docs" / "watch.md"


def test_the_page_is_the_table() -> None:
    """The same groups, names, units and meanings, in the same order."""
    tables = re.findall(
        r"^### (.*)\n\n\| name .*\n\|[-|]+\n((?:\|.*\n)+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE
    )
    shown = {
        title: [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows.splitlines()] for title, rows in tables
    }
    assert shown == {
        title: [[f"`{one.path}`", one.unit, one.meaning, "both" if one.held_out else "train"] for one in metrics]
        for title, metrics in GROUPS.items()
    }


def test_no_number_is_named_twice() -> None:
    assert len(METRICS) == sum(map(len, GROUPS.values()))


def test_what_runs_need_not_share_is_there() -> None:
    assert set(OF_THE_MACHINE) <= {path.split("/")[0] for path in METRICS}


def test_numbers_of_a_line() -> None:
    line = {"step": 3, "split": "train", "loss": 2.0, "grad_norm": None, "by_turn": {"1": {"margin": 0.0, "x": None}}}
    assert numbers(line) == {"loss": 2.0, "by_turn/1/margin": 0.0}
