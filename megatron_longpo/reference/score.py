"""Score a dataset with the frozen reference, once, before training.

    megatron-longpo score-reference --data PREFIX --checkpoint DIR                      # one process
    torchrun ... -m megatron_longpo.reference.score --data PREFIX --checkpoint DIR ...  # many ranks

Every turn of every pair is one shared pass over its short context (trunk, both branches), by the same model code as in
training, with the rotary settings the checkpoint was imported with. Finished pairs go to a journal at once; a killed
run goes on where it stopped; the cache appears when all pairs are there.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_longpo import platform
from megatron_longpo.errors import UserError

platform.activate()  # before Megatron is imported

from megatron.core import parallel_state  # noqa: E402
from megatron.core.dist_checkpointing import load as load_checkpoint  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from tqdm import tqdm  # noqa: E402

from megatron_longpo.data.indexed import PairReader  # noqa: E402
from megatron_longpo.data.render import TrunkAndBranches  # noqa: E402
from megatron_longpo.hf.config import check_divides, megatron_options  # noqa: E402
from megatron_longpo.hf.sidecar import Identity, read_hf_config, read_identity  # noqa: E402
from megatron_longpo.model.build import ModelShape, build_model, transformer_config  # noqa: E402
from megatron_longpo.model.forward import forward_pack, pack, pair_input  # noqa: E402
from megatron_longpo.model.rope_parameters import RopeParameters  # noqa: E402
from megatron_longpo.model.targets import pair_logps  # noqa: E402
from megatron_longpo.reference.cache import ReferenceManifest, default_path, write_cache  # noqa: E402
from megatron_longpo.reference.journal import Journal  # noqa: E402

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PAIRS_PER_CALL = 8
"""Pairs between two journal writes; their turns are the micro-batches of one pipeline schedule."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of score-reference."""
    parser.add_argument("--data", type=Path, required=True, metavar="PREFIX", help="dataset that build wrote")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR", help="folder that import-hf wrote")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: PREFIX.reference.npz")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bf16 with CUDA, fp32 without")
    parser.add_argument("--tensor-model-parallel-size", type=int, default=1, metavar="N")
    parser.add_argument("--pipeline-model-parallel-size", type=int, default=1, metavar="N")
    parser.add_argument("--sequence-parallel", action="store_true")
    parser.add_argument("--overwrite", action="store_true", help="score again although the cache is there")


@dataclass(frozen=True, slots=True)
class _Reference:
    model: nn.Module
    shape: ModelShape
    sequence_multiple: int


def run(args: argparse.Namespace) -> int:
    """Score and write the cache.

    Raises:
        UserError: dataset and checkpoint do not fit each other, or the ranks do not fit the model.
    """
    reader, identity = PairReader(args.data), read_identity(args.checkpoint)
    options = megatron_options(read_hf_config(args.checkpoint))
    _check(args, reader, identity, options)
    dtype = DTYPES[args.dtype or ("fp32" if platform.is_cpu() else "bf16")]
    manifest = ReferenceManifest(
        dataset_fingerprint=reader.manifest.fingerprint,
        weights_sha256=identity.weights_sha256,
        rope=identity.rope,
        dtype=str(dtype).removeprefix("torch."),
    )
    output = args.output or default_path(args.data)
    if output.exists() and not args.overwrite:
        raise UserError(f"{output} is already there; add --overwrite to score again")
    _start_ranks(args)
    try:
        reference = _load_reference(args, options, identity.rope, dtype)
        journal = Journal(output.with_name(f".{output.name}.journal"), asdict(manifest), dist.get_rank())
        _score_missing(reader, reference, journal)
        dist.barrier()
        if dist.get_rank() == 0:
            done = journal.read_all()
            write_cache(output, manifest, [done[index] for index in range(len(reader))])
            journal.remove()
        dist.barrier()
    finally:
        dist.destroy_process_group()
    return 0


def _check(args: argparse.Namespace, reader: PairReader, identity: Identity, options: dict[str, Any]) -> None:
    if reader.manifest.tokenizer_fingerprint != identity.tokenizer_fingerprint:
        raise UserError(
            f"--data {args.data} was built with another tokenizer or chat template than that of --checkpoint "
            f"{args.checkpoint}; build it again with --tokenizer {args.checkpoint}/hf"
        )
    if not (args.checkpoint / "release").is_dir():
        raise UserError(
            f"--checkpoint {args.checkpoint} is not an imported checkpoint; export-hf and import-hf a trained one first"
        )
    tp, pp = args.tensor_model_parallel_size, args.pipeline_model_parallel_size
    check_divides(options, tp, pp, args.checkpoint)
    if int(os.environ.get("WORLD_SIZE", "1")) % (tp * pp):
        raise UserError(f"{os.environ['WORLD_SIZE']} ranks are not a multiple of tensor x pipeline = {tp * pp}")


def _start_ranks(args: argparse.Namespace) -> None:
    """Join the ranks that torchrun started, or be the only one."""
    if not dist.is_initialized():
        backend = "gloo" if platform.is_cpu() else "nccl"
        if "MASTER_ADDR" in os.environ:
            if not platform.is_cpu():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group(backend)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(args.tensor_model_parallel_size, args.pipeline_model_parallel_size)
    model_parallel_cuda_manual_seed(0)


def _load_reference(
    args: argparse.Namespace, options: dict[str, Any], rope: RopeParameters, dtype: torch.dtype
) -> _Reference:
    tp = args.tensor_model_parallel_size
    config = transformer_config(
        options, tensor=tp, pipeline=args.pipeline_model_parallel_size, sequence=args.sequence_parallel, dtype=dtype
    )
    shape = ModelShape.of(options, rope, multiple=tp)
    model: nn.Module = build_model(
        config,
        shape,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
    )
    model = model.to(dtype).to(torch.cuda.current_device()).eval().requires_grad_(False)
    state = load_checkpoint(model.sharded_state_dict(), str(args.checkpoint / "release"))  # type: ignore[operator]
    model.load_state_dict(state, strict=False)
    return _Reference(model, shape, tp if args.sequence_parallel else 1)


def _score_missing(reader: PairReader, reference: _Reference, journal: "Journal") -> None:
    """Score this data-parallel rank's share of the pairs that no journal holds, and journal them."""
    done = journal.read_all()
    dist.barrier()  # every rank has read the same journals before any of them writes
    missing = [index for index in range(len(reader)) if index not in done]
    mine = missing[parallel_state.get_data_parallel_rank() :: parallel_state.get_data_parallel_world_size()]
    writes = parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0
    start, tokens = time.monotonic(), 0
    progress = tqdm(total=len(mine), unit="pair", desc="reference", disable=dist.get_rank() != 0, mininterval=1.0)
    for first in range(0, len(mine), PAIRS_PER_CALL):
        indices = mine[first : first + PAIRS_PER_CALL]
        pairs = [reader[index] for index in indices]
        turns = [short for pair in pairs for short in pair.short]
        logp = iter(score_turns(reference, turns))
        if writes:
            for index, pair in zip(indices, pairs, strict=True):
                journal.append(index, [next(logp) for _ in pair.short])
            journal.flush()
        tokens += sum(len(t.trunk) + len(t.chosen.tokens) + len(t.rejected.tokens) for t in turns)
        progress.set_postfix_str(f"{tokens / (time.monotonic() - start):,.0f} tokens/s")
        progress.update(len(indices))
    progress.close()


def score_turns(reference: _Reference, turns: list[TrunkAndBranches]) -> list[tuple[float, float]]:
    """(chosen, rejected) sums of each turn, nats; empty on all but the last pipeline stage."""

    def forward_step(data: Iterator[TrunkAndBranches], model: nn.Module) -> Any:
        turn = next(data)
        pair = pair_input(
            *(torch.from_numpy(x.astype("int64")) for x in (turn.trunk, turn.chosen.tokens, turn.rejected.tokens)),
            *(torch.from_numpy(x.astype("int64")) for x in (turn.chosen.spans, turn.rejected.spans)),
            nll_over_all=False,
        )
        batch = pack([pair], reference.sequence_multiple).to(torch.cuda.current_device())
        tp_group = parallel_state.get_tensor_model_parallel_group()
        output = forward_pack(model, batch, reference.shape.vocab_size, tp_group)

        def sums(token_logp_N: Tensor, non_loss_data: bool = True) -> tuple[float, float]:
            (logps,) = pair_logps(token_logp_N, batch.targets)
            return logps.chosen_K.sum().item(), logps.rejected_K.sum().item()

        return output, sums

    with torch.no_grad():
        return get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(turns),
            model=[reference.model],
            num_microbatches=len(turns),
            seq_length=0,  # ignored: stages exchange shapes (variable_seq_lengths)
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )


def main() -> int:
    """Entry point under torchrun; returns the exit status."""
    parser = argparse.ArgumentParser(prog="megatron_longpo.reference.score", description=__doc__)
    add_arguments(parser)
    try:
        return run(parser.parse_args())
    except (UserError, OSError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"megatron_longpo.reference.score: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
