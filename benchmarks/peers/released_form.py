"""LongPO as its released trainer computes it, in plain PyTorch: ``python -m benchmarks.peers.released_form JOB``.

Chosen and rejected are two whole sequences, each with all its logits in fp32; the reference is in memory and reads the
short contexts in every step; the NLL is of all tokens of trunk and chosen answer. JOB is as for trl_dpo.py.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

ANSWERS = ("chosen", "rejected")


def main(job: dict[str, Any]) -> None:
    """Train, and write what was measured."""
    torch.set_num_threads(job["threads"])
    model, reference = (load(job[name], job["device"]) for name in ("model", "reference"))
    model.train()
    if job["recompute"]:
        model.gradient_checkpointing_enable()
    make = {"adam": torch.optim.AdamW, "sgd": torch.optim.SGD}[job["optimizer"]]
    optimizer = make(model.parameters(), lr=job["learning_rate"], weight_decay=0.0)
    seconds: list[float] = []
    losses: list[float] = []
    for pair in json.loads(Path(job["pairs"]).read_text())[: job["steps"]]:
        began = time.perf_counter()
        loss = loss_of(model, reference, pair, job)
        loss.backward()
        if job["clip"]:
            torch.nn.utils.clip_grad_norm_(model.parameters(), job["clip"])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
    if job["save"]:
        model.save_pretrained(job["save"])
    found: dict[str, Any] = {"seconds": seconds, "losses": losses}
    if job["device"] == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    Path(job["result"]).write_text(json.dumps(found))


def load(folder: str, device: str) -> Any:
    """In fp32 on a CPU, in bf16 on a GPU."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.to(device)


def loss_of(model: Any, reference: Any, pair: dict[str, list[int]], job: dict[str, Any]) -> Tensor:
    """Nats."""
    policy = {answer: token_logps(model, pair["prompt_ids"], pair[f"{answer}_ids"]) for answer in ANSWERS}
    with torch.no_grad():
        frozen = {
            answer: token_logps(reference, pair["short_prompt_ids"], pair[f"{answer}_ids"])[
                -len(pair[f"{answer}_ids"]) :
            ]
            for answer in ANSWERS
        }
    gaps = {answer: policy[answer][-len(frozen[answer]) :].sum() - frozen[answer].sum() for answer in ANSWERS}
    preference = -logsigmoid(job["beta"] * (gaps["chosen"] - gaps["rejected"]))
    return job["nll_coef"] * -policy["chosen"].mean() + job["pref_coef"] * preference


def token_logps(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """Of every token but the first, [S - 1], nats."""
    ids_1S = torch.tensor([prompt + answer], device=model.device)
    logits_SV = model(input_ids=ids_1S, use_cache=False).logits[0, :-1].float()
    return logits_SV.log_softmax(-1).gather(1, ids_1S[0, 1:, None])[:, 0]


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
