"""The objective computed another way: Hugging Face model, two separate full sequences a pair, plain autograd.

Nothing of megatron_longpo is used here. The reference log-probs are given, so that what is compared is the policy, or
computed from the short conversations in the same way.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.parity.cases import BETA, NLL_COEF, PREF_COEF, VOCAB, Case, Sample
from tests.unit.hf.models import save_tokenizer


@dataclass
class Result:
    """What one training step computes: means over the pairs, and the gradient of the mean loss."""

    reports: dict[str, float]
    gradients: dict[str, torch.Tensor]


def random_model(case: Case) -> PreTrainedModel:
    """A small model with every feature of its kind, in fp32; weights large enough that attention is not uniform."""
    torch.manual_seed(len(case.model))
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


def save_model(case: Case, folder: Path) -> None:
    """Save the case's model as a Hugging Face folder; its tokenizer, which import-hf asks for, is never used."""
    random_model(case).save_pretrained(folder)
    save_tokenizer(folder)


def oracle(case: Case, pairs: list[Sample], dtype: torch.dtype) -> Result:
    """One step on ``pairs`` in ``dtype`` (fp32 or float64)."""
    model = random_model(case).to(dtype)
    rows = [_pair(model, pair, case.nll_over_all) for pair in pairs]
    means = {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}
    means["loss"].backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Result({name: value.item() for name, value in means.items()}, gradients)


def _pair(model: PreTrainedModel, pair: Sample, nll_over_all: bool) -> dict[str, torch.Tensor]:
    sums, means = {}, {}
    for branch in ("chosen", "rejected"):
        logp, response = _logp(model, pair, branch)
        sums[branch] = logp[response].sum()
        means[branch] = -logp.mean() if nll_over_all else -logp[response].mean()
    reference = {branch: _reference(model, pair, branch) for branch in sums}
    margin = (sums["chosen"] - reference["chosen"]) - (sums["rejected"] - reference["rejected"])
    preference = torch.log1p(torch.exp(-BETA * margin))
    return {
        "loss": NLL_COEF * means["chosen"] + PREF_COEF * preference,
        "nll": means["chosen"],
        "preference_loss": preference,
        "margin": margin,
        "policy_chosen_logp": sums["chosen"],
        "policy_rejected_logp": sums["rejected"],
    }


def _logp(model: PreTrainedModel, conversation: Sample, branch: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probs of trunk + branch but for its first token, which of them are of response tokens)."""
    tokens = torch.tensor([*conversation["trunk"].tolist(), *conversation[branch].tolist()])
    logits = model(tokens[None]).logits[0].double()
    logp = logits.log_softmax(-1)[:-1].gather(1, tokens[1:, None])[:, 0]  # logp[i] is that of token i + 1
    offset = len(conversation["trunk"]) - 1
    response = torch.zeros(len(logp), dtype=torch.bool)
    for start, stop in conversation[f"{branch}_spans"].tolist():
        response[offset + start : offset + stop] = True
    return logp, response


@torch.no_grad()
def _reference(model: PreTrainedModel, pair: Sample, branch: str) -> float:
    """Sum over the turns; online, the reference is the model before its step."""
    if "short" not in pair:
        return float(pair[f"reference_{branch}_logp"].sum())
    scored = (_logp(model, turn, branch) for turn in pair["short"])
    return float(sum(logp[response].sum() for logp, response in scored))
