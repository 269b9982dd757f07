"""Which waiting prompts are answered together."""

import numpy as np
import pytest

from megatron_longpo.generate.engines.batching import Prompt, choose_batch, num_common, padded_tokens
from tests.unit.generate.chat_models import ask


def prompt(*ids: int, context: str = "short", answer: int = 10) -> Prompt:
    return Prompt(ask("-", context=context, max_new_tokens=answer), np.array(ids))


DOCUMENT = tuple(range(100, 160))


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        ([prompt(1)], [0]),
        # Contexts are not mixed, however alike.
        ([prompt(1, 2), prompt(1, 2, context="long"), prompt(1, 3)], [0, 2]),
        # Questions about one document stay together, others wait.
        ([prompt(*DOCUMENT, 1), prompt(*DOCUMENT[::-1], 1), prompt(*DOCUMENT, 2, 3)], [0, 2]),
        # Half as long and twice as long will do, more is padding.
        ([prompt(*range(20)), prompt(*range(50, 60)), prompt(*range(60, 100)), prompt(*range(50, 59))], [0, 1, 2]),
        ([prompt(*range(20)), prompt(*range(50, 91))], [0]),
        # Four rows at the most.
        ([prompt(number) for number in range(6)], [0, 1, 2, 3]),
    ],
)
def test_choice(waiting: list[Prompt], expected: list[int]) -> None:
    assert choose_batch(waiting, max_prompts=4, max_tokens=10_000) == expected


def test_memory_counts_the_padding_and_the_longest_answer() -> None:
    batch = [prompt(*range(20)), prompt(*range(50, 62), answer=30)]
    assert padded_tokens(batch) == 2 * (20 + 30)
    assert choose_batch(batch, 4, max_tokens=100) == [0, 1]
    assert choose_batch(batch, 4, max_tokens=99) == [0]


def test_a_prompt_that_is_too_long_by_itself_is_answered_by_itself() -> None:
    assert choose_batch([prompt(*range(20)), prompt(1)], 4, max_tokens=5) == [0]


def test_num_common() -> None:
    assert num_common(np.array([1, 2, 3]), np.array([1, 2, 4, 5])) == 2
    assert num_common(np.array([1, 2]), np.array([1, 2, 4])) == 2
    assert num_common(np.array([3]), np.array([1])) == 0
