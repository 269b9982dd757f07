"""Draws follow the distribution that temperature and top-p leave, and belong to the seed."""

import pytest
import torch

from megatron_longpo.generate.engines.seeded_sampling import SeededSampling
from tests.unit.generate.chat_models import ask

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])
NUM_DRAWS = 4000


def draw(seed: int, **sampling: float) -> int:
    processor = SeededSampling([ask("-", seed, **sampling)], torch.device("cpu"))
    return int(processor(torch.empty(1, 0), LOGITS[None].clone()).argmax())


def frequencies(**sampling: float) -> torch.Tensor:
    draws = torch.tensor([draw(seed, **sampling) for seed in range(NUM_DRAWS)])
    return torch.bincount(draws, minlength=len(LOGITS)) / NUM_DRAWS


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_draws_follow_the_softmax(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(-1)
    observed = frequencies(temperature=temperature, top_p=1.0)
    chi_square = NUM_DRAWS * ((observed - expected) ** 2 / expected).sum()
    assert chi_square < 18.5  # 4 degrees of freedom: exceeded by one seed range in a thousand, and the seeds are fixed


def test_top_p_leaves_the_most_probable_tokens_in_their_proportion() -> None:
    kept = LOGITS[:2].softmax(-1)  # they hold 0.80 of the probability, the first alone 0.59
    observed = frequencies(temperature=1.0, top_p=0.7)
    assert observed[2:].sum() == 0
    # Three standard deviations of a frequency.
    torch.testing.assert_close(observed[:2], kept, rtol=0, atol=3 * 0.5 / NUM_DRAWS**0.5)


def test_temperature_zero_is_the_most_probable_token() -> None:
    assert {draw(seed, temperature=0.0, top_p=1.0) for seed in range(50)} == {0}


def test_successive_draws_of_a_seed_differ() -> None:
    processor = SeededSampling([ask("-", 5, temperature=1.0, top_p=1.0)], torch.device("cpu"))
    draws = [int(processor(torch.empty(1, 0), LOGITS[None].clone()).argmax()) for _ in range(40)]
    assert len(set(draws)) > 1


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    requests = [
        ask("-", 3, temperature=0.9, top_p=0.9),
        ask("-", 4, temperature=0.0, top_p=1.0),
        ask("-", 5, temperature=1.3, top_p=1.0),
    ]
    scores_BV = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    together = SeededSampling(requests, torch.device("cpu"))
    alone = [SeededSampling([request], torch.device("cpu")) for request in requests]
    for _ in range(3):
        rows = [one(torch.empty(1, 0), scores_BV[i : i + 1].clone())[0] for i, one in enumerate(alone)]
        assert torch.equal(together(torch.empty(3, 0), scores_BV.clone()), torch.stack(rows))


def test_an_excluded_token_is_never_drawn_whatever_the_noise() -> None:
    """An exponential draw that rounds to 0 would be infinite noise."""
    processor = SeededSampling([ask("-", 1, temperature=1.0, top_p=0.5)], torch.device("cpu"))
    scores_BV = torch.full((1, 200_000), -50.0)
    scores_BV[0, 7] = 50.0
    drawn = processor(torch.empty(1, 0), scores_BV)
    assert not drawn.isnan().any()
    assert int(drawn.argmax()) == 7
