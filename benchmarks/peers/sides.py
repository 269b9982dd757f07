"""The sides of a comparison with a peer: models and pairs for all, and a run of a side's program."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.random_runs import run_python
from benchmarks.released_models import MISTRAL_7B
from megatron_longpo.data.dataset import PairOrder
from megatron_longpo.data.indexed import PairWriter
from megatron_longpo.data.render import Branch, RenderedPair, TrunkAndBranches
from megatron_longpo.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from megatron_longpo.metrics_file import read_metrics
from tests.tokenizers import chatml_tokenizer

LLAMA = {"max_position_embeddings": 131072, "rope_theta": 1e6}
SIZES: dict[str, dict[str, Any]] = {
    "28M": LLAMA
    | {"num_hidden_layers": 8, "hidden_size": 448, "intermediate_size": 1536, "vocab_size": 8192}
    | {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 56, "tie_word_embeddings": False},
    "135M": LLAMA
    | {"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49152}
    | {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    "7B-wide": LLAMA | MISTRAL_7B | {"model_type": "llama", "num_hidden_layers": 2, "tie_word_embeddings": False},
}
"""The second has SmolLM2-135M's shape, the third two layers of Mistral-7B's width."""
SHORT = 1024
"""Tokens of the short context's trunk."""
THREADS, SEED = 2, 1
AGREE = 1e-4
"""Largest relative difference of the losses, and of a tensor's update."""


@dataclass(frozen=True, slots=True)
class Job:
    """A run of one side; the peers get it as JSON."""

    side: str
    """"ours", "trl" or "released"."""
    objective: str
    recompute: bool
    reference_is_precomputed: bool
    steps: int
    result: str
    model: str
    reference: str
    pairs: str
    save: str = ""
    optimizer: str = "adam"
    learning_rate: float = 1e-6
    clip: float = 1.0
    beta: float = 0.1
    pref_coef: float = 1.0
    nll_coef: float = 0.0
    threads: int = THREADS
    device: str = "cpu"
    """A CPU trains in fp32, a GPU in bf16."""


class Bench:
    """Two models, and pairs of one length as a dataset and, in the order of training, as token ids."""

    def __init__(
        self, folder: Path, trl: Path | None, device: str, size: str, trunk: int, branch: int, num_pairs: int
    ) -> None:
        self._folder, self.trl, self.device = folder, trl, device
        self.model, self.reference = (self._make_model(name, size, seed) for seed, name in enumerate(("policy", "ref")))
        self._make_pairs(trunk, branch, num_pairs, SIZES[size]["vocab_size"])
        for hf in (self.model, self.reference):
            run_verb("import-hf", "--hf", hf, "--output", folder / f"{hf.name}-imported")
        for context in ("short", "long"):
            words = ["--data", folder / "data", "--checkpoint", folder / "ref-imported", "--context", context]
            run_verb("score-reference", *words)

    def _make_model(self, name: str, size: str, seed: int) -> Path:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES[size]), dtype=torch.float32)
        model.save_pretrained(self._folder / name)
        chatml_tokenizer(self._folder / name)
        return self._folder / name

    def _make_pairs(self, trunk: int, branch: int, num_pairs: int, vocab_size: int) -> None:
        """One turn; the branches' first token, which belongs to the prompt, is the same."""
        draw = np.random.default_rng(0)
        as_ids: list[dict[str, list[int]]] = []
        fingerprint = tokenizer_fingerprint(load_tokenizer(self.model))
        settings: dict[str, Any] = {"tokenizer_fingerprint": fingerprint, "vocab_size": vocab_size}
        with PairWriter(self._folder / "data", max_length=trunk + branch, overlong="refuse", **settings) as writer:
            for number in range(num_pairs):
                long, short, *answers = (
                    draw.integers(vocab_size, size=tokens, dtype=np.int32) for tokens in (trunk, SHORT, branch, branch)
                )
                answers[1][0] = answers[0][0]
                chosen, rejected = (Branch(answer, np.array([[1, branch]], np.int32)) for answer in answers)
                contexts = [TrunkAndBranches(context, chosen, rejected) for context in (long, short)]
                writer.add(RenderedPair(f"pair-{number}", contexts[0], tuple(contexts[1:])), f"pairs:{number + 1}")
                prompts = {"prompt_ids": [*long, answers[0][0]], "short_prompt_ids": [*short, answers[0][0]]}
                ids = prompts | {"chosen_ids": answers[0][1:], "rejected_ids": answers[1][1:]}
                as_ids.append({name: [int(one) for one in tokens] for name, tokens in ids.items()})
            writer.finish([])
        self.order = [PairOrder(range(num_pairs), SEED)(place) for place in range(num_pairs)]
        (self._folder / "pairs.json").write_text(json.dumps([as_ids[index] for index in self.order]))

    def job(self, side: str, objective: str, **settings: Any) -> Job:
        """A job on these models and pairs."""
        if objective == "longpo":
            settings |= {"beta": 0.01, "pref_coef": 0.01, "nll_coef": 1.0}
        name = "-".join(map(str, (side, objective, *settings.values())))
        return Job(
            side,
            objective,
            model=str(self.model),
            reference=str(self.reference),
            pairs=str(self._folder / "pairs.json"),
            result=str(self._folder / f"{name}.json"),
            device=self.device,
            **settings,
        )

    def run(self, job: Job) -> dict[str, Any]:
        """Run a side's program: seconds and loss of each step, and the peak of its memory."""
        if job.side == "ours":
            return self._run_ours(job)
        path = Path(job.result).with_suffix(".job")
        path.write_text(json.dumps(asdict(job)))
        module = {"trl": "trl_dpo", "released": "released_form"}[job.side]
        python = str(self.trl or sys.executable)
        peak = peak_of([python, "-m", f"benchmarks.peers.{module}", str(path)], job)
        return {"peak_bytes": peak, **json.loads(Path(job.result).read_text())}  # on a GPU the program says its peak

    def _run_ours(self, job: Job) -> dict[str, Any]:
        save = Path(job.result).with_suffix(".run")
        words: list[object] = ["--load", self._folder / "policy-imported", "--longpo-data", self._folder / "data"]
        words += ["--longpo-metrics", save / "metrics.jsonl", "--train-iters", job.steps, "--global-batch-size", 1]
        words += ["--longpo-objective", job.objective, "--longpo-beta", job.beta, "--longpo-pref-coef", job.pref_coef]
        words += ["--longpo-nll-coef", job.nll_coef, "--lr", job.learning_rate, "--lr-decay-style", "constant"]
        words += ["--weight-decay", 0, "--clip-grad", job.clip, "--optimizer", job.optimizer, "--seed", SEED]
        words += ["--sgd-momentum", 0] if job.optimizer == "sgd" else []
        words += ["--longpo-recompute", "keep-attention"] if job.recompute else []
        words += ["--save", save, "--save-interval", job.steps] if job.save else []
        words += ["--longpo-reference-checkpoint", self._folder / "ref-imported"]
        words += [] if job.reference_is_precomputed else ["--longpo-online-reference"]
        words += ["--bf16"] if job.device == "cuda" else []
        program = [sys.executable, "-m", "megatron_longpo.train", *map(str, words)]
        peak = peak_of(program, job)
        if job.save:
            run_verb("export-hf", "--checkpoint", save, "--output", job.save)
        lines = read_metrics(save / "metrics.jsonl", "train")
        if job.device == "cuda":
            peak = int(max(line["peak_memory_gib"] for line in lines) * 2**30)
        return {
            "seconds": [line["seconds"] for line in lines],
            "losses": [line["loss"] for line in lines],
            "peak_bytes": peak,
        }

    def agree(self, ours: Job, peer: Job) -> dict[str, float]:
        """Hold a step of plain gradient descent of both sides against each other.

        Returns:
            The relative difference of the losses, and the largest one of a tensor's update, by norms.

        Raises:
            SystemExit: they differ by more than AGREE.
        """
        descent: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 10.0, "clip": 0.0, "steps": 1}
        found, updates = [], []
        before = load_file(self.model / "model.safetensors")
        for job in (ours, peer):
            saved = Path(job.result).with_suffix(".saved")
            result = str(Path(job.result).with_suffix(".descent.json"))
            found.append(self.run(replace(job, save=str(saved), result=result, **descent)))
            after = load_file(saved / "model.safetensors")
            updates.append({name: after[name].double() - weight.double() for name, weight in before.items()})
        mine, theirs = updates
        loss, peers_loss = (one["losses"][0] for one in found)
        differences = {
            "loss": abs(loss / peers_loss - 1),
            "update": max(float((mine[name] - one).norm() / one.norm()) for name, one in theirs.items()),
        }
        if max(differences.values()) > AGREE:
            raise SystemExit(f"{peer.side} and ours differ: {differences}")
        return differences


def run_verb(*words: object) -> None:
    """Run one of the verbs."""
    run_python("megatron_longpo.commands.main", *words, threads=THREADS)


def peak_of(command: list[str], job: Job) -> int:
    """Run a program to its end: the most bytes that it held resident."""
    environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1"}
    if job.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise SystemExit(log.read().decode()[-3000:])
    return usage.ru_maxrss * 1024
