"""What is trained on the miniature's pairs: options of each method, what is tried of them, and what all share."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from examples.miniature.model import LENGTH, POLICY_THETA

PAIRS_PER_STEP = 8
QUESTION_ROOM, ANSWER_TOKENS, NUM_TURNS = 10, 6, 4
NUM_TRIALS = 6
"""Settings that are tried of every method, learning rate and coefficients together."""
Trial = Mapping[str, float]
"""Option of the training program -> its value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """From which length a model teaches itself which longer one."""

    known: int = 1
    """What it reads well, in lengths that the base is taught: a chunk, its question and its answer are as long."""
    long: int = 4
    """What it is trained on, in the same unit."""
    rope_theta: float = POLICY_THETA
    """RoPE's base for what is that long."""

    @property
    def text_tokens(self) -> int:
        """Of a long text, with a question and its answer `long` lengths."""
        return self.long * LENGTH - QUESTION_ROOM - ANSWER_TOKENS

    @property
    def chunk_tokens(self) -> int:
        """Of a chunk, at most."""
        return self.known * LENGTH - QUESTION_ROOM - ANSWER_TOKENS

    @property
    def max_length(self) -> int:
        """Tokens of a conversation on a long text, with all its turns, at most."""
        return self.long * LENGTH + NUM_TURNS * (QUESTION_ROOM + ANSWER_TOKENS)


REACH = Reach()


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One way to train on the pairs."""

    title: str
    objective: str
    options: tuple[str, ...] = ()
    """Of the training program, the same in every trial."""
    trials: tuple[Trial, ...]
    reads: tuple[str, ...] = ()
    """Contexts on which the reference is scored for it."""


def _grid(**values: tuple[float, ...]) -> tuple[Trial, ...]:
    names = [name.replace("_", "-") for name in values]
    return tuple(dict(zip(names, row, strict=True)) for row in itertools.product(*values.values()))


_SIX_RATES = (5e-4, 1e-3, 2e-3, 3e-3, 4e-3, 6e-3)
_RATES = (1e-3, 2e-3, 4e-3)
_LOWER_RATES = (3e-4, 1e-3, 2e-3)
_RESPONSE = ("--longpo-nll-tokens", "response")
_LONGPO = {"longpo_beta": (0.1,), "longpo_pref_coef": (0.1, 0.4)}

METHODS = {
    "sft": Method(title="SFT, all tokens", objective="sft", trials=_grid(lr=_SIX_RATES)),
    "sft-response": Method(
        title="SFT, response tokens", objective="sft", options=_RESPONSE, trials=_grid(lr=_SIX_RATES)
    ),
    "sft-rejected": Method(title="SFT on rejected answers", objective="sft-rejected", trials=_grid(lr=_SIX_RATES)),
    "sft-constrained": Method(
        title="SFT + short-to-long constraint",
        objective="sft-constrained",
        trials=_grid(lr=_RATES, longpo_alpha=(0.1, 1.0)),
        reads=("short",),
    ),
    "dpo": Method(
        title="DPO",
        objective="dpo",
        options=("--longpo-nll-coef", "0", "--longpo-pref-coef", "1"),
        trials=_grid(lr=_LOWER_RATES, longpo_beta=(0.1, 0.3)),
        reads=("long",),
    ),
    "dpo-nll": Method(
        title="DPO + NLL",
        objective="dpo",
        options=("--longpo-nll-coef", "1"),
        trials=_grid(lr=_RATES, **_LONGPO),
        reads=("long",),
    ),
    "longpo-released": Method(
        title="LongPO, released coefficients",
        objective="longpo",
        options=("--longpo-beta", "0.01", "--longpo-pref-coef", "0.01"),
        trials=_grid(lr=_SIX_RATES),
        reads=("short",),
    ),
    "longpo-paper": Method(
        title="LongPO, the paper's beta",
        objective="longpo",
        options=("--longpo-beta", "0.1", "--longpo-pref-coef", "0.01"),
        trials=_grid(lr=_SIX_RATES),
        reads=("short",),
    ),
    "longpo": Method(
        title="LongPO, tuned", objective="longpo", trials=_grid(lr=_RATES, **_LONGPO), reads=("short",)
    ),
    "longpo-response": Method(
        title="LongPO, NLL over response tokens",
        objective="longpo",
        options=_RESPONSE,
        trials=_grid(lr=_RATES, **_LONGPO),
        reads=("short",),
    ),
    "longpo-no-nll": Method(
        title="LongPO without NLL",
        objective="longpo",
        options=("--longpo-nll-coef", "0", "--longpo-pref-coef", "1"),
        trials=_grid(lr=_LOWER_RATES, longpo_beta=(0.1, 0.3)),
        reads=("short",),
    ),
    "solopo-dpo": Method(
        title="SoLoPO (DPO)",
        objective="solopo-dpo-short-reference",
        options=("--longpo-nll-coef", "0", "--longpo-pref-coef", "1", "--longpo-beta", "0.1"),
        trials=_grid(lr=_RATES, longpo_alpha=(1.0, 3.0)),
        reads=("short",),
    ),
    "solopo-simpo": Method(
        title="SoLoPO (SimPO)",
        objective="solopo-simpo",
        options=("--longpo-nll-coef", "0", "--longpo-pref-coef", "1"),
        trials=_grid(lr=_RATES, longpo_alpha=(1.0, 3.0)),
    ),
    "solopo-orpo": Method(
        title="SoLoPO (ORPO)",
        objective="solopo-orpo",
        options=("--longpo-nll-coef", "1", "--longpo-pref-coef", "0.1"),
        trials=_grid(lr=_RATES, longpo_alpha=(0.1, 1.0)),
    ),
}  # fmt: skip
"""The paper's arms and its successors'; every one is tried NUM_TRIALS times, SFT on more learning rates."""


def generate_options(model: Path, texts: Path, reach: Reach = REACH) -> list[str]:
    """Of ``megatron-longpo generate``, for a folder of make_texts.py."""
    return [
        *("--documents", f"{texts / 'texts.jsonl'}", "--questions", f"{texts / 'questions.jsonl'}"),
        *("--model", f"{model}", "--domain", "prose", "--length", f"{reach.max_length}"),
        *("--min-length", f"{reach.text_tokens * 2 // 5}"),  # more than its chunks need at the least
        *("--num-turns", f"{NUM_TURNS}", "--min-turns", "1", "--max-duplicate", "1"),
        *("--min-chunk-tokens", "16", "--max-chunk-tokens", f"{reach.chunk_tokens}"),
        *("--question-room", f"{QUESTION_ROOM}", "--answer-tokens", f"{ANSWER_TOKENS}", "--batch-size", "64"),
        # Answers of a word or two: what tells prose from loops and refusals does not apply.
        *("--min-answer-characters", "1", "--max-similarity", "1"),
        *("--no-filter", "language", "cut-off", "repetition", "refusal"),
        *("--policy-rope", json.dumps({"rope_type": "default", "rope_theta": reach.rope_theta}), "--seed", "1"),
    ]


def build_options(pairs: Path, model: Path, data: Path, reach: Reach = REACH) -> list[str]:
    """Of ``megatron-longpo build``."""
    return [
        *("--input", f"{pairs}", "--tokenizer", f"{model}", "--output", f"{data}"),
        *("--max-length", f"{reach.max_length}"),
    ]


def train_options(method: Method, trial: Trial, reach: Reach = REACH) -> list[str]:
    """Of the training program: the learning rate is warmed up and then falls to 5%."""
    return [
        *("--longpo-objective", method.objective, *method.options),
        *(word for name, value in trial.items() for word in (f"--{name}", f"{value:g}")),
        *("--min-lr", f"{trial['lr'] / 20:g}", "--lr-decay-style", "linear", "--lr-warmup-fraction", "0.1"),
        *("--adam-beta2", "0.98", "--weight-decay", "0"),
        *("--global-batch-size", f"{PAIRS_PER_STEP}", "--longpo-tokens-per-microbatch", "4096"),
        *("--rotary-base", f"{reach.rope_theta:.0f}", "--save-interval", "1000", "--seed", "1"),
    ]
