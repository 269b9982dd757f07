"""Loss, log-probs and every weight's gradient equal the oracle's, in every parallel layout."""

import itertools
import math
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from megatron_longpo.hf.import_hf import import_hf
from tests.parity.cases import Case, random_pairs
from tests.parity.oracle import Result, oracle, save_model
from tests.parity.system import result, run_cases
from tests.ranks import run_ranks

TOLERANCE = 1e-5
"""Relative to the largest element: fp32 kernels that sum in another order, through 4 layers."""

LAYOUTS = [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 2, 1), (2, 1, 2), (1, 2, 2)]


def layout_cases() -> list[Case]:
    """Every layout with every architecture, the other switches turning over so that each value meets each layout."""
    models = itertools.cycle(itertools.product(("llama", "mistral", "qwen2"), (False, True)))
    cases = []
    for index, ((tp, pp, dp), distopt, recompute) in enumerate(
        itertools.product(LAYOUTS, (False, True), ("none", "full"))
    ):
        architecture, tied = next(models)
        cases.append(
            Case(
                architecture=architecture,
                tied=tied,
                tp=tp,
                pp=pp,
                dp=dp,
                sequence_parallel=tp > 1 and distopt == (recompute == "full"),
                distributed_optimizer=distopt,
                recompute="selective" if index % 7 == 6 else recompute,
                num_turns=1 + index % 3,
                nll_over_all=index % 5 != 4,
                seed=index,
            )
        )
    return cases


def relative(ours: float | torch.Tensor, theirs: float | torch.Tensor) -> float:
    """Largest difference over the largest element of ``theirs``; infinite for NaN, which Python's max would lose."""
    ours, theirs = torch.as_tensor(ours, dtype=torch.float64), torch.as_tensor(theirs, dtype=torch.float64)
    difference = ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30)).item()
    return difference if math.isfinite(difference) else math.inf


def differences(ours: Result, theirs: Result) -> dict[str, float]:
    """Relative difference of every report and of the worst gradient.

    The margin is a small difference of large sums, so its error is held against the size of those sums.
    """
    assert ours.gradients.keys() == theirs.gradients.keys()
    found = {name: relative(ours.reports[name], value) for name, value in theirs.reports.items()}
    found["margin"] *= abs(theirs.reports["margin"] / theirs.reports["policy_chosen_logp"])
    found["gradient"] = max(relative(ours.gradients[name], value) for name, value in theirs.gradients.items())
    return found


def measure(cases: list[Case], folder: Path) -> dict[str, dict[str, float]]:
    """Run all cases and compare each with both oracles: case name -> what -> relative difference.

    What is compared with the fp32 oracle, whose own rounding then counts too, has "fp32 " before its name.
    """
    by_ranks = defaultdict(list)
    for case in cases:
        save_model(case, folder / case.name / "hf")
        import_hf(folder / case.name / "hf", folder / case.name / "imported")
        by_ranks[case.num_ranks].append(case)
    measured = {}
    for num_ranks, group in sorted(by_ranks.items()):
        by_rank = run_ranks(run_cases, num_ranks, group, folder)
        for index, case in enumerate(group):
            reports = next(reports[index] for reports in reversed(by_rank) if reports[index])
            ours, pairs = result(reports, folder / case.name), random_pairs(case)
            single = differences(ours, oracle(case, pairs, torch.float32))
            measured[case.name] = {
                **differences(ours, oracle(case, pairs, torch.float64)),
                **{f"fp32 {name}": difference for name, difference in single.items()},
            }
    return measured


def every_layout_once() -> list[Case]:
    """One case of the four of every layout, another one each time: what `make test` runs."""
    return [case for index, case in enumerate(layout_cases()) if index % 4 == (index // 4) % 4]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    return measure(every_layout_once(), tmp_path_factory.mktemp("once"))


@pytest.fixture(scope="module")
def measured_rest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    return measure(the_rest(), tmp_path_factory.mktemp("rest"))


def the_rest() -> list[Case]:
    """The other cases: `make test-all`."""
    return [case for case in layout_cases() if case not in every_layout_once()]


@pytest.mark.timeout(1800)  # the first one runs them all
@pytest.mark.parametrize("case", every_layout_once(), ids=lambda case: case.name)
def test_equals_oracle(case: Case, measured: dict[str, dict[str, float]]) -> None:
    found = measured[case.name]
    assert max(found.values()) <= TOLERANCE, found


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", the_rest(), ids=lambda case: case.name)
def test_equals_oracle_in_every_combination(case: Case, measured_rest: dict[str, dict[str, float]]) -> None:
    found = measured_rest[case.name]
    assert max(found.values()) <= TOLERANCE, found
