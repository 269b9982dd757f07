"""One measurement, in processes of its own: ``python -m benchmarks.gpu.one NAME RANKS ROWS``, started by the suite.

ROWS, a file, gets a JSON line a row as it is measured: what is broken off keeps what it has.
"""

import collections
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from benchmarks.common import on_ranks
from benchmarks.gpu import programs, steps

ON_RANKS = {
    "sharing": steps.sharing,
    "layer": steps.layer,
    "kernels": steps.attention_kernels,
    "head": steps.head,
    "exchanges": steps.exchanges,
}
HERE = {"mistral-7b": programs.mistral_7b, "peers": programs.peers}
"""Start programs of their own."""


def main() -> None:
    """Measure, on all ranks where there are any."""
    name, ranks, path = sys.argv[1:]
    if name in HERE:
        write_rows(HERE[name](), Path(path))
    else:
        on_ranks(on_rank, int(ranks), name, Path(path))


def on_rank(name: str, path: Path) -> None:
    """All ranks measure, the first one writes."""
    rows = ON_RANKS[name]()
    if dist.get_rank() == 0:
        write_rows(rows, path)
    else:
        collections.deque(rows, maxlen=0)


def write_rows(rows: Iterator[dict[str, Any]], path: Path) -> None:
    """Each as it comes."""
    for row in rows:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
