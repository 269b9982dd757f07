"""The FLOPs of a plan: counted by torch while the model runs, by hand for 7B models, and times at stated rates."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.released_models import MISTRAL_7B
from megatron_longpo.hf.config import megatron_options
from megatron_longpo.model.parallel_sizes import ParallelSizes
from megatron_longpo.plan.machines import KINDS
from megatron_longpo.plan.step_shape import Recompute, StepShape
from megatron_longpo.plan.work import Rates, model_flops, pair_flops, tree_work

pytestmark = pytest.mark.ranks
ROOT = Path(__file__).parents[3]
MISTRAL = megatron_options(MISTRAL_7B)
PAIR = np.array([[131072 - 2048, 2048, 2048]])
"""Two conversations of 131,072 tokens."""
KEEP: Recompute = "keep-attention"
COUNTED: list[Any] = [
    [1, [["none", 300, 40], ["full", 300, 40], ["keep-attention", 300, 40]]],
    [2, [["none", 384, 40]]],
]
CASES = [case for _, cases in COUNTED for case in cases]


@pytest.fixture(scope="module")
def counted() -> list[int]:
    """FLOPs of real steps, as torch counts them."""
    command = [sys.executable, "-m", "tests.unit.plan.count_flops", json.dumps(COUNTED)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(CASES)))
def test_executed_is_counted(counted: list[int], place: int) -> None:
    """All ranks of a step together, within 1%: forward, backward, recomputation, the head's second logits."""
    from benchmarks.small_mistral import OPTIONS

    recompute, trunk, branch = CASES[place]
    work = tree_work(OPTIONS, np.array([[trunk, branch, branch]]))
    assert work.executed(recompute)[0] == pytest.approx(counted[place], rel=0.01)


@pytest.mark.parametrize(
    ("recompute", "petaflops"),
    [("full", 28.3), ("keep-attention", 23.3), ("none", 21.8)],
)
def test_a_7b_pair_by_hand(recompute: Recompute, petaflops: float) -> None:
    """Of Mistral-7B. By hand: 13.96 GFLOP a token in linear layers and a
    causal pass of 4.5e15 in attention, whose backward pass is 2.5 forward ones."""
    assert tree_work(MISTRAL, PAIR).executed(recompute)[0] / 1e15 == pytest.approx(petaflops, rel=0.03)


def test_model_flops_of_a_7b_pair_by_hand() -> None:
    assert model_flops(MISTRAL, PAIR) / 1e15 == pytest.approx(19.5, rel=0.01)
    assert pair_flops(MISTRAL, PAIR) / 1e15 == pytest.approx(38.0, rel=0.01)


def test_a_branch_that_is_not_there_is_no_sequence() -> None:
    one = np.array([[1000, 100, 0]])
    assert pair_flops(MISTRAL, one) == pytest.approx(model_flops(MISTRAL, np.array([[1100, 0, 0]])))
    assert model_flops(MISTRAL, one) == pytest.approx(pair_flops(MISTRAL, one))


@pytest.mark.parametrize(("recompute", "ceiling"), [("full", 0.415), ("keep-attention", 0.493), ("none", 0.531)])
def test_mfu_at_kernel_rates_by_hand(recompute: Recompute, ceiling: float) -> None:
    """Of 128K tokens on an H100: 3 / (4 or 3 passes at 650 TFLOP/s, attention at 620 and 550) of 989."""
    rates, sequence = _rates(recompute), np.array([[131072, 0, 0]])
    seconds = sum(float(one[0]) for one in rates.seconds(tree_work(MISTRAL, sequence)).values())
    assert model_flops(MISTRAL, sequence) / seconds / 989e12 == pytest.approx(ceiling, rel=0.03)


def test_work_is_shared_and_waiting_is_not_free() -> None:
    """Half the time on twice the ranks; exchanges are of what the other ranks hold."""
    tokens, work = np.array([135168.0]), tree_work(MISTRAL, np.array([[131072, 2048, 2048]]))
    alone, shared = (_rates(KEEP, context=context) for context in (1, 8))
    for name, seconds in alone.seconds(work).items():
        assert shared.seconds(work)[name] == pytest.approx(seconds / 8)
    attention = shared.seconds(work)["attention"]
    assert shared.exchange_seconds(tokens, attention)["context-parallel exchange"] == 0  # hidden behind attention
    ring = shared.exchange_seconds(tokens, 0 * attention)["context-parallel exchange"][0]
    # Keys and values of 7 ranks, 16,896 tokens of 8 heads of 128 in bf16, 32 layers: forward, and with fp32 gradients.
    assert ring == pytest.approx(7 * 2 * 16896 * 1024 * 2 * 32 * (1 + 1 + 2) / 370e9)
    split = _rates(KEEP, tensor=2).exchange_seconds(tokens, attention)["tensor-parallel exchange"][0]
    assert split == pytest.approx(135168 * 4096 * 2 * 32 * 0.5 * 14 / 370e9)


def test_the_end_of_a_step_by_hand() -> None:
    """A gradient in fp32 and a weight in bf16 of every parameter, but for the own share; Adam's 30 bytes of it."""
    end = _rates(KEEP, data=8).end_of_step()
    parameters = 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14336 + 2 * 4096) + 2 * 32000 * 4096 + 4096
    assert end["gradients and weights"] == pytest.approx(parameters * 6 * 7 / 8 / 370e9)
    assert end["optimizer"] == pytest.approx(parameters * 30 / 8 / 3350e9)
    slow = _rates(KEEP, data=16).end_of_step()
    assert slow["gradients and weights"] == pytest.approx(parameters * 6 * 15 / 16 / 45e9)  # two machines


def _rates(recompute: Recompute, *, tensor: int = 1, context: int = 1, data: int = 1) -> Rates:
    shape = StepShape(
        options=MISTRAL,
        trees=((131072, (2048, 2048)),),
        sizes=ParallelSizes(tensor, 1, context, ["p2p"], None),
        data=data,
        recompute=recompute,
        optimizer="adam",
    )
    return Rates(shape=shape, kind=KINDS["h100-80"], kernel="flash3", efficiency=1.0)
