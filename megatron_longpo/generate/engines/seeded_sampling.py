"""Draws that belong to a request: from its seed alone, whatever else the batch holds.

Imports torch and transformers. Shapes: B = rows of the batch, V = vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from megatron_longpo.generate.engine import Request, Sampling


class SeededSampling(LogitsProcessor):
    """Turns greedy decoding into sampling with a seed for each row.

    Gumbel-max: for independent g_v = -log(e_v), e_v exponential, the token argmax_v(score_v + g_v) is distributed as
    softmax(score). So the draw of a row depends on the row's scores and on its own generator, never on its neighbours;
    and where scores differ by rounding, the same noise nearly always picks the same token.
    """

    def __init__(self, requests: Sequence[Request], device: torch.device) -> None:
        """Seed one generator a request; one on a GPU draws other numbers than one on a CPU."""
        self._rows = [(request.sampling, torch.Generator(device).manual_seed(request.seed)) for request in requests]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] whose argmax is the row's draw."""
        del input_ids
        rows = zip(scores, self._rows, strict=True)
        return torch.stack([_with_noise(row, sampling, generator) for row, (sampling, generator) in rows])


def _with_noise(scores_V: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    if sampling.temperature == 0:
        return scores_V
    unused: Any = None
    scores = TemperatureLogitsWarper(float(sampling.temperature))(unused, scores_V[None])
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(unused, scores)
    # An exponential of 0 would be infinite noise, and not a number on a token that top-p had excluded.
    exponential = torch.empty_like(scores).exponential_(generator=generator).clamp_min(torch.finfo(scores.dtype).tiny)
    return (scores - exponential.log())[0]
