"""The objectives, one record each. LongPO is arXiv 2502.13922, section 3, in its released form.

    loss of a pair = nll_coef * NLL + what terms.py adds

To add an objective, write its function in terms.py and its record here, and its formula in tests/parity/oracle.py.
All else (the trees of a step, the reference log-probs, options, reports, the model card) follows from the record.
docs/objectives.md has the formulas.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from torch import Tensor

from megatron_longpo.data.render import Context
from megatron_longpo.data.trees import TreeKind
from megatron_longpo.errors import UserError
from megatron_longpo.objective import terms
from megatron_longpo.objective.preferences import (
    Coefficients,
    Policy,
    Reference,
    hinge,
    ipo,
    one_sigmoid,
    sigmoid_per_turn,
)
from megatron_longpo.objective.reads import READS
from megatron_longpo.objective.terms import Terms, TermsOf


@dataclass(frozen=True, slots=True)
class Option:
    """A coefficient that the user can set, as ``--longpo-NAME``."""

    help: str
    above: float = -math.inf
    """Values must be above this,"""
    at_least: float = 0.0
    """at least this,"""
    below: float = math.inf
    """and below this."""

    @property
    def range(self) -> str:
        """The allowed values in words."""
        low = f"above {self.above:g}" if self.above > -math.inf else f"at least {self.at_least:g}"
        return low + (f" and below {self.below:g}" if self.below < math.inf else "")

    def allows(self, value: float) -> bool:
        """Whether ``value`` is in range; NaN never is, infinity is not."""
        return self.above < value and self.at_least <= value < self.below


OPTIONS = {
    "beta": Option("inverse temperature of the margin", above=0.0),
    "pref_coef": Option("weight of the preference term"),
    "nll_coef": Option("weight of the NLL term"),
    "label_smoothing": Option("probability that the preferred answer is the worse", below=0.5),
    "gamma": Option("target margin of SimPO"),
    "alpha": Option("weight of the term that ties the long context to the short one"),
}
"""The fields of Coefficients."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What an objective reads, computes, takes as options and is called."""

    name: str
    """The value of --longpo-objective."""
    terms: TermsOf
    nll_context: Context = "long"
    """The context on which the NLL is taken, of the first branch."""
    defaults: Mapping[str, float]
    """The coefficients that the objective has, with their defaults."""
    description: str
    """What the training was, for a model card."""
    tags: tuple[str, ...] = field(default=())
    """Tags of a model card, besides ``long-context``."""

    @property
    def reads(self) -> tuple[TreeKind, ...]:
        """What is read of the policy. The first is the long tree."""
        return READS[self.name].policy

    @property
    def reference(self) -> tuple[TreeKind, ...]:
        """What is read of the reference; empty without one."""
        return READS[self.name].reference

    def coefficients(self, given: Mapping[str, float | None]) -> Coefficients:
        """Join the user's coefficients (None: not given) with the defaults.

        Raises:
            UserError: the objective does not have one that is given, one is out of range, or nothing would be trained.
        """
        values = dict(self.defaults)
        for name, value in given.items():
            option = option_name(name)
            if value is None:
                continue
            if name not in self.defaults:
                having = ", ".join(one.name for one in OBJECTIVES.values() if name in one.defaults)
                raise UserError(f"--longpo-objective {self.name} has no {option}; remove it, or choose {having}")
            if not OPTIONS[name].allows(value):
                raise UserError(f"{option} {value:g} must be {OPTIONS[name].range}")
            values[name] = value
        if not any(values.get(name) for name in ("nll_coef", "pref_coef", "alpha")):
            weights = " and ".join(option_name(name) for name in ("nll_coef", "pref_coef", "alpha") if name in values)
            raise UserError(f"{weights} are 0: there is nothing to train; raise one of them")
        return Coefficients(**values)

    def loss(self, policy: Policy, reference: Reference, nll: Tensor, c: Coefficients) -> tuple[Tensor, Terms]:
        """Compute the loss of one pair, and the terms in it.

        Args:
            policy, reference: all that ``reads`` and ``reference`` ask for.
            nll: mean negative log-likelihood, nats per token.
        """
        added = self.terms(policy, reference, c)
        return c.nll_coef * nll + added.weighted, added

    def settings(self, c: Coefficients) -> dict[str, str | float]:
        """Name the objective and the coefficients that it has."""
        return {"name": self.name} | {name: value for name, value in asdict(c).items() if name in self.defaults}


def option_name(coefficient: str) -> str:
    """The option of a field of Coefficients."""
    return "--longpo-" + coefficient.replace("_", "-")


def default_text(coefficient: str) -> str:
    """The defaults of a coefficient, by objective where they differ, for a help text."""
    by_value: dict[float, list[str]] = {}
    for one in OBJECTIVES.values():
        if coefficient in one.defaults:
            by_value.setdefault(one.defaults[coefficient], []).append(one.name)
    if len(by_value) == 1:
        return f"{next(iter(by_value)):g}"
    return "; ".join(f"{value:g} for {', '.join(names)}" for value, names in by_value.items())


_RELEASED = {"beta": 0.01, "pref_coef": 0.01, "nll_coef": 1.0}
_SMOOTHED = _RELEASED | {"label_smoothing": 0.0}
_SIMPO = {"beta": 2.0, "gamma": 1.0, "pref_coef": 1.0, "nll_coef": 0.0}
_ORPO = {"pref_coef": 0.1, "nll_coef": 1.0}
_LONGPO = "LongPO (arXiv 2502.13922), short-to-long preference optimisation"
_LONGPO_TAGS = ("longpo", "preference-optimization")
_SOLOPO = (
    "SoLoPO (arXiv 2505.11166), a preference on short contexts and a tie between the rewards on short and long ones"
)
_SOLOPO_TAGS = ("solopo", "preference-optimization")
_SOLOPO_DPO = {"beta": 0.1, "pref_coef": 1.0, "nll_coef": 0.0, "label_smoothing": 0.0, "alpha": 3.0}
_SHORT_DPO = terms.against_reference("short", "short", one_sigmoid)

OBJECTIVES = {
    one.name: one
    for one in (
        Objective(
            name="longpo",
            terms=terms.against_reference("long", "short", one_sigmoid),
            defaults=_SMOOTHED,
            description=_LONGPO,
            tags=_LONGPO_TAGS,
        ),
        Objective(
            name="longpo-per-turn",
            terms=terms.against_reference("long", "short", sigmoid_per_turn),
            defaults=_SMOOTHED,
            description=f"{_LONGPO}, with one sigmoid per turn",
            tags=_LONGPO_TAGS,
        ),
        Objective(
            name="hinge",
            terms=terms.against_reference("long", "short", hinge),
            defaults=_RELEASED,
            description=f"{_LONGPO}, with the hinge loss (arXiv 2305.10425)",
            tags=_LONGPO_TAGS,
        ),
        Objective(
            name="ipo",
            terms=terms.against_reference("long", "short", ipo),
            defaults=_RELEASED,
            description=f"{_LONGPO}, with the IPO loss (arXiv 2310.12036)",
            tags=_LONGPO_TAGS,
        ),
        Objective(
            name="dpo",
            terms=terms.against_reference("long", "long", one_sigmoid),
            defaults=_SMOOTHED,
            description="DPO (arXiv 2305.18290) on short-to-long pairs, with a reference that reads the long context",
            tags=("dpo", "preference-optimization"),
        ),
        Objective(
            name="simpo",
            terms=terms.simpo("long"),
            defaults=_SIMPO,
            description="SimPO (arXiv 2405.14734) on short-to-long pairs",
            tags=("simpo", "preference-optimization"),
        ),
        Objective(
            name="orpo",
            terms=terms.orpo("long"),
            defaults=_ORPO,
            description="ORPO (arXiv 2403.07691) on short-to-long pairs",
            tags=("orpo", "preference-optimization"),
        ),
        Objective(
            name="solopo-dpo",
            terms=terms.solopo(_SHORT_DPO, terms.dpo_reward("long")),
            nll_context="short",
            defaults=_SOLOPO_DPO,
            description=f"{_SOLOPO}, with DPO",
            tags=_SOLOPO_TAGS,
        ),
        Objective(
            name="solopo-dpo-short-reference",
            terms=terms.solopo(_SHORT_DPO, terms.dpo_reward("short")),
            nll_context="short",
            defaults=_SOLOPO_DPO,
            description=f"{_SOLOPO}, with DPO and a reference that reads short contexts only",
            tags=_SOLOPO_TAGS,
        ),
        Objective(
            name="solopo-simpo",
            terms=terms.solopo(terms.simpo("short"), terms.simpo_reward),
            nll_context="short",
            defaults=_SIMPO | {"alpha": 1.0},
            description=f"{_SOLOPO}, with SimPO",
            tags=_SOLOPO_TAGS,
        ),
        Objective(
            name="solopo-orpo",
            terms=terms.solopo(terms.orpo("short"), terms.orpo_reward),
            nll_context="short",
            defaults=_ORPO | {"alpha": 1.0},
            description=f"{_SOLOPO}, with ORPO",
            tags=_SOLOPO_TAGS,
        ),
        Objective(
            name="sft",
            terms=terms.nothing,
            defaults={"nll_coef": 1.0},
            description="supervised fine-tuning on the chosen answers of short-to-long pairs",
            tags=("sft",),
        ),
        Objective(
            name="sft-rejected",
            terms=terms.nothing,
            defaults={"nll_coef": 1.0},
            description="supervised fine-tuning on the rejected answers of short-to-long pairs, a baseline",
            tags=("sft",),
        ),
        Objective(
            name="sft-constrained",
            terms=terms.short_to_long_constraint,
            defaults={"nll_coef": 1.0, "alpha": 0.01},
            description="supervised fine-tuning on the chosen answers of short-to-long pairs with LongPO's "
            "short-to-long constraint (arXiv 2502.13922)",
            tags=("sft",),
        ),
    )
}
"""All objectives by their names."""
