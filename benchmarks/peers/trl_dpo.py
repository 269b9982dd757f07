"""A run of TRL's DPOTrainer on given token ids: ``python -m benchmarks.peers.trl_dpo JOB``, in an environment with TRL.

Its defaults stand, but for the precision (fp32 on a CPU, bf16 on a GPU), one pair a step, no limit of length, and what
the job says. JOB is a JSON file that benchmarks/peers/sides.py writes (its class Job); the job's ``result`` gets the
seconds and the loss of every step, and the log-probs and seconds of every pair that the reference read. With no steps
it only scores.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportMissingImports]

OPTIMIZERS = {"adam": "adamw_torch", "sgd": "sgd"}


class OnTokens(DPOTrainer):
    """Takes the pairs as token ids, where DPOTrainer would make them out of texts, and times the reference."""

    scored: list[dict[str, float]]

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        self.scored = []
        return dataset

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        began = time.perf_counter()
        chosen, rejected = super().compute_ref_log_probs(model, inputs)
        found = {"chosen": float(chosen), "rejected": float(rejected)}
        self.scored.append({"seconds": time.perf_counter() - began, **found})
        return chosen, rejected


class Clock(TrainerCallback):
    """Seconds of every step, its optimizer included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._began)


def main(job: dict[str, Any]) -> None:
    """Train, and write what was measured."""
    torch.set_num_threads(job["threads"])
    clock = Clock()
    dtype = torch.float32 if job["device"] == "cpu" else torch.bfloat16
    config = DPOConfig(
        output_dir=str(Path(job["result"]).with_suffix(".trl")),
        per_device_train_batch_size=1,
        max_steps=job["steps"] or 1,
        max_length=None,
        beta=job["beta"],
        bf16=job["device"] == "cuda",
        gradient_checkpointing=job["recompute"],
        precompute_ref_log_probs=job["reference_is_precomputed"],
        optim=OPTIMIZERS[job["optimizer"]],
        learning_rate=job["learning_rate"],
        lr_scheduler_type="constant",
        max_grad_norm=job["clip"],
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=job["device"] == "cpu",
        seed=0,
        train_sampling_strategy="sequential",
    )
    trainer = OnTokens(
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype),
        ref_model=AutoModelForCausalLM.from_pretrained(job["reference"], dtype=dtype),
        args=config,
        train_dataset=Dataset.from_list(json.loads(Path(job["pairs"]).read_text())),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[clock],
    )
    if job["steps"]:
        trainer.train()
    if job["save"]:
        trainer.save_model(job["save"])
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    found = {"seconds": clock.seconds, "losses": losses, "scored": trainer.scored}
    if job["device"] == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated()
    Path(job["result"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
