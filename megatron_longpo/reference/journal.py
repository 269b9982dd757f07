"""A journal of scored pairs: one file a rank, one line a pair, appended and fsynced; survives kill -9."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from megatron_longpo.errors import UserError

Turns = list[tuple[float, float]]


class Journal:
    """Lines ``{"pair": i, "logp": [[chosen, rejected], ...]}`` under a folder that names what is being scored."""

    def __init__(self, folder: Path, scored: dict[str, Any], rank: int) -> None:
        """Open or go on with the journal in ``folder``.

        Raises:
            UserError: the folder holds the journal of another scoring (dataset, model, RoPE or dtype differ).
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        header = folder / "scored.json"
        wanted = json.dumps(scored, sort_keys=True)
        if not header.exists():
            partial = folder / f".scored.{rank}"
            partial.write_text(wanted)
            partial.replace(header)
        if header.read_text() != wanted:
            raise UserError(f"{folder} is an unfinished scoring of something else; remove it to start over")
        self._path = folder / f"rank{rank:05d}.jsonl"
        self._file = self._path.open("a+b")
        self._drop_cut_line()

    def _drop_cut_line(self) -> None:
        """A kill can cut the last line short; what follows must not be glued to it."""
        self._file.seek(0)
        content = self._file.read()
        if content and not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)

    def append(self, pair_index: int, turns: Turns) -> None:
        """Add one pair; nats, printed so that float64 reads back the same."""
        self._file.write(json.dumps({"pair": pair_index, "logp": turns}).encode() + b"\n")

    def flush(self) -> None:
        """Make what was appended survive a crash of the machine."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def read_all(self) -> dict[int, Turns]:
        """All pairs of all ranks' files; a line that a kill cut short is left out."""
        found: dict[int, Turns] = {}
        for path in sorted(self.folder.glob("rank*.jsonl")):
            for line in path.read_bytes().splitlines(keepends=True):
                if line.endswith(b"\n"):
                    entry = json.loads(line)
                    found[entry["pair"]] = [(chosen, rejected) for chosen, rejected in entry["logp"]]
        return found

    def remove(self) -> None:
        """Delete the journal, once the cache holds everything."""
        self._file.close()
        shutil.rmtree(self.folder)
