"""What a run will ask, and how long that takes at the speed of a few documents (``generate --dry-run``)."""

import asyncio
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from megatron_longpo.generate.corpus.contexts import LongContext
from megatron_longpo.generate.engine import Completion, Engine, Request
from megatron_longpo.generate.procedure import make_pair
from megatron_longpo.generate.run import num_documents
from megatron_longpo.generate.settings import Settings

QUESTION_TOKENS = 40
"""An instruction's, about; beside a chunk of thousands its true length does not matter."""


@dataclass(slots=True)
class Estimate:
    """What a whole run takes, if every list of questions is usable and no chunk has to be replaced."""

    contexts: int = 0
    chunks: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    """The chat template's are not counted; an engine with a prefix cache reads a long context once a document."""
    max_new_tokens: int = 0
    """Answers end earlier, mostly."""

    def add(self, context: LongContext, settings: Settings) -> None:
        """Count one long context in."""
        turns = min(settings.num_turns, len(context.askable()))
        asks = context.questions is None
        chunk_tokens = sum(chunk.num_tokens for chunk in context.chunks) * turns // max(len(context.chunks), 1)
        self.contexts += 1
        self.chunks += len(context.chunks)
        self.requests += (2 + asks) * turns
        self.prompt_tokens += (1 + asks) * chunk_tokens + turns * (context.num_tokens + 2 * QUESTION_TOKENS)
        self.max_new_tokens += turns * (asks * settings.question.max_new_tokens + 2 * settings.answer.max_new_tokens)


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured on as many documents as keep the engine busy, at once."""

    contexts: int
    pairs: int
    seconds: float
    prompt_tokens: int
    new_tokens: int


def sample_size(engine: Engine, settings: Settings) -> int:
    """Documents that `measure` wants."""
    return num_documents(engine.num_concurrent, settings)


def estimate(contexts: Iterable[LongContext], settings: Settings) -> Estimate:
    """Add up all ``contexts``."""
    found = Estimate()
    for context in contexts:
        found.add(context, settings)
    return found


async def measure(
    sample: Sequence[LongContext], engine: Engine, settings: Settings, control_token: re.Pattern[str] | None
) -> Speed:
    """Carry out the procedure for ``sample``, at once, and keep nothing of it but the time.

    Raises:
        UserError: the engine cannot answer.
    """
    answers: list[Completion] = []

    async def ask(request: Request) -> Completion:
        answers.append(await engine.complete(request))
        return answers[-1]

    started = time.monotonic()
    outcomes = await asyncio.gather(*(make_pair(context, settings, ask, control_token) for context in sample))
    return Speed(
        contexts=len(sample),
        pairs=sum(outcome.pair is not None for outcome in outcomes),
        seconds=time.monotonic() - started,
        prompt_tokens=sum(answer.num_prompt_tokens for answer in answers),
        new_tokens=sum(answer.num_new_tokens for answer in answers),
    )
