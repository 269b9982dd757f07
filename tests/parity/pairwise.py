"""The configurations of the parity tests: every parallel layout, with all pairs of switches covered.

    python -m tests.parity.pairwise

prints them with the seed. Ten cases or more for each layout of at most eight ranks; each case is the candidate, of a
number drawn at random, that meets the most pairs of values not met before.
"""

import argparse
import functools
import itertools
import random
from collections.abc import Iterator
from typing import Any

from megatron_longpo.objective.objectives import OBJECTIVES
from tests.parity.cases import Case

SEED = 20261126
CASES_PER_LAYOUT = 10
CANDIDATES = 200

LAYOUTS = [
    (tp, pp, cp, dp)
    for tp, pp, cp, dp in itertools.product((1, 2), (1, 2), (1, 2, 4, 8), (1, 2))
    if tp * pp * cp * dp <= 8
]
SWITCHES: dict[str, tuple[Any, ...]] = {
    "objective": tuple(OBJECTIVES),
    "architecture": ("llama", "mistral", "qwen2", "qwen3"),
    "tied": (False, True),
    "sequence_parallel": (False, True),
    "distributed_optimizer": (False, True),
    "recompute": ("none", "full", "selective", "keep-attention"),
    "pairs_per_microbatch": (1, 2),
    "cp_comm_type": ("p2p", "all_gather", "a2a", "a2a+p2p"),
    "num_turns": (1, 2, 3, 4),
    "nll_over_all": (True, False),
    "reference": ("cached", "online"),
    "edges": (False, True),
}
CONSTRAINED = ("sequence_parallel", "cp_comm_type", "objective", "reference")
"""The switches that is_possible looks at."""
Pair = tuple[tuple[str, Any], tuple[str, Any]]


def is_possible(values: dict[str, Any]) -> bool:
    """The switches have a meaning in the layout: a switch that does nothing is left at its first value."""
    tp, cp = values["tp"], values["cp"]
    if values["sequence_parallel"] and tp == 1:
        return False
    if values["reference"] == "online" and not OBJECTIVES[values["objective"]].reference:
        return False
    match values["cp_comm_type"]:
        case "p2p":
            return True
        case "all_gather":
            return cp > 1
        case "a2a":
            return cp > 1 and 4 % (tp * cp) == 0  # 4 key-value heads
        case _:
            return cp > 2


def pairs_of(values: dict[str, Any]) -> set[Pair]:
    """All pairs of (name, value)."""
    return set(itertools.combinations(sorted(values.items()), 2))


def possible_pairs() -> set[Pair]:
    """All pairs that some possible case has."""
    names = ("tp", "pp", "cp", "dp", *CONSTRAINED)
    switches = itertools.product(LAYOUTS, *(SWITCHES[name] for name in CONSTRAINED))
    bound = [dict(zip(names, (*layout, *rest), strict=True)) for layout, *rest in switches]
    free = [(name, value) for name, values in SWITCHES.items() if name not in CONSTRAINED for value in values]
    found = {pair for pair in map(_ordered, itertools.combinations(free, 2)) if pair[0][0] != pair[1][0]}
    for values in filter(is_possible, bound):
        found |= pairs_of(values) | set(map(_ordered, itertools.product(values.items(), free)))
    return found


def _ordered(pair: Pair) -> Pair:
    first, second = sorted(pair)
    return first, second


@functools.cache
def all_cases() -> list[Case]:
    """Ten cases a layout, in the order of LAYOUTS, then what is missing; the same ones in every process."""
    return list(_generate())


def _generate() -> Iterator[Case]:
    rng = random.Random(SEED)
    met = set[Pair]()

    def best(layouts: list[tuple[int, int, int, int]]) -> Case:
        candidates = [
            dict(zip(("tp", "pp", "cp", "dp"), rng.choice(layouts), strict=True))
            | {name: rng.choice(values) for name, values in SWITCHES.items()}
            for _ in range(CANDIDATES)
        ]
        found = max(filter(is_possible, candidates), key=lambda values: len(pairs_of(values) - met))
        met.update(pairs_of(found))
        return Case(**found, seed=rng.randrange(2))

    for layout in LAYOUTS:
        yield from (best([layout]) for _ in range(CASES_PER_LAYOUT))
    possible = possible_pairs()
    while possible - met:
        yield best(LAYOUTS)


def sample() -> list[Case]:
    """What `make test` runs: one case of each of the twelve layouts of at most four ranks."""
    first = {(case.tp, case.pp, case.cp, case.dp): case for case in reversed(all_cases())}
    return [case for case in first.values() if case.num_ranks <= 4]


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"seed {SEED}")
    for case in all_cases():
        print(case.name, case.seed)
