"""lm-eval's transformers model, with three things of ours: fp32, a common beginning computed once, a batch that fits.

Imports torch, transformers and lm-eval: imported only where a short task runs in this process.
Shapes: B = prompts in one pass, T = tokens of the longest, V = vocabulary.
"""

from itertools import pairwise
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from megatron_longpo.errors import UserError, one_line
from megatron_longpo.evaluate.short.tasks import Answer, Request

MIN_SHARED_TOKENS = 32
"""A shorter common beginning is not worth a pass of its own."""


class LocalLM(HFLM):
    """HFLM of lm-eval 0.4.13.

    Log-probabilities are taken in fp32. HFLM's default is the model's type: in bf16 one of -40 is right to 0.25.

    A question's options follow the same worked examples, MMLU's questions of a subject as well: what prompts begin
    with in common is computed once, which is most of the work. HFLM would compute it for every option.
    """

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int, max_length: int) -> None:
        padding = tokenizer.pad_token
        super().__init__(
            model, tokenizer=tokenizer, batch_size=batch_size, max_length=max_length, softmax_dtype="float32"
        )
        tokenizer.pad_token = padding  # the caller's; nothing is padded with it here

    def _loglikelihood_tokens(self, requests: list[Request], **options: Any) -> list[Answer]:
        """Answer requests, of which those that begin alike must be neighbours.

        Raises:
            UserError: the memory does not hold a single prompt.
        """
        bounds = [0]
        for place in range(1, len(requests) + 1):
            if place == len(requests) or not _begin_alike(requests[bounds[-1]], requests[place]):
                bounds.append(place)
        families = [requests[start:end] for start, end in pairwise(bounds)]
        return [answer for family in families for answer in self._answers(family, **options)]

    def _answers(self, requests: list[Request], **options: Any) -> list[Answer]:
        while True:
            try:
                return super()._loglikelihood_tokens(requests, **options)
            except torch.OutOfMemoryError as error:
                if self.batch_size_per_gpu == 1:
                    raise UserError(
                        f"{self.device}: the memory does not hold a single prompt of the short tasks "
                        f"({one_line(error)}); use a larger device, or --engine openai"
                    ) from error
            self.batch_size_per_gpu //= 2
            torch.cuda.empty_cache()

    @torch.no_grad()
    def _model_call(self, inps: Tensor, attn_mask: None = None, labels: None = None) -> Tensor:
        """[B, T] ids, padded on the right -> [B, T, V] logits."""
        # The last position is left to the second pass, which must have something to do.
        alike_T = (inps[:, :-1] == inps[:1, :-1]).all(dim=0)
        num_shared = int(alike_T.long().cumprod(dim=0).sum())
        if len(inps) == 1 or num_shared < MIN_SHARED_TOKENS:
            return self.model(inps, use_cache=False).logits
        shared = self.model(inps[:1, :num_shared], use_cache=True)
        cache = shared.past_key_values
        cache.batch_repeat_interleave(len(inps))
        own = self.model(inps[:, num_shared:], past_key_values=cache, use_cache=True)
        return torch.cat([shared.logits.expand(len(inps), -1, -1), own.logits], dim=1)


def _begin_alike(one: Request, other: Request) -> bool:
    """They have the first half of ``one``'s tokens in common."""
    half = (len(one[1]) + len(one[2])) // 2
    return (one[1] + one[2])[:half] == (other[1] + other[2])[:half]
