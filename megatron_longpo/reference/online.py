"""The reference in memory: it scores the pairs of a step just before the step's own schedule runs.

For checks and small runs: it costs the memory of a second model's weights and a forward pass over what it reads, in
every epoch again, where score.py's cache costs neither. Both give the same log-probs.

It runs a pipeline schedule of its own. A reference inside the policy's forward step would have every pipeline stage
wait for the one before it in an order that the policy's schedule does not keep. The log-probs stay on the last stage,
where the loss is computed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from megatron_longpo.data.trees import TreeKind
from megatron_longpo.micro_batch import MicroBatch, Sample
from megatron_longpo.reference.frozen import FrozenReference, ScoredTree, score


class OnlineReference:
    """Puts the reference's log-probs into samples.

    Args:
        reads: what the reference reads; for short contexts the samples must hold the short conversations.
    """

    def __init__(self, model: FrozenReference, reads: Sequence[TreeKind]) -> None:
        self._model, self._reads = model, reads

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
        """Return the samples with ``reference_CONTEXT_ANSWER`` for all that is read, on the last pipeline stage."""
        samples = [sample for batch in batches for sample in batch.samples]
        trees = [self._trees(sample) for sample in samples]
        logps = iter(score(self._model, [tree for of_pair in trees for _, of_kind in of_pair for tree in of_kind]))
        scored = iter(_with_logps(sample, of_pair, logps) for sample, of_pair in zip(samples, trees, strict=True))
        return [replace(batch, samples=list(islice(scored, len(batch.samples)))) for batch in batches]

    def _trees(self, sample: Sample) -> list[tuple[TreeKind, list[ScoredTree]]]:
        return [
            (kind, [(one, kind.answers) for one in ([sample["long"]] if kind.context == "long" else sample["short"])])
            for kind in self._reads
        ]


def _with_logps(sample: Sample, trees: list[tuple[TreeKind, list[ScoredTree]]], logps: Iterator[Tensor]) -> Sample:
    """A new sample: Megatron keeps the one it drew, to draw it again (megatron/core/rerun_state_machine.py)."""
    scored = dict(sample)
    for kind, of_kind in trees:
        found = list(islice(logps, len(of_kind)))
        if found:  # on the last pipeline stage
            for answer, logp_K in zip(kind.answers, torch.cat(found).T, strict=True):
                scored[f"reference_{kind.context}_{answer}"] = logp_K
    return scored
