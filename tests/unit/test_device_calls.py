"""The host waits for the device nowhere in a micro-batch, and asks it for a bounded number of kernels."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, int]]:
    """Counted in a process of its own, where Megatron runs on meta tensors: reading a value of one raises."""
    command = [sys.executable, "-m", "tests.device_calls"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("num_pairs", [1, 3])
def test_a_step_copies_without_waiting(counted: dict[str, dict[str, int]], num_pairs: int) -> None:
    """Of the micro-batch four tensors and the places of all that is reported; of each pair five of its targets and two
    of the reference."""
    found = counted[f"step of {num_pairs}"]
    assert found["copies"] == 5 + 7 * num_pairs
    assert found["copies waited for"] == 0


def test_kernels_of_the_loss_do_not_grow_with_what_is_reported(counted: dict[str, dict[str, int]]) -> None:
    for num_pairs in (1, 3):
        found = counted[f"step of {num_pairs}"]
        assert found["reported"] > 40
        assert found["launches of the loss"] <= 20 + 45 * num_pairs


@pytest.mark.parametrize(
    "layout, forward, backward",
    [("p2p, 1", 45, 45), ("p2p, 8", 150, 130), ("all_gather, 8", 150, 130), ("a2a, 8", 95, 85)],
)
def test_kernels_of_a_pairs_attention_in_a_layer(
    counted: dict[str, dict[str, int]], layout: str, forward: int, backward: int
) -> None:
    """At cp 8 a rank attends eight blocks of keys, and merges each."""
    found = counted[f"attention, {layout}"]
    assert 0 < found["forward"] <= forward and 0 < found["backward"] <= backward
