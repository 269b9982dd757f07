"""Random weights and pairs for training runs as a user starts them."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megatron_longpo.data.indexed import PairWriter
from megatron_longpo.data.render import Branch, RenderedPair, TrunkAndBranches
from megatron_longpo.hf.sidecar import read_identity

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""Environment of a process whose C library keeps no larger block that was freed: what is resident is what is used."""


def imported_model(folder: Path, config: Mapping[str, Any]) -> Path:
    """A checkpoint of a random Llama of that shape, beside its Hugging Face folder."""
    from tests.workspace import make_model

    make_model(folder / "hf", "llama", **{"max_position_embeddings": 16384, **config})
    run_python("megatron_longpo.commands.main", "import-hf", "--hf", folder / "hf", "--output", folder / "imported")
    return folder / "imported"


def write_pairs(prefix: Path, imported: Path, trunk: int, branch: int, vocab_size: int, number: int = 16) -> None:
    """Pairs of the same lengths, in tokens, of one response a side; a short context has 64 tokens."""
    rng = np.random.default_rng(0)
    settings: dict[str, Any] = {
        "max_length": trunk + branch,
        "overlong": "refuse",
        "tokenizer_fingerprint": read_identity(imported).tokenizer_fingerprint,
        "vocab_size": vocab_size,
    }
    with PairWriter(prefix, **settings) as writer:
        for index in range(number):
            writer.add(_pair(rng, str(index), trunk, branch, vocab_size))
        writer.finish([])


def _pair(rng: np.random.Generator, name: str, trunk: int, branch: int, vocab_size: int) -> RenderedPair:
    tokens, *branches = (rng.integers(vocab_size, size=n, dtype=np.int32) for n in (trunk, branch, branch))
    branches[1][0] = branches[0][0]
    span = np.array([[1, branch]], np.int32)
    one = TrunkAndBranches(tokens, *(Branch(tokens, span) for tokens in branches))
    short = TrunkAndBranches(tokens[:64], *(Branch(tokens, span) for tokens in branches))
    return RenderedPair(name, one, (short,), 0)


def run_python(*argv: object, environment: Mapping[str, str] = os.environ, threads: int = 1) -> str:
    """What ``python -m ARGV`` printed.

    Raises:
        SystemExit: it failed; with all that it said.
    """
    command = [sys.executable, "-m", *map(str, argv)]
    environment = {**environment, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, argv))}\n{done.stdout}\n{done.stderr}")
    return done.stdout
