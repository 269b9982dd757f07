"""Import and export killed at random moments: what lies at the output is right or absent, and a new run succeeds."""

import random
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from megatron_longpo.commands.main import main
from megatron_longpo.errors import UserError
from megatron_longpo.hf.fingerprint import weights_sha256
from megatron_longpo.hf.sidecar import read_identity
from megatron_longpo.hf.weights import SafetensorsFolder
from tests.ranks import launch
from tests.unit.hf.models import save_model

pytestmark = [pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(900)]

KILLS = 20
LARGE = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8}  # long enough to be hit at work


def succeed(argv: list[str]) -> float:
    """Run undisturbed; returns the seconds it took."""
    start = time.monotonic()
    finished = launch(main, argv)
    assert finished.status == 0, finished.output
    return time.monotonic() - start


def kill_at_random(argv: list[str], longest: float, rng: random.Random) -> bool:
    """Whether the run was killed before its end."""
    deadline = time.monotonic() + rng.uniform(0.0, longest)
    return launch(main, argv, kill_when=lambda: time.monotonic() > deadline).status != 0


def readable(folder: Path) -> dict[str, Tensor] | None:
    """All tensors of a Hugging Face folder, or None if it does not open."""
    try:
        weights = SafetensorsFolder(folder)
    except UserError:
        return None
    return {name: weights.read(name) for name in weights.names()}


def test_import(tmp_path: Path) -> None:
    hf, output, partial = save_model(tmp_path / "hf", **LARGE), tmp_path / "out", tmp_path / ".out.partial"
    whole = ["import-hf", "--hf", str(hf), "--no-verify", "--output"]
    succeed([*whole, str(tmp_path / "whole")])  # the first run of all starts the server that forks the others
    longest = succeed([*whole, str(tmp_path / "again")])
    expected = weights_sha256(tmp_path / "whole")
    rng = random.Random(0)
    num_killed = 0
    for _ in range(KILLS):
        num_killed += kill_at_random([*whole, str(output)], longest, rng)
        for folder in (output, partial):
            try:
                assert weights_sha256(folder) == expected
            except UserError:
                assert folder is partial or not output.exists()
        if output.exists():
            assert read_identity(output) == read_identity(tmp_path / "whole")
            output.rename(tmp_path / f"done-{rng.random()}")
    assert num_killed >= KILLS // 2
    succeed([*whole, str(output)])
    assert weights_sha256(output) == expected
    assert not partial.exists()


def test_export(tmp_path: Path) -> None:
    hf, output, partial = save_model(tmp_path / "hf", **LARGE), tmp_path / "out", tmp_path / ".out.partial"
    assert main(["import-hf", "--hf", str(hf), "--output", str(tmp_path / "checkpoint"), "--no-verify"]) == 0
    whole = ["export-hf", "--checkpoint", str(tmp_path / "checkpoint"), "--no-verify", "--output"]
    succeed([*whole, str(tmp_path / "whole")])  # the first run of all starts the server that forks the others
    longest = succeed([*whole, str(tmp_path / "again")])
    expected = load_file(hf / "model.safetensors")
    rng = random.Random(1)
    num_killed = 0
    for _ in range(KILLS):
        num_killed += kill_at_random([*whole, str(output)], longest, rng)
        for folder in (output, partial):
            found = readable(folder)
            assert found is None or same(found, expected)
        if output.exists():
            assert readable(output)
            output.rename(tmp_path / f"done-{rng.random()}")
    assert num_killed >= KILLS // 2
    succeed([*whole, str(output)])
    assert same(load_file(output / "model.safetensors"), expected)
    assert not partial.exists()


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
