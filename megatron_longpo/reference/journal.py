"""The journals of an unfinished scoring: one file a rank, one line a pair (journal.py says what a line is).

The ranks of one run write one scoring together; ``lock`` in the folder keeps a second run out.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_longpo.errors import UserError
from megatron_longpo.journal import Journal, check_header, journal_lines
from megatron_longpo.locks import Lock

Turns = list[tuple[float, float]]


def journal_folder(output: Path) -> Path:
    """The folder beside the cache ``output`` with a file a rank; it is gone when the cache is there."""
    return output.with_name(f".{output.name}.journal")


def lock_folder(folder: Path) -> Lock:
    """Keep every other run out of ``folder``; one rank does it for all.

    Raises:
        UserError: another run has it, or an older version left it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder / "lock")
    if any(folder.glob("*.json*")):
        lock.close()
        raise UserError(f"{folder}: an unfinished scoring by an older version; remove the folder to score anew")
    return lock


def open_journal(folder: Path, scored: Mapping[str, Any], rank: int) -> Journal:
    """This rank's own journal, for appending; ``scored`` names dataset, model, RoPE and dtype."""
    return Journal(folder / f"rank{rank:05d}.journal", {"scored": scored})


def pair_line(pair_index: int, turns: Turns) -> dict[str, Any]:
    """The line of one pair: (chosen, rejected) a turn, nats, printed so that float64 reads back the same."""
    return {"kind": "pair", "pair": pair_index, "logp": turns}


def read_pairs(folder: Path, scored: Mapping[str, Any]) -> dict[int, Turns]:
    """All pairs in all ranks' journals.

    Raises:
        UserError: a journal is damaged, or belongs to another scoring (dataset, model, RoPE or dtype differ).
    """
    found: dict[int, Turns] = {}
    for path in sorted(folder.glob("rank*.journal")):
        for _, _, line in journal_lines(path):
            if line["kind"] == "header":
                check_header(path, line, {"scored": scored})
            else:
                found[line["pair"]] = [(chosen, rejected) for chosen, rejected in line["logp"]]
    return found


def remove(folder: Path, lock: Lock) -> None:
    """Delete the journals, once the cache holds everything; nobody can come in before they are gone."""
    shutil.rmtree(folder)
    lock.close()
