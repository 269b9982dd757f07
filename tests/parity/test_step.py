"""Loss, log-probs and every weight's gradient equal the oracle's, in every parallel layout."""

import functools
import math
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from megatron_longpo.hf.import_hf import import_hf
from tests.parity.cases import Case, random_pairs
from tests.parity.oracle import Result, oracle, save_model
from tests.parity.pairwise import SWITCHES, Pair, all_cases, pairs_of, possible_pairs, sample
from tests.parity.system import result, run_cases
from tests.ranks import run_ranks

TOLERANCE = 1e-5
"""Relative to the largest element: fp32 kernels that sum in another order, through 4 layers."""


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
    if "margin" in found:
        found["margin"] *= abs(theirs.reports["margin"] / theirs.reports["policy_chosen_logp"])
    found["gradient"] = max(relative(ours.gradients[name], value) for name, value in theirs.gradients.items())
    return found


def measure(cases: list[Case], folder: Path) -> dict[str, dict[str, float]]:
    """Run all cases and compare each with both oracles: case name -> what -> relative difference.

    What is compared with the fp32 oracle, whose own rounding then counts too, has "fp32 " before its name.
    """
    by_ranks = defaultdict(list)
    for case in cases:
        for name in (case.model, *([case.reference_model] if case.reference == "online" else [])):
            if not (folder / name).exists():
                save_model(case, name, folder / name / "hf")
                import_hf(folder / name / "hf", folder / name / "imported")
        by_ranks[case.num_ranks].append(case)
    expected = functools.cache(_oracle)
    measured = {}
    for num_ranks, group in sorted(by_ranks.items()):
        by_rank = run_ranks(run_cases, num_ranks, group, folder, timeout=300 + 60 * len(group))
        for index, case in enumerate(group):
            reports = next(reports[index] for reports in reversed(by_rank) if reports[index])
            ours = result(case, reports, folder)
            single = differences(ours, expected(case.problem, torch.float32))
            measured[case.name] = {
                **differences(ours, expected(case.problem, torch.float64)),
                **{f"fp32 {name}": difference for name, difference in single.items()},
            }
    return measured


def worst(found: dict[str, float]) -> float:
    """The largest difference from the float64 oracle: the fp32 one's own rounding is not the product's error."""
    return max(difference for name, difference in found.items() if not name.startswith("fp32 "))


def _oracle(case: Case, dtype: torch.dtype) -> Result:
    return oracle(case, random_pairs(case), dtype)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    return measure(sample(), tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def measured_rest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    return measure(the_rest(), tmp_path_factory.mktemp("rest"))


def the_rest() -> list[Case]:
    """The other cases: `make test-all`."""
    sampled = sample()
    return [case for case in all_cases() if case not in sampled]


@pytest.mark.timeout(1800)  # the first one runs them all
@pytest.mark.parametrize("case", sample(), ids=lambda case: case.name)
def test_equals_oracle(case: Case, measured: dict[str, dict[str, float]]) -> None:
    found = measured[case.name]
    assert worst(found) <= TOLERANCE, found


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("case", the_rest(), ids=lambda case: case.name)
def test_equals_oracle_in_every_combination(case: Case, measured_rest: dict[str, dict[str, float]]) -> None:
    found = measured_rest[case.name]
    assert worst(found) <= TOLERANCE, found


def test_the_cases_meet_every_possible_pair_of_switches() -> None:
    cases = all_cases()
    assert len({case.name for case in cases}) == len(cases) >= 200
    fields = ("tp", "pp", "cp", "dp", *SWITCHES)
    met = set[Pair]().union(*(pairs_of({name: getattr(case, name) for name in fields}) for case in cases))
    assert possible_pairs() <= met
    assert len(sample()) == 12
