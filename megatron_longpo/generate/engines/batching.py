"""Which of the waiting prompts are answered together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_longpo.data.tokenise import IntArray
from megatron_longpo.generate.engine import Request


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A request with its prompt's token ids, int [T]."""

    request: Request
    ids: IntArray


def choose_batch(waiting: Sequence[Prompt], max_prompts: int, max_tokens: int) -> list[int]:
    """The first of ``waiting`` and those that go well with it, as ascending indices.

    Only its own context's. If some begin as it does for half of its length or more (questions about one document), only
    those, so that their beginning is computed once; else those between half and twice as long, so that little is
    padding.

    Args:
        max_tokens: of the padded batch with its answers; a single prompt may be longer.
    """
    head = waiting[0]
    same_context = [i for i, prompt in enumerate(waiting) if prompt.request.context == head.request.context]
    relatives = [i for i in same_context if num_common(head.ids, waiting[i].ids) * 2 >= len(head.ids)]
    alike = [i for i in same_context if len(head.ids) <= 2 * len(waiting[i].ids) <= 4 * len(head.ids)]
    chosen: list[int] = []
    for index in relatives if len(relatives) > 1 else alike:
        if len(chosen) < max_prompts and padded_tokens([waiting[i] for i in (*chosen, index)]) <= max_tokens:
            chosen.append(index)
    return chosen or [0]


def padded_tokens(prompts: Sequence[Prompt]) -> int:
    """Tokens of the keys and values of a batch: as many for every row as the longest prompt and answer need."""
    longest_answer = max(prompt.request.sampling.max_new_tokens for prompt in prompts)
    return len(prompts) * (max(len(prompt.ids) for prompt in prompts) + longest_answer)


def num_common(a: IntArray, b: IntArray) -> int:
    """Length of the longest common beginning."""
    shorter = min(len(a), len(b))
    differing = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(differing[0]) if differing.size else shorter
