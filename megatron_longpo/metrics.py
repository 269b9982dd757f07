"""Every number that a training run reports: its name, unit and meaning.

In the metrics file a line is a step and its split, and a number stands at its path: ``{"step": 3, "split": "train",
"by_turn": {"1": {"margin": 0.5}}}``. W&B, TensorBoard and the log name it by split and path:
``train/by_turn/1/margin``.
docs/watch.md is held to this table by a test, and the report groups its curves by it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from megatron_longpo.strict_json import is_object

SPLITS = ("train", "valid")
ANY = "*"
"""A part of a path that is a number: a turn, from 1, or the upper bound of a trunk's length in tokens."""


class Metric(NamedTuple):
    """One number."""

    path: str
    unit: str
    meaning: str
    held_out: bool = True
    """It is also reported of held-out pairs."""


def _answers(pattern: str, unit: str, meaning: str) -> list[Metric]:
    """One for each answer; {} stands for it."""
    return [Metric(pattern.format(one), unit, meaning.format(one)) for one in ("chosen", "rejected")]


def _broken_down(by: str, names: Mapping[str, str]) -> list[Metric]:
    return [Metric(f"{by}/{ANY}/{name}", unit, "the same, of these alone") for name, unit in names.items()]


_PARTS = {"margin": "nats", "accuracy": "share", "chosen_gap": "nats", "rejected_gap": "nats"}
_KINDS = {"trunk": "of the trunks", "branches": "of the branches", "padding": "of padding, no loss reads it"}

GROUPS: Mapping[str, tuple[Metric, ...]] = {
    "Loss": (
        Metric("loss", "", "what is minimised, mean over the pairs"),
        Metric("nll", "nats/token", "negative log-likelihood"),
        Metric("preference_loss", "", "the preference's term, without its weight"),
        Metric("constraint", "", "what ties the long context to the short one (SoLoPO, `sft-constrained`)"),
    ),
    "Preference": (
        Metric("margin", "nats", "gap of the chosen answer minus gap of the rejected one (SimPO: nats/token)"),
        Metric("accuracy", "share", "pairs whose margin is above 0"),
        *_answers("{}_reward", "", "beta times the gap of the {} answer"),
        Metric("reward_margin", "", "beta times the margin"),
        *_answers(
            "{}_gap", "nats", "policy minus reference: in LongPO the {} answer on the long and the short context"
        ),
        Metric("long_short_gap", "nats", "the policy's chosen answer on the long minus on the short context"),
        *_answers("policy_{}_logp", "nats", "log-prob of the {} answer, all turns"),
        Metric("policy_long_chosen_logp", "nats", "the same on the long context, where both are read"),
        *_answers("reference_{}_logp", "nats", "log-prob of the {} answer by the reference"),
        Metric("reference_long_chosen_logp", "nats", "the same on the long context, where both are read"),
    ),
    "Gradient and learning rate": (
        Metric("grad_norm", "", "before clipping; null where the step was left out", held_out=False),
        Metric("learning_rate", "", "of the step", held_out=False),
    ),
    "Speed and memory": (
        Metric("seconds", "s", "the step, without evaluation and saving", held_out=False),
        Metric("phase_seconds/data", "s", "the last rank waited for micro-batches", held_out=False),
        Metric("phase_seconds/forward_backward", "s", "its schedule, an online reference included", held_out=False),
        Metric("phase_seconds/optimizer", "s", "its optimizer's step", held_out=False),
        Metric("phase_seconds/other", "s", "the rest: logging, checks", held_out=False),
        *(Metric(f"tokens_per_second/{kind}", "tokens/s", of, held_out=False) for kind, of in _KINDS.items()),
        Metric("padding_share", "share", "padding among all tokens", held_out=False),
        Metric("tflops", "TFLOP/s a GPU", "what is computed, a trunk once; no recomputation", held_out=False),
        Metric("pair_equivalent_tflops", "TFLOP/s a GPU", "as if each answer had a trunk of its own", held_out=False),
        Metric("mfu", "share", "`tflops` of the GPU's peak", held_out=False),
        Metric("pair_equivalent_mfu", "share", "`pair_equivalent_tflops` of the GPU's peak", held_out=False),
        Metric("peak_memory_gib", "GiB", "most so far on any rank: tensors on its GPU; on CPU its RSS", held_out=False),
        Metric("num_pairs", "pairs", "in the step", held_out=False),
        *(Metric(f"num_tokens/{kind}", "tokens", of, held_out=False) for kind, of in _KINDS.items()),
        Metric("resumed_from", "step", "that this start of the program went on from", held_out=False),
    ),
    "By length of the trunk": tuple(
        _broken_down("by_length", {"loss": "", "nll": "nats/token", **_PARTS}),
    ),
    "By turn": tuple(_broken_down("by_turn", {**_PARTS, "long_short_gap": "nats"})),
}

METRICS = {metric.path: metric for group in GROUPS.values() for metric in group}

OF_THE_MACHINE = ("seconds", "phase_seconds", "tokens_per_second", "tflops", "pair_equivalent_tflops", "mfu")
OF_THE_MACHINE += ("pair_equivalent_mfu", "peak_memory_gib", "resumed_from")
"""Fields of a line that two runs of the same command need not share; all others they do."""


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of the metrics file by path; null, for what is not there or not finite, is left out."""
    found: dict[str, float] = {}
    _add_numbers(found, "", {name: value for name, value in line.items() if name not in ("step", "split")})
    return found


def _add_numbers(found: dict[str, float], above: str, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if is_object(value):
            _add_numbers(found, f"{above}{name}/", value)
        elif value is not None:
            found[above + name] = value


def metric_of(path: str) -> Metric | None:
    """The metric at a path; None for one that this release does not have."""
    by, *rest = path.split("/")
    general = f"{by}/{ANY}/{rest[-1]}" if len(rest) == 2 else path
    return METRICS.get(general)
