"""What the procedure asks of a model, and the protocol of those that answer: local models, servers, vLLM."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from megatron_longpo.data.chat import Message
from megatron_longpo.data.render import Context

FinishReason = Literal["stop", "length"]
"""The model ended its turn, or the answer was cut at ``max_new_tokens``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How an answer is drawn."""

    temperature: float
    """0: the most probable token, always."""
    top_p: float
    max_new_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One conversation for the model to continue."""

    messages: tuple[Message, ...]
    """Ends with a user's message."""
    sampling: Sampling
    seed: int
    """Seed of this request alone, 0 to 2^31-1: an engine that can, draws the same answer from it
    whatever else it is doing."""
    context: Context
    """``long``: the whole document stands in it, so it is answered with the policy's RoPE; ``short``: with the model's
    own."""
    answer_start: str = ""
    """What the answer begins with: the model continues it, and it is no part of the completion."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The model's answer."""

    text: str
    """Special tokens are left out."""
    finish: FinishReason
    num_prompt_tokens: int
    num_new_tokens: int


class Engine(Protocol):
    """Answers requests, many at a time; used from one event loop.

    An engine that cannot answer raises UserError (what was seen, what to change), never returns less than an answer.
    """

    identity: Mapping[str, str]
    """What decides its answers, for the journal and the manifest: engine, model, versions. The same for a run that goes
    on elsewhere: no address, no path of a machine."""
    context_limits: Mapping[Context, int]
    """Tokens that prompt and answer may have together."""
    num_concurrent: int
    """Requests in flight that keep it busy; more wait inside it."""

    async def complete(self, request: Request) -> Completion:
        """The answer to one request."""
        ...

    async def aclose(self) -> None:
        """Let go of the model or the connections; requests in flight are cancelled before."""
        ...
