"""The reference in memory: it scores the pairs of a step just before the step's own schedule runs.

For checks and small runs: it costs the memory of a second model's weights and a forward pass over what it reads, in
every epoch again, where score.py's cache costs neither. Both give the same log-probs.

It runs a pipeline schedule of its own. A reference inside the policy's forward step would have every pipeline stage
wait for the one before it in an order that the policy's schedule does not keep. The log-probs stay on the last stage,
where the loss is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from megatron_longpo.data.render import Context
from megatron_longpo.reference.frozen import Conversation, FrozenReference, score

Sample = dict[str, Any]
"""What data/dataset.py yields for a pair, as tensors; ``short`` is a list of conversations."""
MicroBatch = Sequence[Sample]


class OnlineReference:
    """Puts the reference's log-probs into samples.

    Args:
        context: what the reference reads; for ``short`` the samples must hold the short conversations.
    """

    def __init__(self, model: FrozenReference, context: Context) -> None:
        self._model, self._context = model, context

    def before(self, schedule: Callable[..., Any]) -> Callable[..., Any]:
        """``schedule`` (megatron/core/pipeline_parallel/schedules.py) on samples that are scored first."""
        return partial(self._run, schedule)

    def _run(
        self,
        schedule: Callable[..., Any],
        *,
        data_iterator: Iterator[MicroBatch] | list[Iterator[MicroBatch]],
        num_microbatches: int,
        **rest: Any,
    ) -> Any:
        # The chunks of an interleaved pipeline have an iterator each, over the same micro-batches.
        iterators = data_iterator if isinstance(data_iterator, list) else [data_iterator]
        drawn = [[next(iterator) for _ in range(num_microbatches)] for iterator in iterators]
        scored = self.score(drawn[0])
        again = [iter(scored) for _ in iterators]
        return schedule(
            data_iterator=again if isinstance(data_iterator, list) else again[0],
            num_microbatches=num_microbatches,
            **rest,
        )

    def score(self, batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """The samples with ``reference_chosen_logp`` and ``reference_rejected_logp``, on the last pipeline stage."""
        samples = [sample for batch in batches for sample in batch]
        conversations = [self._conversations(sample) for sample in samples]
        logps = iter(score(self._model, [one for of_pair in conversations for one in of_pair]))
        scored = iter(
            _with_logps(sample, list(islice(logps, len(of_pair))))
            for sample, of_pair in zip(samples, conversations, strict=True)
        )
        return [list(islice(scored, len(batch))) for batch in batches]

    def _conversations(self, sample: Sample) -> Sequence[Conversation]:
        return sample["short"] if self._context == "short" else [sample]


def _with_logps(sample: Sample, logps: list[Tensor]) -> Sample:
    """A new sample: Megatron keeps the one it drew, to draw it again (megatron/core/rerun_state_machine.py)."""
    scored = {name: value for name, value in sample.items() if name != "short"}
    if logps:
        scored["reference_chosen_logp"], scored["reference_rejected_logp"] = torch.cat(logps).T
    return scored
