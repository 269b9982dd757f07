"""Which cells a run is to make: models, times tasks, times lengths; each with a name of its own."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_longpo.evaluate.cells import Setting
from megatron_longpo.evaluate.run.models import Model

ABOUT = ("transformers", "lm_eval", "server_model", "not_applied")
"""Settings that a cell says, and that do not make it another: who upgrades a library need not compute all anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A cell to be made."""

    model: Model
    engine: str
    suite: str
    task: str
    length: int | None
    limit: int | None
    settings: Mapping[str, Setting]
    num_prompts: int
    """Prompts of the whole cell, as far as known before; 0 if not."""
    num_tokens: int
    """Of all prompts, about; 0 if not known."""

    @property
    def key(self) -> str:
        """24 hexadecimal digits: what the cell's files are called."""
        about = {name: value for name, value in self.settings.items() if name not in ABOUT}
        parts = [self.model.weights, self.engine, self.suite, self.task, self.length, self.limit, about]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]

    @property
    def max_length(self) -> int:
        """Tokens of a prompt with its answer, at most: of RULER its length, of a novel what it is cut to."""
        return int(self.length or self.settings["cut_to"] or 0)

    @property
    def title(self) -> str:
        """For people."""
        length = f" at {self.length:,}" if self.length else ""
        return f"{self.model.name}: {self.task}{length}"

    def about(self) -> dict[str, Any]:
        """The fields of the cell that are known beforehand."""
        return {
            "model": self.model.name,
            "order": self.model.order,
            "weights": self.model.weights,
            "engine": self.engine,
            "suite": self.suite,
            "task": self.task,
            "length": self.length,
            "limit": self.limit,
            "settings": self.settings,
        }

    def path(self, output: Path) -> Path:
        """Where the cell is written."""
        return output / "cells" / f"{self.key}.json"

    def unfinished(self, output: Path) -> Path:
        """Where its answers are kept until it is whole."""
        return output / "cells" / f"{self.key}.journal"
