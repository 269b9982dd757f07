"""Import and export killed at random moments: what lies at the output is right or absent, and a new run succeeds."""

import random
import time
from collections.abc import Iterator
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


def after_each_kill(argv: list[str], folder: Path, seed: int) -> Iterator[None]:
    """Run ``argv --output OUT`` and kill it, KILLS times, with a look at FOLDER/out and what was partial after each.

    Before that FOLDER/whole is made without a kill; last of all the command succeeds where it was killed.
    """
    succeed([*argv, str(folder / "whole")])  # the first run of all starts the server that forks the others
    longest = succeed([*argv, str(folder / "again")])
    output = folder / "out"
    rng = random.Random(seed)
    num_killed = 0
    for number in range(KILLS):
        deadline = time.monotonic() + rng.uniform(0.0, longest)
        finished = launch(main, [*argv, str(output)], kill_when=lambda end=deadline: time.monotonic() > end)
        num_killed += finished.status != 0
        yield
        if output.exists():
            output.rename(folder / f"done-{number}")
    assert num_killed >= KILLS // 2
    succeed([*argv, str(output)])
    assert not (folder / ".out.partial").exists()


def readable(folder: Path) -> dict[str, Tensor] | None:
    """All tensors of a Hugging Face folder, or None if it does not open."""
    try:
        weights = SafetensorsFolder(folder)
    except UserError:
        return None
    return {name: weights.read(name) for name in weights.names()}


def test_import(tmp_path: Path) -> None:
    hf, output, partial = save_model(tmp_path / "hf", **LARGE), tmp_path / "out", tmp_path / ".out.partial"
    for _ in after_each_kill(["import-hf", "--hf", str(hf), "--no-verify", "--output"], tmp_path, seed=0):
        expected = weights_sha256(tmp_path / "whole")
        for folder in (output, partial):
            try:
                assert weights_sha256(folder) == expected
            except UserError:
                assert folder is partial or not output.exists()
        if output.exists():
            assert read_identity(output) == read_identity(tmp_path / "whole")
    assert weights_sha256(output) == weights_sha256(tmp_path / "whole")


def test_export(tmp_path: Path) -> None:
    hf, output, partial = save_model(tmp_path / "hf", **LARGE), tmp_path / "out", tmp_path / ".out.partial"
    assert main(["import-hf", "--hf", str(hf), "--output", str(tmp_path / "checkpoint"), "--no-verify"]) == 0
    expected = load_file(hf / "model.safetensors")
    argv = ["export-hf", "--checkpoint", str(tmp_path / "checkpoint"), "--no-verify", "--output"]
    for _ in after_each_kill(argv, tmp_path, seed=1):
        for folder in (output, partial):
            found = readable(folder)
            assert found is None or same(found, expected)
        if output.exists():
            assert readable(output)
    assert same(load_file(output / "model.safetensors"), expected)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
