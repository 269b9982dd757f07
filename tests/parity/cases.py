"""The configurations under test and the random pairs they run on."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_longpo.objective.objectives import OBJECTIVES

Sample = dict[str, Any]
"""As data/dataset.py yields it."""

VOCAB = 131  # odd: tp 2 needs a padding row, which must get no probability
COEFFICIENTS = {
    "beta": 0.5,
    "pref_coef": 2.0,
    "nll_coef": 0.7,
    "label_smoothing": 0.1,
    "gamma": 0.3,
    "alpha": 1.3,
}
"""Far from the defaults, where the preference term is 1e-4 of the gradient and an error in it would not show."""
SMALL_BETA = 0.02
"""Of hinge and ipo, whose gradients would be zero or enormous with the other: margins are about 10 nats."""


def coefficients(objective: str) -> dict[str, float]:
    """The coefficients under test that an objective has."""
    values = COEFFICIENTS | ({"beta": SMALL_BETA} if objective in ("hinge", "ipo") else {})
    return {name: values[name] for name in OBJECTIVES[objective].defaults}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training step in one parallel layout."""

    architecture: str
    """llama, mistral, qwen2 or qwen3."""
    objective: str = "longpo"
    tied: bool
    tp: int = 1
    pp: int = 1
    cp: int = 1
    dp: int = 1
    cp_comm_type: str = "p2p"
    """p2p, all_gather, a2a, or a2a+p2p with 2 ranks swapping heads."""
    sequence_parallel: bool = False
    distributed_optimizer: bool = False
    recompute: str = "none"
    """none, full, selective or keep-attention."""
    pairs_per_microbatch: int = 1
    trunk_multiple: int = 1
    """Trunks are padded to a multiple of this."""
    num_turns: int = 1
    nll_over_all: bool = True
    reference: str = "cached"
    """cached (log-probs that are given) or online (a second model that scores what the reference reads)."""
    edges: bool = False
    """Two of the pairs are extreme: see random_pairs."""
    seed: int = 0
    """Of the pairs."""
    num_pairs: int = field(default=4)

    @property
    def num_ranks(self) -> int:
        return self.tp * self.pp * self.cp * self.dp

    @property
    def model(self) -> str:
        """The name of its model; cases that differ in nothing the model knows share one."""
        return f"{self.architecture}-{'tied' if self.tied else 'untied'}"

    @property
    def reference_model(self) -> str:
        """The name of the model that is the online reference.

        Another one than the policy: were they equal, margins and SoLoPO's differences would be 0 and hide errors, and
        the latter's absolute value would have no gradient.
        """
        return f"{self.model}-reference"

    @property
    def problem(self) -> "Case":
        """The same step on one rank, plainly: what the oracle depends on."""
        one_rank = {"tp": 1, "pp": 1, "cp": 1, "dp": 1, "cp_comm_type": "p2p", "sequence_parallel": False}
        plainly = {"distributed_optimizer": False, "recompute": "none", "pairs_per_microbatch": 1, "trunk_multiple": 1}
        return replace(self, **one_rank, **plainly)

    @property
    def name(self) -> str:
        switches = [
            f"tp{self.tp}pp{self.pp}" + (f"cp{self.cp}" if self.cp > 1 else "") + f"dp{self.dp}",
            self.cp_comm_type if self.cp > 1 else "",
            self.model,
            self.objective,
            f"{self.num_turns}turns",
            self.recompute,
            f"pack{self.pairs_per_microbatch}" if self.pairs_per_microbatch > 1 else "",
            f"trunk{self.trunk_multiple}" if self.trunk_multiple > 1 else "",
            "sp" if self.sequence_parallel else "",
            "distopt" if self.distributed_optimizer else "",
            "" if self.nll_over_all else "nll-response",
            "online" if self.reference == "online" else "",
            "edges" if self.edges else "",
        ]
        return "-".join(switch for switch in switches if switch)


def random_pairs(case: Case) -> list[Sample]:
    """Pairs of uneven lengths with ``case.num_turns`` turns, and reference log-probs in a plausible range.

    With an online reference there are no log-probs. With ``edges`` the first pair's answers are nothing but the token
    that ends them and its instructions one token; the second has a trunk of three tokens, shorter than two a
    context-parallel rank, and so branches longer than a rank's part of it.
    """
    rng = np.random.default_rng(case.seed)
    pairs = [_random_pair(rng, case.num_turns) for _ in range(case.num_pairs)]
    if case.edges:
        pairs[0] = _random_pair(rng, case.num_turns, max_answer=1, max_instruction=1)
        pairs[1] = _random_pair(rng, case.num_turns, trunk=3)
    if case.reference == "online":
        pairs = [{name: pair[name] for name in ("long", "short", "weight")} for pair in pairs]
    return pairs


def _random_pair(rng: np.random.Generator, num_turns: int, **lengths: int) -> Sample:
    pair: Sample = {"long": _random_conversation(rng, num_turns, **lengths), "weight": np.array(1.0)}
    pair["short"] = [_random_conversation(rng, 1, **lengths) for _ in range(num_turns)]
    for context in ("short", "long"):
        for answer in ("chosen", "rejected"):
            starts, stops = pair["long"][f"{answer}_spans"].T
            pair[f"reference_{context}_{answer}"] = -5.0 * (stops - starts) + rng.normal(size=num_turns)
    return pair


def _random_conversation(
    rng: np.random.Generator, num_turns: int, trunk: int = 0, max_answer: int = 11, max_instruction: int = 5
) -> Sample:
    """``trunk`` 0: of any length; lengths in tokens, an answer's with the token that ends it."""
    first = rng.integers(VOCAB)
    limits = (num_turns, max_answer, max_instruction)
    chosen, chosen_spans = _random_branch(rng, first, *limits)
    rejected, rejected_spans = _random_branch(rng, first, *limits)
    return {
        "trunk": rng.integers(VOCAB, size=trunk or rng.integers(5, 60)),
        "chosen": chosen,
        "rejected": rejected,
        "chosen_spans": chosen_spans,
        "rejected_spans": rejected_spans,
    }


def _random_branch(
    rng: np.random.Generator, first: int, num_turns: int, max_answer: int, max_instruction: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(tokens, spans): the token that predicts the first answer, then the answers with instructions between them."""
    tokens, spans = [first], []
    for turn in range(num_turns):
        if turn:
            tokens += rng.integers(VOCAB, size=rng.integers(1, max_instruction + 1)).tolist()
        start = len(tokens)
        tokens += rng.integers(VOCAB, size=rng.integers(1, max_answer + 1)).tolist()
        spans.append((start, len(tokens)))
    return np.array(tokens), np.array(spans)
