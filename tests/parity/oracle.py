"""The objective computed another way: Hugging Face model, every conversation a full sequence of its own, plain
autograd.

Nothing of megatron_longpo's mathematics is used here: every objective is written again, from its paper. The reference
log-probs are given, so that what is compared is the policy, or computed from the conversations in the same way.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.parity.cases import VOCAB, Case, Sample, coefficients
from tests.unit.hf.models import save_tokenizer


@dataclass
class Result:
    """What one training step computes: means over the pairs, and the gradient of the mean loss."""

    reports: dict[str, float]
    gradients: dict[str, torch.Tensor]


def random_model(case: Case, name: str) -> PreTrainedModel:
    """A small model with every feature of its kind, in fp32; weights large enough that attention is not uniform."""
    torch.manual_seed(len(name))
    config = AutoConfig.for_model(
        case.architecture,
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=12,
        max_position_embeddings=256,
        rope_theta=500.0,
        tie_word_embeddings=case.tied,
        initializer_range=0.2,
        sliding_window=None,
        attn_implementation="eager",
    )
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:  # created as zeros and ones, which would hide a lost one
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return model


def save_model(case: Case, name: str, folder: Path) -> None:
    """Save a model of the case as a Hugging Face folder; its tokenizer, which import-hf asks for, is never used."""
    random_model(case, name).save_pretrained(folder)
    save_tokenizer(folder)


def oracle(case: Case, pairs: list[Sample], dtype: torch.dtype) -> Result:
    """One step on ``pairs`` in ``dtype`` (fp32 or float64)."""
    model = random_model(case, case.model).to(dtype)
    if case.reference == "online":
        frozen = random_model(case, case.reference_model).to(dtype)
        pairs = [_scored(frozen, pair) for pair in pairs]
    rows = [_pair(model, pair, case) for pair in pairs]
    means = {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}
    means["loss"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Result({name: value.item() for name, value in means.items()}, gradients)


def _pair(model: PreTrainedModel, pair: Sample, case: Case) -> dict[str, Any]:
    objective, c = case.objective, coefficients(case.objective)
    context = "short" if objective.startswith("solopo") else "long"  # of the preference and the NLL
    sides = {"sft": ["chosen"], "sft-constrained": ["chosen"], "sft-rejected": ["rejected"]}
    logps = {side: _logps(model, pair, context, side) for side in sides.get(objective, ["chosen", "rejected"])}
    trained = logps["rejected" if objective == "sft-rejected" else "chosen"]
    counted = trained if case.nll_over_all else [(logp[turn > 0], turn) for logp, turn in trained]
    nll = -sum(logp.sum() for logp, _ in counted) / sum(len(logp) for logp, _ in counted)
    found = {"nll": nll} | {f"policy_{side}_logp": sum(_turns(of_side)) for side, of_side in logps.items()}
    added, reports = _terms(model, pair, objective, logps, c)
    return {"loss": c["nll_coef"] * nll + added, **found, **reports}


def _terms(model: PreTrainedModel, pair: Sample, objective: str, logps: Any, c: dict[str, float]) -> Any:
    """(what is added to the weighted NLL, reports)."""
    if objective in ("sft", "sft-rejected"):
        return 0.0, {}
    if objective == "sft-constrained":
        gaps = [a - b for a, b in zip(_turns(logps["chosen"]), _reference(pair, "short", "chosen"), strict=True)]
        lengths = [stop - start for start, stop in pair["long"]["chosen_spans"].tolist()]
        constraint = sum(gap**2 / 2 / n for gap, n in zip(gaps, lengths, strict=True)) / len(gaps)
        return c["alpha"] * constraint, {"constraint": constraint}
    if not objective.startswith("solopo"):
        return _preference(pair, objective, logps, c, "long")
    kind = objective.split("-")[1]
    added, reports = _preference(pair, kind, logps, c, "short")
    on_long = _logps(model, pair, "long", "chosen")
    if kind == "dpo":
        long_reference = "short" if objective.endswith("short-reference") else "long"
        short, long = (
            c["beta"] * (sum(_turns(of)) - sum(_reference(pair, read, "chosen")))
            for of, read in ((logps["chosen"], "short"), (on_long, long_reference))
        )
    elif kind == "simpo":
        short, long = (c["beta"] * _mean(of) for of in (logps["chosen"], on_long))
    else:
        short, long = (_log_odds(of) for of in (logps["chosen"], on_long))
    constraint = torch.abs(short - long)
    reports |= {"constraint": constraint, "policy_long_chosen_logp": sum(_turns(on_long))}
    return added + c["alpha"] * constraint, reports


def _preference(pair: Sample, kind: str, logps: Any, c: dict[str, float], context: str) -> tuple[Any, dict[str, Any]]:
    """A preference on the log-probs of ``context``: (weighted, reports)."""

    def softplus(x: Any) -> Any:
        return torch.log1p(torch.exp(x))

    if kind in ("simpo", "orpo"):
        of_side = _mean if kind == "simpo" else _log_odds
        margin = of_side(logps["chosen"]) - of_side(logps["rejected"])
        loss = softplus(-c["beta"] * margin + c["gamma"]) if kind == "simpo" else softplus(-margin)
    else:
        read = "long" if kind == "dpo" and context == "long" else "short"
        gaps = {
            side: [a - b for a, b in zip(_turns(logps[side]), _reference(pair, read, side), strict=True)]
            for side in ("chosen", "rejected")
        }
        margins = [a - b for a, b in zip(gaps["chosen"], gaps["rejected"], strict=True)]
        margin, beta, wrong = sum(margins), c["beta"], c.get("label_smoothing", 0.0)
        if kind == "hinge":
            loss = torch.clamp(1 - beta * margin, min=0)
        elif kind == "ipo":
            loss = (margin - 0.5 / beta) ** 2
        else:
            each = margins if kind == "longpo-per-turn" else [margin]
            loss = sum((1 - wrong) * softplus(-beta * m) + wrong * softplus(beta * m) for m in each) / len(each)
    return c["pref_coef"] * loss, {"preference_loss": loss, "margin": margin}


def _logps(model: PreTrainedModel, pair: Sample, context: str, side: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The conversations of a pair on that context, each as _logp gives it."""
    return [_logp(model, one, side) for one in ([pair["long"]] if context == "long" else pair["short"])]


def _turns(logps: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    """The sum of each turn's response tokens; turns are numbered from 1."""
    return [logp[turn == number].sum() for logp, turn in logps for number in range(1, int(turn.max()) + 1)]


def _mean(logps: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Over all response tokens."""
    return torch.cat([logp[turn > 0] for logp, turn in logps]).mean()


def _log_odds(logps: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    p = torch.exp(_mean(logps))
    return torch.log(p / (1 - p))


def _logp(model: PreTrainedModel, conversation: Sample, branch: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probs of trunk + branch but for its first token, the turn whose response each belongs to, 0 for none)."""
    tokens = torch.tensor([*conversation["trunk"].tolist(), *conversation[branch].tolist()])
    logits = model(tokens[None]).logits[0].double()
    logp = logits.log_softmax(-1)[:-1].gather(1, tokens[1:, None])[:, 0]  # logp[i] is that of token i + 1
    offset = len(conversation["trunk"]) - 1
    turn = torch.zeros(len(logp), dtype=torch.int64)
    for number, (start, stop) in enumerate(conversation[f"{branch}_spans"].tolist(), start=1):
        turn[offset + start : offset + stop] = number
    return logp, turn


@torch.no_grad()
def _scored(frozen: PreTrainedModel, pair: Sample) -> Sample:
    """The pair with what a reference in memory says of it."""
    reads = [(context, side) for context in ("short", "long") for side in ("chosen", "rejected")]
    found = {f"reference_{context}_{side}": _turns(_logps(frozen, pair, context, side)) for context, side in reads}
    return {**pair, **found}


def _reference(pair: Sample, context: str, side: str) -> list[float]:
    """The reference's log-prob of each turn."""
    return [float(turn) for turn in pair[f"reference_{context}_{side}"]]
