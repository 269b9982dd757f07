"""A language model that is a rule: its answer is a function of the request alone, so that runs can be compared."""

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Mapping

from megatron_longpo.data.render import Context
from megatron_longpo.generate.corpus.chunk import Chunk
from megatron_longpo.generate.corpus.contexts import LongContext
from megatron_longpo.generate.engine import Completion, Request

TEXT = (
    "river harbour treaty council granite orchard signal lantern voyage meadow archive copper senate village winter "
    "bridge market empire coastal mountain written ancient famous northern carried followed described between without "
    "against"
)
WORDS = TEXT.split()
"""Of which its texts are made."""

Answer = Callable[[Request], str | None]
"""A special answer to a request, or None for the usual one."""


def sentence(draw: random.Random, num_words: int = 14) -> str:
    return f"{' '.join(draw.choice(WORDS) for _ in range(num_words)).capitalize()}."


def make_context(number: int = 0, num_chunks: int = 5) -> LongContext:
    draw = random.Random(number)
    texts = [f"{' '.join(sentence(draw) for _ in range(4))}\n\n" for _ in range(num_chunks)]
    chunks: list[Chunk] = []
    for text in texts:
        start = chunks[-1].end if chunks else 0
        chunks.append(Chunk(start, start + len(text), len(text.split())))
    joined = "".join(texts)
    return LongContext(f"book-{number}", joined, tuple(chunks), "prose", len(joined.split()))


class ModelByRule:
    """Lists of questions to those who ask for them, else three sentences drawn from the request's seed and text."""

    identity: Mapping[str, str] = {"engine": "rule"}
    context_limits: Mapping[Context, int] = {"short": 10_000, "long": 10_000}

    def __init__(self, special: Answer = lambda request: None, num_concurrent: int = 4, delay_s: float = 0.0) -> None:
        self.num_concurrent, self._special, self._delay_s = num_concurrent, special, delay_s
        self.requests: list[Request] = []
        self.in_flight = self.most_in_flight = 0

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        draw = random.Random(hashlib.sha256(f"{request.seed} {request.messages}".encode()).digest())
        await asyncio.sleep(self._delay_s * random.random())
        self.in_flight -= 1
        text = self._special(request) or (questions(draw) if is_asking(request) else answer(draw))
        num_prompt_tokens = len(request.messages[-1]["content"].split())
        return Completion(
            text=text, finish="stop", num_prompt_tokens=num_prompt_tokens, num_new_tokens=len(text.split())
        )

    async def aclose(self) -> None:
        pass


class Counts:
    """An observer that remembers what it was told."""

    def __init__(self) -> None:
        self.answers, self.documents, self.dropped = 0, 0, Counter[str]()

    def answered(self, completion: Completion) -> None:
        self.answers += 1

    def finished(self, outcome: object) -> None:
        self.documents += 1


def is_asking(request: Request) -> bool:
    return "numbered from 1" in request.messages[-1]["content"]


def questions(draw: random.Random) -> str:
    return "\n".join(f"{number}. Why was the {sentence(draw, 8)[:-1].lower()}?" for number in range(1, 5))


def answer(draw: random.Random) -> str:
    return " ".join(sentence(draw) for _ in range(3))
