"""What decides the pairs: lengths, turns, sampling, filters. A journal belongs to one `Settings`."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from megatron_longpo.errors import UserError
from megatron_longpo.generate.engine import Sampling

FilterName = Literal[
    "malformed questions",
    "position",
    "control tokens",
    "thoughts",
    "broken characters",
    "cut off",
    "empty",
    "refusal",
    "repetition",
    "language",
    "too similar",
    "too long",
]
"""Why a turn is dropped, in the order in which it is looked at."""
FILTERS: tuple[FilterName, ...] = get_args(FilterName)
ALWAYS_ON: tuple[FilterName, ...] = ("malformed questions", "control tokens", "thoughts", "broken characters")
"""Without a question there is nothing to answer, and `build` refuses the others or trains on what is no answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The procedure's figures; the defaults are the released recipe's (128K)."""

    seed: int = 42
    length: int = 131072
    """Tokens of a whole long conversation at most."""
    min_length: int = 81920
    """Documents of fewer tokens are joined with others, or left out."""
    num_turns: int = 4
    """Turns of a pair at most; each asks about another chunk."""
    min_turns: int = 4
    """A document with fewer usable turns gives no pair."""
    min_chunk_tokens: int = 16384
    max_chunk_tokens: int = 30720
    num_questions: int = 4
    """Asked for at a time, of which one is kept."""
    question_attempts: int = 1
    """Lists of questions asked for until one is usable."""
    question: Sampling = field(default_factory=lambda: Sampling(temperature=0.7, top_p=0.9, max_new_tokens=512))
    answer: Sampling = field(default_factory=lambda: Sampling(temperature=1.0, top_p=1.0, max_new_tokens=1024))
    question_room: int = 256
    """Tokens kept free for a turn's instruction and the chat template around it."""
    max_short_tokens: int = 32768
    """A short conversation of this many tokens or more is dropped."""
    min_answer_characters: int = 16
    max_repetition: float = 0.3
    """Share of an answer's word sequences that stood in it before."""
    max_similarity: float = 0.95
    """Similarity of chosen and rejected; 1 is equal."""
    no_filter: tuple[FilterName, ...] = ()
    """Filters that are off."""

    @property
    def context_tokens(self) -> int:
        """Tokens of a long context at most: the conversation must have room beside it."""
        return self.length - self.num_turns * (self.answer.max_new_tokens + self.question_room)

    @property
    def num_chunks(self) -> int:
        """Chunks of a long context: as many as fill it, and one a turn."""
        return max(self.num_turns, self.context_tokens // self.max_chunk_tokens)

    def check(self) -> None:
        """Raise UserError for settings that cannot give a pair; the message names the options."""
        for name in (
            "length",
            "num_turns",
            "min_turns",
            "min_chunk_tokens",
            "num_questions",
            "question_attempts",
            "question_room",
        ):
            _require(getattr(self, name) >= 1, f"--{_option(name)} {getattr(self, name)}: needs at least 1")
        _require(
            self.min_turns <= self.num_turns,
            f"--min-turns {self.min_turns} is above --num-turns {self.num_turns}; lower it",
        )
        _require(
            self.min_chunk_tokens <= self.max_chunk_tokens,
            f"--min-chunk-tokens {self.min_chunk_tokens} is above --max-chunk-tokens {self.max_chunk_tokens}",
        )
        _require(
            self.min_chunk_tokens < self.max_short_tokens,
            f"--max-short-tokens {self.max_short_tokens} drops every chunk of --min-chunk-tokens "
            f"{self.min_chunk_tokens} or more; raise it",
        )
        needed = self.num_turns * self.max_chunk_tokens
        _require(
            needed <= self.context_tokens,
            f"--length {self.length} leaves {self.context_tokens} tokens for the context beside {self.num_turns} "
            f"answers of {self.answer.max_new_tokens}, less than {self.num_turns} chunks of --max-chunk-tokens "
            f"{self.max_chunk_tokens}; raise --length or lower --max-chunk-tokens, --num-turns or --answer-tokens",
        )
        least = self.num_chunks * self.min_chunk_tokens
        _require(
            self.min_length >= least,
            f"--min-length {self.min_length} is below the {least} tokens that {self.num_chunks} chunks of "
            f"--min-chunk-tokens {self.min_chunk_tokens} need; raise it or lower --min-chunk-tokens",
        )
        for name, sampling in (("question", self.question), ("answer", self.answer)):
            _require(
                0 <= sampling.temperature < float("inf"),
                f"--{name}-temperature {sampling.temperature}: needs at least 0",
            )
            _require(0 < sampling.top_p <= 1, f"--{name}-top-p {sampling.top_p}: needs more than 0, at most 1")
            _require(sampling.max_new_tokens >= 1, f"--{name}-tokens {sampling.max_new_tokens}: needs at least 1")
        for name in ("max_repetition", "max_similarity"):
            _require(0 <= getattr(self, name) <= 1, f"--{_option(name)} {getattr(self, name)}: needs 0 to 1")
        if unknown := [name for name in self.no_filter if name not in FILTERS or name in ALWAYS_ON]:
            usable = ", ".join(_option(name) for name in FILTERS if name not in ALWAYS_ON)
            raise UserError(f"--no-filter {_option(unknown[0])}: no filter that can be turned off; there are {usable}")


PRESETS: dict[str, dict[str, Any]] = {
    "mistral-128k": {},
    "qwen-128k": {},
    "256k": {"length": 262144, "min_length": 163840},
    "512k": {"length": 524288, "min_length": 327680},
}
"""Differences from the defaults. Mistral and Qwen2.5 share lengths; they differ in `POLICY_ROPE`."""
POLICY_ROPE: dict[str, dict[str, Any]] = {
    "mistral-128k": {"rope_type": "default", "rope_theta": 1e7},
    "qwen-128k": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
    },
}
"""The policy's RoPE of a preset, for the answers from the long context (Mistral: released training script; Qwen2.5: its
model card). 256k and 512k start from a model that was trained at 128K and keep its own."""


def from_preset(name: str | None, **given: Any) -> Settings:
    """The settings of a preset (None: the defaults), with what is ``given`` and not None in place."""
    values = dict(PRESETS[name]) if name else {}
    values |= {key: value for key, value in given.items() if value is not None}
    return replace(Settings(), **values)


def _option(name: str) -> str:
    return name.replace("_", "-").replace(" ", "-")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)
